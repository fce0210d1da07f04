"""Losses of the heads: the weighted mean over what is real and labelled; 0 where nothing is.

What has no label does not count: class numbers below 0, such as -100, and NaN in place of a number. So a batch may hold
rows, or whole tasks, without labels. A `sample_weight` of 0 does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from dl_mamba.heads.arcs import arc_losses
from dl_mamba.heads.base import is_real
from dl_mamba.heads.crf import negative_log_likelihood, real_in_chain
from dl_mamba.heads.labels import check_range
from dl_mamba.models.loss import next_tokens, token_losses, weighted_mean

IGNORED = -100
Values = tuple[Any, Any]


def smoothed_cross_entropy(logits: Any, labels: Any, label_smoothing: float = 0.0) -> Any:
    """Cross entropy (nats) of classes; the smoothing spreads over the classes whose score is not `NOWHERE`.

    Args:
        logits: (..., C) float32.
        labels: (...) int; a number below 0 is read as 0, one of C or more gives NaN.
        label_smoothing: the share that is spread.

    Returns:
        (...) float32.
    """
    size = ops.cast(ops.shape(logits)[-1], "int32")
    losses = token_losses(logits, ops.clip(labels, 0, size - 1))
    if label_smoothing:
        possible = ops.cast(is_real(logits), "float32")
        others = ops.sum(possible * ops.log_softmax(logits), axis=-1) / ops.maximum(ops.sum(possible, axis=-1), 1.0)
        losses = (1.0 - label_smoothing) * losses - label_smoothing * others
    return ops.where(labels < size, losses, float("nan"))


def softmax(labels: Any, logits: Any, label_smoothing: float) -> Values:
    """One class an item: (...) labels, (..., C) logits."""
    labels = as_classes(labels, logits[..., 0])
    real = ops.any(is_real(logits), axis=-1)
    return smoothed_cross_entropy(logits, labels, label_smoothing), ops.logical_and(labels >= 0, real)


def sigmoid(labels: Any, logits: Any, label_smoothing: float) -> Values:
    """Any number of classes an item: (..., C) labels of 0 and 1, (..., C) logits; the mean over the classes."""
    labels = ops.cast(labels, "float32")
    counts = ops.logical_and(ops.all(labels >= 0, axis=-1), is_real(logits[..., 0]))
    labels = ops.where(counts[..., None], labels, 0.0)
    logits = ops.where(is_real(logits), logits, 0.0)
    labels = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
    losses = ops.maximum(logits, 0.0) - logits * labels + ops.log1p(ops.exp(-ops.abs(logits)))
    return ops.mean(losses, axis=-1), counts


def squared_error(labels: Any, values: Any, _: float) -> Values:
    """Numbers: (batch,) or (batch, n) labels, NaN where there is none, (batch, n) values; the mean over n."""
    labels, known = as_numbers(labels, values)
    return ops.mean(ops.square(ops.where(known, values - labels, 0.0)), axis=-1), ops.all(known, axis=-1)


def crf(labels: Any, potentials: Any, _: float) -> Values:
    """Tags of a chain: (batch, length) labels; the loss of a row for each of its labelled tokens."""
    labels = ops.cast(labels, "int32")
    known = ops.logical_and(labels >= 0, real_in_chain(potentials))
    count = ops.sum(ops.cast(known, "float32"), axis=1)
    losses = negative_log_likelihood(potentials, labels) / ops.maximum(count, 1.0)
    wrong = ops.any(ops.logical_and(known, labels >= potentials.shape[-1]), axis=1)
    return ops.where(wrong, float("nan"), losses), count


def span(labels: Any, logits: Any, label_smoothing: float) -> Values:
    """First and last position: (batch, 2) labels, (batch, length, 2) logits; the mean of two cross entropies."""
    labels, logits = ops.cast(labels, "int32"), ops.swapaxes(logits, 1, 2)
    losses = smoothed_cross_entropy(logits, labels, label_smoothing)
    known = ops.logical_and(ops.all(labels >= 0, axis=1), ops.any(is_real(logits[:, 0]), axis=1))
    return ops.mean(losses, axis=1), known


def next_token(labels: Any, logits: Any, label_smoothing: float) -> Values:
    """The following real token: (batch, length) labels, the ids themselves and not shifted."""
    targets, counts = next_tokens(labels, is_real(logits[..., 0]))
    return smoothed_cross_entropy(logits, targets, label_smoothing), counts


def arc(labels: Any, logits: Any, label_smoothing: float) -> Values:
    """Head and relation of each token; see `dl_mamba.heads.arcs`."""
    return arc_losses(labels, logits, lambda scores, wanted: smoothed_cross_entropy(scores, wanted, label_smoothing))


def listwise(labels: Any, logits: Any, _: float) -> Values:
    """Cross entropy of two softmaxes over the candidates, of relevance and of scores (ListNet, Cao et al. 2007)."""
    labels = ops.cast(labels, "float32")
    known = ops.logical_and(is_real(logits), ops.equal(labels, labels))
    wanted = ops.softmax(ops.where(known, labels, -1e9))
    losses = -ops.sum(wanted * ops.log_softmax(ops.where(known, logits, -1e9)), axis=-1)
    return losses, ops.any(known, axis=-1)


LOSSES: dict[str, Callable[[Any, Any, float], Values]] = {
    loss.__name__: loss for loss in (softmax, sigmoid, squared_error, crf, span, next_token, arc, listwise)
}


def as_classes(labels: Any, like: Any) -> Any:
    """Class numbers int32 in the shape of `like`, which they may exceed by a last axis of 1."""
    labels = ops.cast(labels, "int32")
    return labels[..., 0] if len(labels.shape) == len(like.shape) + 1 else labels


def as_numbers(labels: Any, values: Any) -> Values:
    """Labels float32 in the shape of the values, and where they are known."""
    labels = ops.cast(labels, "float32")
    labels = labels[..., None] if len(labels.shape) == len(values.shape) - 1 else labels
    known = ops.equal(labels, labels)
    return ops.where(known, labels, 0.0), known


@keras.saving.register_keras_serializable(package="dl_mamba")
class TaskLoss(keras.losses.Loss):
    """sum(weight * loss) / sum(weight) over everything real and labelled; 0 where there is nothing.

    Args:
        kind: a key of `dl_mamba.heads.losses.LOSSES`.
        label_smoothing: share of the probability that is spread over all classes.
        name: name of the task, for messages.

    Call arguments:
        y_true: labels as the head of the task takes them.
        y_pred: the output of the head.
        sample_weight: one weight a row, or one an item; for a CRF also one a token, 0 for tokens without a label.

    Raises:
        ValueError: a label is out of range, where values can be seen; inside a compiled program the loss is NaN.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.losses import TaskLoss
    >>> loss = TaskLoss("softmax")
    >>> round(float(loss(np.array([1, -100]), np.array([[0.0, 0.0], [9.0, 0.0]], "float32"))), 3)
    0.693
    """

    def __init__(
        self,
        kind: str,
        label_smoothing: float = 0.0,
        name: str | None = None,
        reduction: str = "mean_with_sample_weight",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if kind not in LOSSES:
            raise ValueError(f"kind={kind!r} is unknown; choose one of {list(LOSSES)}.")
        if reduction != "mean_with_sample_weight":
            raise ValueError(f"reduction={reduction!r}; only 'mean_with_sample_weight' is defined.")
        self.kind = kind
        self.label_smoothing = label_smoothing

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        y_pred = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        y_true = ops.convert_to_tensor(y_true)
        check_range(self.name, self.kind, y_true, y_pred)
        if sample_weight is None:
            values, weights = self.call(y_true, y_pred)
            return weighted_mean(values, ops.cast(weights, self.dtype))
        sample_weight = ops.cast(sample_weight, self.dtype)
        if self.kind == "crf" and len(sample_weight.shape) == 2:
            y_true = ops.where(sample_weight > 0, ops.cast(y_true, "int32"), IGNORED)
            sample_weight = ops.ones_like(sample_weight[:, 0])
        values, weights = self.call(y_true, y_pred)
        return weighted_mean(values, ops.cast(weights, self.dtype) * spread(sample_weight, weights))

    def call(self, y_true: Any, y_pred: Any) -> Values:
        return LOSSES[self.kind](y_true, y_pred, self.label_smoothing)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kind": self.kind, "label_smoothing": self.label_smoothing}


def spread(weight: Any, like: Any) -> Any:
    """Sample weights with as many axes as what they weigh."""
    while len(weight.shape) < len(like.shape):
        weight = weight[..., None]
    while len(weight.shape) > len(like.shape):
        weight = weight[..., 0]
    return weight
