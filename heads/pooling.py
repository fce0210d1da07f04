"""From one vector a token to one vector a row, over real tokens only."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

POOLINGS = ("mean", "last", "max", "attention")


@keras.saving.register_keras_serializable(package="dl_mamba")
class MaskedPooling(keras.layers.Layer):
    """Pool the real tokens of each row, in float32. A row of padding alone gives zeros.

    Args:
        pooling: `"mean"`; `"last"`, the last real token; `"max"`; or `"attention"`, the mean weighed by a softmax over
            scores that a learned vector gives (Yang et al., "Hierarchical Attention Networks", 2016, eq. 5-7).
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Call arguments:
        x: (batch, length, d_model) float.
        mask: (batch, length), true at real tokens; Keras' own mask of `x`, or every token, if None.

    Returns:
        (batch, d_model) float32.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import MaskedPooling
    >>> x = np.array([[[1.0], [3.0], [99.0]]], "float32")
    >>> float(MaskedPooling("mean")(x, mask=np.array([[1, 1, 0]]))[0, 0])
    2.0
    """

    def __init__(self, pooling: str = "mean", **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} is unknown; choose one of {list(POOLINGS)}.")
        self.pooling = pooling
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if self.pooling == "attention":
            self.score = self.add_weight(name="score", shape=(input_shape[-1],), initializer="zeros", autocast=False)

    def call(self, x: Any, mask: Any = None) -> Any:
        x = ops.cast(x, "float32")
        mask = ops.ones(ops.shape(x)[:2], dtype="bool") if mask is None else ops.cast(mask, "bool")
        if self.pooling == "last":
            return _weighed(x, _one_hot_of_last(mask))
        if self.pooling == "max":
            lowest = ops.max(ops.where(mask[..., None], x, -3e38), axis=1)
            return ops.where(ops.any(mask, axis=1)[:, None], lowest, 0.0)
        scores = ops.einsum("bld,d->bl", x, ops.cast(self.score, "float32")) if self.pooling == "attention" else 0.0
        scores = scores + ops.where(mask, 0.0, -1e30)
        weights = ops.exp(scores - ops.max(scores, axis=1, keepdims=True)) * ops.cast(mask, "float32")
        return _weighed(x, weights / ops.maximum(ops.sum(weights, axis=1, keepdims=True), 1e-30))

    def compute_output_spec(self, x: Any, mask: Any = None) -> keras.KerasTensor:
        return keras.KerasTensor((x.shape[0], x.shape[-1]), dtype="float32")

    def compute_mask(self, x: Any, previous_mask: Any = None) -> None:
        return None

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "pooling": self.pooling}


def _weighed(x: Any, weights: Any) -> Any:
    return ops.einsum("bl,bld->bd", weights, x)


def _one_hot_of_last(mask: Any) -> Any:
    """1 at the last real token of each row: real, with none behind it."""
    count = ops.cumsum(ops.cast(mask, "int32"), axis=1)
    return ops.cast(ops.logical_and(mask, ops.equal(count, count[:, -1:])), "float32")
