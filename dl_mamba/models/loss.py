"""The next-token loss: which token each position predicts, and what each prediction counts."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dl_mamba.ops.sequence import left_alignment, take_tokens


def next_tokens(labels: Any, mask: Any = None, segment_ids: Any = None) -> tuple[Any, Any]:
    """The label that follows each position, and whether it counts.

    Args:
        labels: (batch, length) int, the tokens themselves; a negative label, such as -100, is not predicted.
        mask: (batch, length), true at real tokens, or None. Padding neither predicts nor is predicted: the label of a
            token is the next real one, wherever it stands.
        segment_ids: (batch, length) int or None; the first token of a document is not predicted.

    Returns:
        targets (batch, length) int32, 0 where nothing is predicted, and counts (batch, length) bool.
    """
    real = ops.ones_like(labels, dtype="int32") if mask is None else ops.cast(mask, "int32")
    targets = following(ops.cast(labels, "int32"), mask)
    counts = ops.logical_and(following(real, mask) * real > 0, targets >= 0)
    if segment_ids is not None:
        counts = ops.logical_and(counts, ops.equal(following(segment_ids, mask), segment_ids))
    return ops.where(counts, targets, 0), counts


def following(values: Any, mask: Any = None) -> Any:
    """At each real token of (batch, length) what stands at the next real one; 0 at the last."""
    if mask is None:
        return ops.pad(values[:, 1:], [[0, 0], [0, 1]])
    order, rank = left_alignment(ops.cast(mask, "bool"))
    return take_tokens(following(take_tokens(values, order)), rank)


def token_losses(logits: Any, targets: Any) -> Any:
    """Cross entropy of each prediction in nats: (batch, length, vocab_size) and (batch, length) -> (batch, length)."""
    return ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)


def weighted_mean(values: Any, weights: Any) -> Any:
    """sum(weights values) / sum(weights); 0 where no weight is left."""
    total = ops.sum(weights)
    return ops.sum(ops.where(weights > 0, values, 0.0) * weights) / ops.where(total > 0, total, 1.0)


@keras.saving.register_keras_serializable(package="dl_mamba")
class Perplexity(keras.metrics.Mean):
    """exp of the mean loss of all predicted tokens.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.models.loss import Perplexity
    >>> metric = Perplexity()
    >>> metric.update_state(np.log([2.0, 8.0]).astype("float32"))
    >>> round(float(metric.result()), 3)
    4.0
    """

    def __init__(self, name: str = "perplexity", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def result(self) -> Any:
        return ops.exp(super().result())
