"""How `fit` and `evaluate` of a language model come to their loss: labels go in with the ids, losses come out.

The model is told the labels, so that its output need not hold logits: loss and perplexity are made of the same losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from dl_mamba.models.graphed_step import GraphedStep, replaces
from dl_mamba.models.inputs import KEYS, read_inputs
from dl_mamba.models.loss import following, next_tokens, token_losses, weighted_mean
from dl_mamba.ops import checks


class NextTokenTraining:
    """The part of a `keras.Model` with the metric `perplexity` that trains and tests it on the next token."""

    def make_train_function(self, force: bool = False) -> Any:
        """On torch with an NVIDIA GPU, `compile(jit_compile=True)` makes the step a CUDA graph, not `torch.compile`."""
        if not replaces(self):
            return super().make_train_function(force)
        if self.train_function is None or force:
            self.train_function = GraphedStep(self, self._check_batch)
        return self.train_function

    def _check_batch(self, data: Any) -> None:
        """Refuse a batch before it is in a graph, where no value can be looked at."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        inputs = {name: value for name, value in _named(x).items() if name in KEYS}
        read_inputs(inputs, self.config.embedding_rows)

    def train_step(self, *args: Any) -> Any:
        *state, data = args  # only JAX has a state
        return super().train_step(*state, _with_labels(data))

    def test_step(self, *args: Any) -> Any:
        *state, data = args
        return super().test_step(*state, _with_labels(data))

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        if self._compile_loss is not None:
            raise ValueError(
                f"{type(self).__name__} was compiled with a loss, but has its own, that of the next token; leave "
                "`loss` out of `compile`, or put your loss on `model(ids)['logits']` of a functional model."
            )
        loss = weighted_mean(*_losses_and_weights(x, y, y_pred, sample_weight))
        for extra in self.losses:
            loss = loss + ops.cast(extra, loss.dtype)
        return loss

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        self.perplexity.update_state(*_losses_and_weights(x, y, y_pred, sample_weight))
        return self.get_metrics_result()


def without_labels(inputs: Any) -> tuple[Any, Any]:
    """The inputs of the backbone, and the token that each position predicts if there are labels."""
    if not isinstance(inputs, Mapping) or inputs.get("labels") is None:
        return inputs, None
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    checks.expect_shape("labels", labels, **dict(zip(("batch", "length"), inputs["input_ids"].shape, strict=True)))
    if isinstance(labels, keras.KerasTensor):
        return inputs, labels
    return inputs, next_tokens(labels, inputs.get("attention_mask"), inputs.get("segment_ids"))[0]


def _with_labels(data: Any) -> tuple[Any, None, Any]:
    """A batch of `fit`, (x, y, sample_weight), with the labels among the inputs of the model.

    Raises:
        ValueError: there are two sets of labels.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    inputs = _named(x)
    if y is not None and "labels" in inputs:
        raise ValueError("y was given, and `labels` among the inputs; leave one of them out.")
    return {**inputs, "labels": _labels(inputs, y)}, None, sample_weight


def _losses_and_weights(x: Any, y: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any]:
    """Loss and weight of each position; the arguments are those of Keras' `compute_loss`."""
    inputs = _named(x)
    mask = inputs.get("attention_mask")
    targets, counts = next_tokens(_labels(inputs, y), mask, inputs.get("segment_ids"))
    weights = ops.cast(counts, "float32")
    if sample_weight is not None:
        sample_weight = ops.cast(sample_weight, "float32")
        if len(sample_weight.shape) == 1:
            sample_weight = ops.broadcast_to(sample_weight[:, None], ops.shape(counts))
        # a weight belongs to the token that is predicted
        weights = weights * following(sample_weight, mask)
    losses = y_pred["losses"] if "losses" in y_pred else token_losses(y_pred["logits"], targets)
    return losses, weights


def _named(x: Any) -> Mapping[str, Any]:
    return x if isinstance(x, Mapping) else {"input_ids": x}


def _labels(inputs: Mapping[str, Any], y: Any) -> Any:
    if y is not None:
        return y
    labels = inputs.get("labels")
    return inputs["input_ids"] if labels is None else labels
