"""Metrics of the heads: the mean score of everything real and labelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from dl_mamba.heads.arcs import best_arcs, split_labels
from dl_mamba.heads.base import is_real
from dl_mamba.heads.crf import IGNORED, viterbi
from dl_mamba.heads.losses import Values, as_classes, as_numbers, next_token, softmax, spread
from dl_mamba.heads.spans import best_spans


def accuracy(labels: Any, logits: Any) -> Values:
    """Share of items whose class has the largest score."""
    labels = as_classes(labels, logits[..., 0])
    right = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels)
    return right, ops.logical_and(labels >= 0, ops.any(is_real(logits), axis=-1))


def binary_accuracy(labels: Any, logits: Any) -> Values:
    """Share of classes, of several to an item, that are rightly there or not."""
    labels = ops.cast(labels, "float32")
    counts = ops.logical_and(ops.all(labels >= 0, axis=-1), is_real(logits[..., 0]))
    right = ops.cast(ops.equal(logits > 0, labels > 0.5), "float32")
    return ops.mean(right, axis=-1), counts


def mean_absolute_error(labels: Any, values: Any) -> Values:
    """Mean distance of numbers."""
    labels, known = as_numbers(labels, values)
    return ops.mean(ops.abs(ops.where(known, values - labels, 0.0)), axis=-1), ops.all(known, axis=-1)


def viterbi_accuracy(labels: Any, potentials: Any) -> Values:
    """Share of tokens with the right label on the best path."""
    labels, path = ops.cast(labels, "int32"), viterbi(potentials)
    return ops.equal(path, labels), ops.logical_and(labels >= 0, path >= 0)


def exact_match(labels: Any, logits: Any, unanswerable: bool = False) -> Values:
    """Share of rows whose best span has the right first and last position."""
    labels, (spans, _) = ops.cast(labels, "int32"), best_spans(logits, unanswerable=unanswerable)
    known = ops.logical_and(ops.all(labels >= 0, axis=1), ops.all(spans >= 0, axis=1))
    return ops.all(ops.equal(spans, labels), axis=1), known


def exact_match_or_none(labels: Any, logits: Any) -> Values:
    """`exact_match` where position 0 stands for no span."""
    return exact_match(labels, logits, unanswerable=True)


def attachment_score(labels: Any, logits: Any) -> Values:
    """Share of tokens with the right head (UAS)."""
    heads, _ = split_labels(labels)
    found = best_arcs(logits)[..., 0]
    return ops.equal(found, heads), ops.logical_and(heads >= 0, found >= 0)


def labeled_attachment_score(labels: Any, logits: Any) -> Values:
    """Share of tokens with the right head and the right relation (LAS)."""
    heads, relations = split_labels(labels)
    found = best_arcs(logits)
    right = ops.logical_and(ops.equal(found[..., 0], heads), ops.equal(found[..., 1], relations))
    return right, ops.logical_and(relations >= 0, found[..., 0] >= 0)


def reciprocal_rank(labels: Any, logits: Any) -> Values:
    """1 / rank of the most relevant candidate."""
    labels = ops.cast(labels, "float32")
    known = ops.logical_and(is_real(logits), ops.equal(labels, labels))
    best = ops.argmax(ops.where(known, labels, -1e9), axis=-1)[:, None]
    score = ops.take_along_axis(logits, best, axis=1)
    above = ops.sum(ops.cast(ops.logical_and(known, logits > score), "float32"), axis=-1)
    return 1.0 / (1.0 + above), ops.any(known, axis=-1)


def cross_entropy(labels: Any, logits: Any) -> Values:
    """Nats of a class."""
    return softmax(labels, logits, 0.0)


def next_token_entropy(labels: Any, logits: Any) -> Values:
    """Nats of the following token."""
    return next_token(labels, logits, 0.0)


SCORES: dict[str, Callable[[Any, Any], Values]] = {
    "accuracy": accuracy,
    "binary_accuracy": binary_accuracy,
    "mean_absolute_error": mean_absolute_error,
    "viterbi_accuracy": viterbi_accuracy,
    "exact_match": exact_match,
    "exact_match_or_none": exact_match_or_none,
    "uas": attachment_score,
    "las": labeled_attachment_score,
    "mean_reciprocal_rank": reciprocal_rank,
    "perplexity": cross_entropy,
    "next_token_perplexity": next_token_entropy,
}


@keras.saving.register_keras_serializable(package="dl_mamba")
class TaskScore(keras.metrics.Mean):
    """The weighted mean of a score over everything real and labelled; exp of it for perplexities.

    Args:
        kind: a key of `dl_mamba.heads.metrics.SCORES`; also the name if none is given.
        name, dtype: of a Keras metric.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.metrics import TaskScore
    >>> score = TaskScore("accuracy")
    >>> score.update_state(np.array([1, 0, -100]), np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], "float32"))
    >>> float(score.result())
    0.5
    """

    def __init__(self, kind: str, name: str | None = None, dtype: Any = None) -> None:
        if kind not in SCORES:
            raise ValueError(f"kind={kind!r} is unknown; choose one of {list(SCORES)}.")
        super().__init__(name=name or kind, dtype=dtype)
        self.kind = kind

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.cast(y_pred, "float32")
        if sample_weight is not None:
            sample_weight = ops.cast(sample_weight, "float32")
            if self.kind == "viterbi_accuracy" and len(sample_weight.shape) == 2:
                y_true = ops.where(sample_weight > 0, ops.cast(y_true, "int32"), IGNORED)
        values, weights = SCORES[self.kind](y_true, y_pred)
        values, weights = ops.cast(values, "float32"), ops.cast(weights, "float32")
        if sample_weight is not None:
            weights = weights * spread(sample_weight, weights)
        super().update_state(ops.where(weights > 0, values, 0.0), weights)

    def result(self) -> Any:
        mean = super().result()
        return ops.exp(mean) if self.kind.endswith("perplexity") else mean

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind}
