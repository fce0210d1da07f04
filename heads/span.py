"""Span extraction: where an answer starts and where it ends."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.heads.base import NOWHERE, TaskHead, read, real_tokens, width_of
from dl_mamba.heads.losses import TaskLoss
from dl_mamba.heads.metrics import TaskScore
from dl_mamba.heads.pooling import MaskedPooling
from dl_mamba.heads.spans import best_spans
from dl_mamba.heads.tasks import NLPTaskConfig


@keras.saving.register_keras_serializable(package="dl_mamba")
class SpanHead(TaskHead):
    """Scores of the first and the last token of a span (Devlin et al., "BERT", 2018, sections 4.2 and 4.3).

    With `unanswerable` a text may hold no span: position 0 of the output, scored from the state at the last token,
    which has read the whole text, stands for that, and token i has position i + 1.

    Args:
        config: an `NLPTaskConfig`, or its fields as a dict; `max_length` bounds the spans of `decode`.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, length, d_model), "attention_mask": (batch, length)}`, the mask
            optional; or the hidden states alone, with or without a Keras mask.

    Returns:
        Logits (batch, length, 2) in float32, start and end, -1e9 at padding; (batch, 1 + length, 2) with
        `unanswerable`. Labels are (batch, 2): positions of the first and of the last token, (0, 0) for no span.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> head = create_nlp_head(NLPTaskConfig("answer", "question_answering", max_length=3))
    >>> head.decode(head({"last_hidden_state": np.ones((2, 5, 8), "float32")})).shape
    (2, 2)
    """

    fields = ("hidden_size", "max_length", "label_smoothing", "unanswerable")

    def __init__(self, config: Any, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.logits = self._dense(2, "logits", dtype="float32")
        self.none = self._dense(2, "none", dtype="float32") if self.config.unanswerable else None
        self.pooling = MaskedPooling("last", dtype=self.dtype_policy, name="pooling")

    def build(self, input_shape: Any) -> None:
        width = width_of(input_shape)
        self.pooling.build((None, None, width))
        self._build_stack(width, self.logits, *([] if self.none is None else [self.none]))

    def call(self, inputs: Any, mask: Any = None) -> Any:
        x, mask = read(inputs, mask)
        real = real_tokens(x, mask)
        logits = ops.where(real[..., None], self.logits(ops.cast(self._features(x), "float32")), NOWHERE)
        if self.none is None:
            return logits
        none = self.none(ops.cast(self._features(self.pooling(x, mask=mask)), "float32"))[:, None]
        return ops.concatenate([ops.where(ops.any(real, axis=1)[:, None, None], none, NOWHERE), logits], axis=1)

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> keras.KerasTensor:
        x, _ = read(inputs, mask)
        length = x.shape[1] + 1 if self.config.unanswerable and x.shape[1] is not None else x.shape[1]
        return keras.KerasTensor((x.shape[0], length, 2), dtype="float32")

    @classmethod
    def make_loss(cls, config: NLPTaskConfig) -> keras.losses.Loss:
        return TaskLoss("span", config.label_smoothing, name=config.name)

    @classmethod
    def make_metrics(cls, config: NLPTaskConfig) -> list[keras.metrics.Metric]:
        return [TaskScore("exact_match_or_none" if config.unanswerable else "exact_match", name="exact_match")]

    @classmethod
    def axes(cls, config: NLPTaskConfig) -> tuple[str, str]:
        return f"(batch, {'1 + ' * config.unanswerable}length, 2)", "(batch, 2)"

    def decode(self, logits: Any) -> np.ndarray:
        """(batch, 2) positions of the first and the last token of the best span of at most `max_length` tokens."""
        spans, _ = best_spans(logits, self.config.max_length, self.config.unanswerable)
        return np.asarray(ops.convert_to_numpy(spans))
