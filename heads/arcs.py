"""Arcs between tokens: the loss, the scores and the choice of a head and a relation for each token.

Logits are (batch, length, 1 + length, 1 + R): for each token (axis 1) and each head (axis 2: 0 is the root, j + 1 the
token at position j) the score of the arc, then the scores of R relations along it. Labels are (batch, length, 2), head
and relation, or (batch, length), the head alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops

from dl_mamba.heads.base import is_real


def split_labels(labels: Any) -> tuple[Any, Any]:
    """Heads and relations (batch, length) int32; the relation is -100 where the labels have none."""
    labels = ops.cast(labels, "int32")
    if len(labels.shape) == 2:
        return labels, ops.full_like(labels, -100)
    heads = labels[..., 0]
    return heads, labels[..., 1] if labels.shape[-1] == 2 else ops.full_like(heads, -100)


def relations_at(logits: Any, heads: Any) -> Any:
    """Scores (batch, length, R) of the relations along the arcs to `heads` (batch, length)."""
    places = ops.cumsum(ops.ones_like(heads[:, :1, None] + ops.zeros_like(logits[:1, :1, :, 0], dtype="int32")), axis=2)
    chosen = ops.cast(ops.equal(heads[..., None], places - 1), "float32")
    return ops.einsum("blh,blhr->blr", chosen, logits[..., 1:])


def arc_losses(labels: Any, logits: Any, cross_entropy: Callable[[Any, Any], Any]) -> tuple[Any, Any]:
    """Cross entropy of the head plus that of the relation along the right arc, and where there is a label."""
    heads, relations = split_labels(labels)
    real = ops.any(is_real(logits[..., 0]), axis=-1)
    losses = cross_entropy(logits[..., 0], heads)
    if logits.shape[-1] > 1:
        along = cross_entropy(relations_at(logits, ops.maximum(heads, 0)), relations)
        losses = losses + ops.where(relations >= 0, along, 0.0)
    return losses, ops.logical_and(heads >= 0, real)


def best_arcs(logits: Any) -> Any:
    """The best head of each token and the best relation along that arc: (batch, length, 2) int32, -100 at padding.

    Each token chooses for itself: the arcs need not form a tree.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.arcs import best_arcs
    >>> logits = np.zeros((1, 1, 2, 3), "float32")
    >>> logits[0, 0, 0] = [4.0, 0.0, 1.0]
    >>> np.asarray(best_arcs(logits)).tolist()
    [[[0, 1]]]
    """
    logits = ops.convert_to_tensor(logits)
    heads = ops.cast(ops.argmax(logits[..., 0], axis=-1), "int32")
    relations = ops.full_like(heads, -100)
    if logits.shape[-1] > 1:
        relations = ops.cast(ops.argmax(relations_at(logits, heads), axis=-1), "int32")
    real = ops.any(is_real(logits[..., 0]), axis=-1)
    return ops.where(real[..., None], ops.stack([heads, relations], axis=-1), -100)
