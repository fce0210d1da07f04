"""Sequence classification and regression: pool, drop, one hidden layer if wanted, logits or values."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.heads.base import TaskHead, read, width_of
from dl_mamba.heads.losses import TaskLoss
from dl_mamba.heads.metrics import TaskScore
from dl_mamba.heads.pooling import MaskedPooling
from dl_mamba.heads.tasks import PROBLEM_TYPES, NLPTaskConfig

KINDS = {"single_label": "softmax", "multi_label": "sigmoid", "regression": "squared_error"}
SCORES = {"single_label": "accuracy", "multi_label": "binary_accuracy", "regression": "mean_absolute_error"}


class VectorHead(TaskHead):
    """Base of the heads that answer once for a whole input: one class, several labels, or values."""

    @classmethod
    def make_loss(cls, config: NLPTaskConfig) -> keras.losses.Loss:
        return TaskLoss(KINDS[config.problem_type], config.label_smoothing, name=config.name)

    @classmethod
    def make_metrics(cls, config: NLPTaskConfig) -> list[keras.metrics.Metric]:
        return [TaskScore(SCORES[config.problem_type])]

    def decode(self, logits: Any) -> np.ndarray:
        """(batch,) class numbers; 0 or 1 for each of several labels; the values themselves for regression."""
        logits = np.asarray(ops.convert_to_numpy(logits))
        if self.config.problem_type == "regression":
            return logits
        return logits.argmax(-1) if self.config.problem_type == "single_label" else (logits > 0).astype("int32")


@keras.saving.register_keras_serializable(package="dl_mamba")
class SequenceClassificationHead(VectorHead):
    """Class logits of whole sequences, or values if `problem_type="regression"`: a linear layer on the pooled row.

    Args:
        config: an `NLPTaskConfig`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, length, d_model), "attention_mask": (batch, length)}`, the mask
            optional; or the hidden states alone, with or without a Keras mask.

    Returns:
        Logits (batch, num_classes) in float32. Labels are (batch,) class numbers, (batch, num_classes) of 0 and 1 for
        several labels, (batch,) or (batch, num_classes) numbers for regression.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> head = create_nlp_head(NLPTaskConfig("mood", "sentiment_analysis", num_classes=2))
    >>> tuple(head({"last_hidden_state": np.ones((3, 5, 8), "float32")}).shape)
    (3, 2)
    """

    fields = ("num_classes", "label_names", "hidden_size", "pooling", "label_smoothing", "problem_type")
    problem_types = PROBLEM_TYPES
    defaults = MappingProxyType({"pooling": "mean", "problem_type": "single_label"})

    def __init__(self, config: Any, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.pooling = MaskedPooling(self.config.pooling, dtype=self.dtype_policy, name="pooling")
        self.logits = self._dense(self.config.num_classes, "logits", dtype="float32")

    def build(self, input_shape: Any) -> None:
        width = width_of(input_shape)
        self.pooling.build((None, None, width))
        self._build_stack(width, self.logits)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        hidden_states, mask = read(inputs, mask)
        x = self._features(self.pooling(hidden_states, mask=mask))
        return self.logits(ops.cast(x, "float32"))

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> keras.KerasTensor:
        hidden_states, _ = read(inputs, mask)
        return keras.KerasTensor((hidden_states.shape[0], self.config.num_classes), dtype="float32")

    @classmethod
    def axes(cls, config: NLPTaskConfig) -> tuple[str, str]:
        labels = "(batch,)" if config.problem_type == "single_label" else "(batch, num_classes)"
        return "(batch, num_classes)", labels
