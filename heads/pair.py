"""Sentence pairs: two texts become two vectors, which are compared."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import keras
from keras import ops

from dl_mamba.heads.base import read, real_tokens, width_of
from dl_mamba.heads.pooling import MaskedPooling
from dl_mamba.heads.sequence import VectorHead
from dl_mamba.heads.tasks import NLPTaskConfig

KEYS = {
    "bi": ("pair_last_hidden_state",),
    "joint": ("token_type_ids",),
}
SCALE = {"cosine": 5.0, "dot": 1.0}  # a cosine is at most 1, which alone would keep probabilities near 1/2


@keras.saving.register_keras_serializable(package="dl_mamba")
class PairHead(VectorHead):
    """Compares two texts: by their cosine, their dot product, or a learned layer.

    The learned layer reads [u; v; |u - v|; u * v] of the pooled texts u and v (Conneau et al. 2017). The dot product is
    divided by sqrt(width). With classes, of which there must then be two, cosine and dot are one logit, scaled and
    shifted by two learned numbers, against 0; with regression they are the output itself (Reimers and Gurevych 2019).

    Args:
        config: an `NLPTaskConfig`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state", "attention_mask"}` and, for `encoding="bi"`, the same of the other text,
            `"pair_last_hidden_state"` (batch, other length, d_model) and `"pair_attention_mask"`; for
            `encoding="joint"` `"token_type_ids"` (batch, length), 0 at the first text and 1 at the second.

    Returns:
        Logits (batch, num_classes) in float32, values for regression; labels are those of
        `SequenceClassificationHead`.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> head = create_nlp_head(NLPTaskConfig("same", "text_similarity"))
    >>> x = np.ones((2, 5, 8), "float32")
    >>> [round(float(v), 3) for v in head({"last_hidden_state": x, "pair_last_hidden_state": 2 * x})[:, 0]]
    [1.0, 1.0]
    """

    fields = (
        *("num_classes", "label_names", "hidden_size", "pooling", "label_smoothing"),
        *("problem_type", "similarity", "encoding"),
    )
    problem_types = ("single_label", "regression")
    defaults = MappingProxyType(
        {"pooling": "mean", "problem_type": "single_label", "similarity": "learned", "encoding": "bi"}
    )

    def __init__(self, config: Any, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.pooling = MaskedPooling(self.config.pooling, dtype=self.dtype_policy, name="pooling")
        self.logits = None
        if self.config.similarity == "learned":
            self.logits = self._dense(self.config.num_classes, "logits", dtype="float32")

    @classmethod
    def check(cls, config: NLPTaskConfig) -> None:
        wanted = 1 if config.problem_type == "regression" else 2
        if config.similarity != "learned" and config.num_classes != wanted:
            raise ValueError(
                f"num_classes={config.num_classes} does not fit similarity={config.similarity!r}, which gives one "
                f"number: {wanted} is needed for {config.problem_type}; or choose similarity='learned'."
            )

    @classmethod
    def layout(cls, config: NLPTaskConfig) -> str:
        return "pair" if config.encoding == "bi" else "segments"

    def build(self, input_shape: Any) -> None:
        width = width_of(input_shape)
        self.pooling.build((None, None, width))
        self._build_stack(width)
        width = self.config.hidden_size or width
        if self.logits is not None:
            self.logits.build((None, 4 * width))
        elif self.config.problem_type == "single_label":
            for name, value in (("scale", SCALE[self.config.similarity]), ("shift", 0.0)):
                initializer = keras.initializers.Constant(value)
                weight = self.add_weight(name=name, shape=(), initializer=initializer, dtype="float32", autocast=False)
                setattr(self, name, weight)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        u, v = (ops.cast(self._features(x), "float32") for x in self._pooled(inputs, mask))
        if self.logits is not None:
            return self.logits(ops.concatenate([u, v, ops.abs(u - v), u * v], axis=-1))
        if self.config.similarity == "cosine":
            u, v = (x * ops.rsqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + 1e-12) for x in (u, v))
            score = ops.sum(u * v, axis=-1, keepdims=True)
        else:
            score = ops.sum(u * v, axis=-1, keepdims=True) / math.sqrt(u.shape[-1])
        if self.config.problem_type == "regression":
            return score
        return ops.concatenate([ops.zeros_like(score), score * self.scale + self.shift], axis=-1)

    def _pooled(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        """The two texts as vectors (batch, d_model)."""
        x, mask = read(inputs, mask, *KEYS[self.config.encoding])
        if self.config.encoding == "bi":
            other, other_mask = inputs["pair_last_hidden_state"], inputs.get("pair_attention_mask")
            return self.pooling(x, mask=mask), self.pooling(other, mask=other_mask)
        real = real_tokens(x, mask)
        second = ops.equal(ops.cast(inputs["token_type_ids"], "int32"), 1)
        first = ops.logical_not(second)
        return tuple(self.pooling(x, mask=ops.logical_and(real, text)) for text in (first, second))

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> keras.KerasTensor:
        x, _ = read(inputs, mask, *KEYS[self.config.encoding])
        return keras.KerasTensor((x.shape[0], self.config.num_classes), dtype="float32")

    @classmethod
    def axes(cls, config: NLPTaskConfig) -> tuple[str, str]:
        return "(batch, num_classes)", "(batch,)"
