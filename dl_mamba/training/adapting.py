"""Which weights learn: frozen blocks and low-rank adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras

from dl_mamba.layers.adapted import merge
from dl_mamba.layers.stacked import track
from dl_mamba.models.backbone import Backbone

PROJECTIONS = ("in_proj", "x_proj", "out_proj")


def freeze(model: keras.Model, num_blocks: int) -> None:
    """Keep the embedding and the first blocks of every backbone in a model as they are; call before `compile`.

    Args:
        model: a backbone, or a model that contains one.
        num_blocks: how many blocks, from the embedding upwards; 0 freezes the embedding alone.

    Raises:
        ValueError: the model contains no backbone, or one with fewer blocks.

    Example:

    >>> import dl_mamba
    >>> model = dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=2)
    >>> dl_mamba.training.freeze(model, num_blocks=1)
    >>> {variable.path.split("/")[1] for variable in model.trainable_variables} == {"layers", "final_norm"}
    True
    """
    for backbone in _backbones(model):
        backbone.freeze(num_blocks)
    track(model)


class TrainableShare(NamedTuple):
    """How much of a model learns.

    Attributes:
        trainable: number of weights that learn.
        total: number of all weights.

    Example:

    >>> from dl_mamba.training import TrainableShare
    >>> str(TrainableShare(5, 1000))
    '5 of 1,000 weights train (0.50 %)'
    """

    trainable: int
    total: int

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} weights train ({self.trainable / self.total:.2%})".replace(
            "%", " %"
        )


def enable_lora(
    model: keras.Model, rank: int, alpha: float | None = None, targets: Sequence[str] = PROJECTIONS
) -> TrainableShare:
    """Freeze the backbones of a model and train low-rank adapters of their matrices; call before `compile`.

    The adapters are Keras' own (`keras.layers.Dense.enable_lora`). Heads go on learning. A `.keras` file holds the
    matrices with the adapters added, and a model loaded from it has equal outputs and new adapters, still the only
    weights of its backbone that learn. Source: Hu et al., "LoRA", 2021, eq. 3.

    Args:
        model: a built model with a backbone of this library in it.
        rank: of the adapters, >= 1.
        alpha: the adapters are scaled by alpha / rank; alpha is the rank if None.
        targets: what is adapted: `"in_proj"`, `"x_proj"`, `"dt_proj"` (the last two of Mamba-1), `"out_proj"`, and
            `"embedding"`, whose adapter has one number for each token and rank: where a task hangs on single words and
            the model is small, a rank of 1 with the embedding learns more than a higher one without.

    Returns:
        How many weights train now, of the whole model.

    Raises:
        ValueError: the rank is below 1, the model has no backbone, a target is unknown or none is in the
            backbone, or the embedding is a target and quantized.

    Example:

    >>> import dl_mamba
    >>> model = dl_mamba.Mamba2CausalLM(vocab_size=300, d_model=64, num_layers=2)
    >>> print(dl_mamba.training.enable_lora(model, rank=1))
    1,540 of 107,216 weights train (1.44 %)
    """
    for backbone in _backbones(model):
        backbone.enable_adapters(rank, alpha, targets)
    track(model)
    return TrainableShare(_count(model.trainable_variables), _count(model.weights))


def merge_lora(model: keras.Model) -> None:
    """Add the adapters to their matrices and start them anew; the outputs stay the same up to rounding.

    Raises:
        ValueError: the model has no adapters, or is quantized.

    Example:

    >>> import dl_mamba
    >>> model = dl_mamba.Mamba2(vocab_size=11, d_model=16, num_layers=1, headdim=8)
    >>> _ = dl_mamba.training.enable_lora(model, rank=2)
    >>> dl_mamba.training.merge_lora(model)
    """
    adapted = [layer for layer in model._flatten_layers() if getattr(layer, "lora_enabled", False)]
    if not adapted:
        raise ValueError(f"model {model.name!r} has no adapters; call enable_lora first.")
    for layer in adapted:
        if layer.quantization_mode is not None:
            raise ValueError(f"{layer.path} is quantized, its adapters cannot be added; save the model instead.")
    for layer in adapted:
        merge(layer)


def _count(variables: Sequence[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _backbones(model: keras.Model) -> list[Backbone]:
    found = [layer for layer in model._flatten_layers() if isinstance(layer, Backbone)]
    if not found:
        raise ValueError(f"model {model.name!r} contains no Mamba or Mamba2 backbone.")
    return found
