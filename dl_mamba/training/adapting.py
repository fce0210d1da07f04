"""Which weights learn: frozen blocks and low-rank adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
from keras import ops

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
    """Freeze the backbones of a model and train low-rank adapters of their projections; call before `compile`.

    The adapters are Keras' own (`keras.layers.Dense.enable_lora`). Heads go on learning. A `.keras` file holds the
    projections with the adapters added, and a model loaded from it has equal outputs and new adapters, still the only
    weights of its backbone that learn. Source: Hu et al., "LoRA", 2021, eq. 3.

    Args:
        model: a built model with a backbone of this library in it.
        rank: of the adapters, >= 1.
        alpha: the adapters are scaled by alpha / rank; alpha is the rank if None.
        targets: names of projections: `"in_proj"`, `"x_proj"`, `"dt_proj"` (Mamba-1), `"out_proj"`.

    Returns:
        How many weights train now, of the whole model.

    Raises:
        ValueError: the rank is below 1, the model has no backbone, or none of its projections is among the targets.

    Example:

    >>> import dl_mamba
    >>> model = dl_mamba.Mamba2CausalLM(vocab_size=300, d_model=64, num_layers=2)
    >>> print(dl_mamba.training.enable_lora(model, rank=1))
    1,540 of 107,216 weights train (1.44 %)
    """
    for backbone in _backbones(model):
        backbone.enable_adapters(rank, alpha, targets)
    return TrainableShare(_count(model.trainable_variables), _count(model.weights))


def merge_lora(model: keras.Model) -> None:
    """Add the adapters to their projections and start them anew; the outputs stay the same up to rounding.

    Raises:
        ValueError: the model has no adapters, or is quantized.

    Example:

    >>> import dl_mamba
    >>> model = dl_mamba.Mamba2(vocab_size=11, d_model=16, num_layers=1, headdim=8)
    >>> _ = dl_mamba.training.enable_lora(model, rank=2)
    >>> dl_mamba.training.merge_lora(model)
    """
    adapted = [layer for layer in _dense_layers(model) if layer.lora_enabled]
    if not adapted:
        raise ValueError(f"model {model.name!r} has no adapters; call enable_lora first.")
    for layer in adapted:
        if layer.quantization_mode is not None:
            raise ValueError(f"{layer.path} is quantized, its adapters cannot be added; save the model instead.")
    for layer in adapted:
        a, b = ops.convert_to_tensor(layer.lora_kernel_a), ops.convert_to_tensor(layer.lora_kernel_b)
        layer._kernel.assign_add(ops.matmul(a, b) * (layer.lora_alpha / layer.lora_rank))
        layer.lora_kernel_b.assign(ops.zeros(b.shape, dtype=b.dtype))


def _count(variables: Sequence[keras.Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _backbones(model: keras.Model) -> list[Backbone]:
    found = [layer for layer in model._flatten_layers() if isinstance(layer, Backbone)]
    if not found:
        raise ValueError(f"model {model.name!r} contains no Mamba or Mamba2 backbone.")
    return found


def _dense_layers(model: keras.Model) -> Iterator[keras.layers.Dense]:
    return (layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense))
