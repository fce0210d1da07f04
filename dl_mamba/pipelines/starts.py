"""What a run starts from: fresh weights or pretrained ones with their tokenizer, trained whole or by adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras

from dl_mamba import training
from dl_mamba.models.backbone import Backbone
from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.generation import load_language_model
from dl_mamba.pipelines.recipe import ADAPTERS, FINE_TUNING, Recipe


class Start(NamedTuple):
    """A pretrained backbone, and what turns text into its ids."""

    backbone: Backbone
    tokenizer: Any


def load(source: str | Path | None) -> Start | None:
    """The backbone and the tokenizer of a checkpoint or of a language model's .keras file; None for None.

    Raises:
        InputError: there is no tokenizer, and the vocabulary is not that of bytes.
        CheckpointError: the checkpoint is damaged or unknown.

    Example:

    >>> import tempfile, dl_mamba
    >>> from dl_mamba.pipelines.starts import load
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dl_mamba.MambaCausalLM(vocab_size=256, d_model=8, num_layers=1).save_pretrained(folder)
    ...     type(load(folder).tokenizer).__name__
    'ByteTokenizer'
    """
    if source is None:
        return None
    model = load_language_model(source)
    if model.tokenizer is None:
        raise InputError(
            f"{source} has no tokenizer.json, and its {model.config.vocab_size} tokens are not the 256 bytes; put the "
            "tokenizer.json of the checkpoint beside its weights."
        )
    return Start(model.backbone, model.tokenizer)


def recipe_of(recipe: Recipe, init: Any, lora: int | None, changes: dict[str, Any]) -> Recipe:
    """A recipe with what a pretrained start and adapters change about it, and what the user says over that.

    Raises:
        InputError: a size is named although the start has one.
    """
    for name in ("family", "variant"):
        if init is not None and changes.get(name) is not None:
            raise InputError(f"{name}={changes[name]!r} cannot be chosen with a pretrained start, which has its own.")
    usual = {**(FINE_TUNING if init is not None else {}), **(ADAPTERS if lora is not None else {})}
    return recipe.adjusted(**usual).adjusted(**changes)


def adapt(model: keras.Model, lora: int | None, targets: Sequence[str] | None) -> training.TrainableShare | None:
    """Give a model adapters of that rank, if it is to have any; `targets` as in `dl_mamba.training.enable_lora`.

    Raises:
        InputError: the rank is below 1, a target does not exist, or there are targets without a rank.
    """
    if lora is None:
        if targets:
            raise InputError(f"lora_targets={list(targets)} without `lora`; name the rank of the adapters too.")
        return None
    try:
        return training.enable_lora(model, lora, targets=targets or training.adapting.PROJECTIONS)
    except ValueError as error:
        raise InputError(f"lora: {error}") from error


def merge(model: keras.Model, lora: int | None) -> None:
    """Add the adapters to what they adapt, if there are any."""
    if lora is not None:
        training.merge_lora(model)


def named(init: Any, lora: int | None, targets: Sequence[str] | None) -> dict[str, Any]:
    """What must be the same for a killed run to go on."""
    return {"init": str(init), "lora": lora, "lora_targets": list(targets or ())}


def described(init: Any, share: training.TrainableShare | None) -> dict[str, Any]:
    """What the metrics file says about it."""
    found = {} if init is None else {"init": str(init)}
    return found if share is None else {**found, "trainable": share.trainable}
