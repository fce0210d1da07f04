"""Token classification: a softmax at each token, or a linear-chain CRF over all of them."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.heads.base import NOWHERE, TaskHead, read, real_tokens, width_of
from dl_mamba.heads.crf import IGNORED, log_potentials, viterbi
from dl_mamba.heads.losses import TaskLoss
from dl_mamba.heads.metrics import TaskScore
from dl_mamba.heads.tasks import NLPTaskConfig


@keras.saving.register_keras_serializable(package="dl_mamba")
class TokenClassificationHead(TaskHead):
    """A label for each token.

    With `use_crf` the labels of a row are scored together (Lample et al., "Neural Architectures for Named Entity
    Recognition", 2016): the output is then the chain of log potentials that `dl_mamba.heads.crf` describes, the loss is
    that of the forward algorithm, and `decode` is Viterbi's.

    Args:
        config: an `NLPTaskConfig`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, length, d_model), "attention_mask": (batch, length)}`, the mask
            optional; or the hidden states alone, with or without a Keras mask.

    Returns:
        float32 logits (batch, length, num_classes), -1e9 at padding; with `use_crf` log potentials
        (batch, length, num_classes, num_classes). Labels are (batch, length) class numbers, -100 where there is none.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> head = create_nlp_head(NLPTaskConfig("tags", "named_entity_recognition", num_classes=3, use_crf=True))
    >>> chain = head({"last_hidden_state": np.ones((2, 5, 8), "float32"), "attention_mask": np.ones((2, 5), "int32")})
    >>> tuple(chain.shape), head.decode(chain).shape
    ((2, 5, 3, 3), (2, 5))
    """

    fields = ("num_classes", "label_names", "hidden_size", "label_smoothing", "use_crf", "problem_type")
    problem_types = ("single_label",)
    defaults = MappingProxyType({"problem_type": "single_label"})

    def __init__(self, config: Any, **kwargs: Any):
        super().__init__(config, **kwargs)
        self.logits = self._dense(self.config.num_classes, "logits", dtype="float32")

    @classmethod
    def check(cls, config: NLPTaskConfig) -> None:
        if config.use_crf and config.label_smoothing:
            raise ValueError(f"label_smoothing={config.label_smoothing} is not defined for a CRF; leave it out.")

    def build(self, input_shape: Any) -> None:
        self._build_stack(width_of(input_shape), self.logits)
        if self.config.use_crf:
            size = self.config.num_classes
            for name, shape in (("transitions", (size, size)), ("start", (size,)), ("end", (size,))):
                weight = self.add_weight(name=name, shape=shape, initializer="zeros", dtype="float32", autocast=False)
                setattr(self, name, weight)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        x, mask = read(inputs, mask)
        real = real_tokens(x, mask)
        logits = self.logits(ops.cast(self._features(x), "float32"))
        if self.config.use_crf:
            return log_potentials(logits, self.transitions, self.start, self.end, real)
        return ops.where(real[..., None], logits, NOWHERE)

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> keras.KerasTensor:
        x, _ = read(inputs, mask)
        scores = (self.config.num_classes,) * (2 if self.config.use_crf else 1)
        return keras.KerasTensor((*x.shape[:2], *scores), dtype="float32")

    @classmethod
    def make_loss(cls, config: NLPTaskConfig) -> keras.losses.Loss:
        return TaskLoss("crf" if config.use_crf else "softmax", config.label_smoothing, name=config.name)

    @classmethod
    def make_metrics(cls, config: NLPTaskConfig) -> list[keras.metrics.Metric]:
        return [TaskScore("viterbi_accuracy" if config.use_crf else "accuracy")]

    @classmethod
    def axes(cls, config: NLPTaskConfig) -> tuple[str, str]:
        crf = "(batch, length, num_classes, num_classes)"
        return crf if config.use_crf else "(batch, length, num_classes)", "(batch, length)"

    def decode(self, logits: Any) -> np.ndarray:
        """(batch, length) class numbers, -100 at padding."""
        if self.config.use_crf:
            return np.asarray(ops.convert_to_numpy(viterbi(logits)))
        logits = np.asarray(ops.convert_to_numpy(logits))
        return np.where(logits[..., 0] > NOWHERE / 2, logits.argmax(-1), IGNORED)
