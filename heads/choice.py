"""Multiple choice and ranking: one score for each of several texts of a row."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.heads.base import NOWHERE, TaskHead, read, real_tokens, width_of
from dl_mamba.heads.losses import TaskLoss
from dl_mamba.heads.metrics import TaskScore
from dl_mamba.heads.pooling import MaskedPooling
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.ops.sequence import size_of


@keras.saving.register_keras_serializable(package="dl_mamba")
class MultipleChoiceHead(TaskHead):
    """A score for each choice of a row; a choice without real tokens is none.

    `problem_type="single_label"` takes the number of the right choice as label (Radford et al. 2018, section 3.3);
    `"regression"` takes a relevance for each choice and ranks them by ListNet (Cao et al. 2007).

    Args:
        config: an `NLPTaskConfig`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, choices, length, d_model), "attention_mask": (batch, choices, length)}`,
            the mask optional.

    Returns:
        Scores (batch, choices) in float32, -1e9 for choices without tokens. Labels are (batch,) numbers of choices, or
        (batch, choices) relevances, NaN where unknown.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> head = create_nlp_head(NLPTaskConfig("story", "multiple_choice"))
    >>> tuple(head({"last_hidden_state": np.ones((2, 4, 5, 8), "float32")}).shape)
    (2, 4)
    """

    fields = ("hidden_size", "pooling", "label_smoothing", "problem_type")
    problem_types = ("single_label", "regression")
    defaults = MappingProxyType({"pooling": "mean", "problem_type": "single_label"})

    def __init__(self, config: Any, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.pooling = MaskedPooling(self.config.pooling, dtype=self.dtype_policy, name="pooling")
        self.logits = self._dense(1, "logits", dtype="float32")

    @classmethod
    def layout(cls, config: NLPTaskConfig) -> str:
        return "choices"

    def build(self, input_shape: Any) -> None:
        width = width_of(input_shape)
        self.pooling.build((None, None, width))
        self._build_stack(width, self.logits)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        x, mask = read(inputs, mask)
        real = real_tokens(x, mask)
        batch, choices, length = (size_of(x, axis) for axis in range(3))
        flat = ops.reshape(x, (batch * choices, length, x.shape[-1]))
        pooled = self.pooling(flat, mask=ops.reshape(real, (batch * choices, length)))
        scores = self.logits(ops.cast(self._features(pooled), "float32"))
        return ops.where(ops.any(real, axis=-1), ops.reshape(scores, (batch, choices)), NOWHERE)

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> keras.KerasTensor:
        x, _ = read(inputs, mask)
        return keras.KerasTensor(x.shape[:2], dtype="float32")

    @classmethod
    def make_loss(cls, config: NLPTaskConfig) -> keras.losses.Loss:
        kind = "listwise" if config.problem_type == "regression" else "softmax"
        return TaskLoss(kind, config.label_smoothing, name=config.name)

    @classmethod
    def make_metrics(cls, config: NLPTaskConfig) -> list[keras.metrics.Metric]:
        ranks = config.problem_type == "regression"
        return [TaskScore("mean_reciprocal_rank" if ranks else "accuracy")]

    @classmethod
    def axes(cls, config: NLPTaskConfig) -> tuple[str, str]:
        return "(batch, choices)", "(batch, choices)" if config.problem_type == "regression" else "(batch,)"

    def decode(self, logits: Any) -> np.ndarray:
        """(batch,) number of the best choice; for ranking (batch, choices) choices, best first."""
        logits = np.asarray(ops.convert_to_numpy(logits))
        if self.config.problem_type == "regression":
            return np.argsort(-logits, axis=-1, kind="stable")
        return logits.argmax(-1)
