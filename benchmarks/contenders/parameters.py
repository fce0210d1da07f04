"""Our model's sizes, and the inner width that gives a peer's layer the same parameter count."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks.case import Case
from dl_mamba import variants
from dl_mamba.config import Mamba2Config, MambaConfig


def config_of(case: Case) -> MambaConfig | Mamba2Config:
    """The config of our model at the size of a case."""
    preset = variants.find(case.family, case.variant).to_dict() if case.variant else {"pad_vocab_size_multiple": 1}
    sizes = {"vocab_size": case.vocab_size, "d_model": case.d_model, "num_layers": case.num_layers}
    return variants.FAMILIES[case.family](**{**preset, **sizes})


def matched_width(case: Case, parameters: Callable[[int], int]) -> int:
    """The largest width for which a layer has at most as many weights as ours, biases and norms aside.

    Args:
        case: gives family, d_model and num_layers.
        parameters: number of weights of one layer of that width, growing with it.
    """
    two, one = (config_of(dataclasses.replace(case, num_layers=layers)).num_parameters for layers in (2, 1))
    width = 1
    while parameters(width + 1) <= two - one:
        width += 1
    return width
