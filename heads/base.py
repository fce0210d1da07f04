"""What all heads share: a task, features of real tokens, a loss, metrics, and how padding is marked in the output.

The output of a head says by itself what is padding: scores that belong to it are `NOWHERE`. So losses, metrics and
decoding need nothing but the output, inside a compiled program or behind `predict`, on every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import keras
from keras import ops

from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.layers.quantized import QuantizedParts

NOWHERE = -1e9  # finite in float32, so that no softmax over it is NaN


class TaskHead(QuantizedParts, keras.layers.Layer):
    """Base of all heads. A head of your own says what it uses in the class attributes and overrides the methods.

    Attributes:
        fields: fields of `NLPTaskConfig` that the head uses beside name, task_type, dropout_rate and loss_weight; any
            other is refused.
        optional: those of `fields` that may stay None though others need them.
        problem_types: the values of `problem_type` that it knows.
        defaults: values of fields that are left open.

    Args:
        config: an `NLPTaskConfig`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, length, d_model), "attention_mask": (batch, length)}`, the mask
            optional; or the hidden states alone, with or without a Keras mask.

    Example:

    >>> from dl_mamba.heads import TaskHead, create_nlp_head, NLPTaskConfig
    >>> isinstance(create_nlp_head(NLPTaskConfig("tags", "token_classification", num_classes=3)), TaskHead)
    True
    """

    fields: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    problem_types: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, config: NLPTaskConfig | Mapping[str, Any], **kwargs: Any):
        config = config if isinstance(config, NLPTaskConfig) else NLPTaskConfig(**config)
        super().__init__(autocast=False, **{"name": config.name, **kwargs})
        self.config = config
        self.supports_masking = True
        self.hidden = None
        if config.hidden_size is not None:
            self.hidden = self._dense(config.hidden_size, "hidden", activation="tanh")
        self.dropout = keras.layers.Dropout(config.dropout_rate, dtype=self.dtype_policy, name="dropout")

    @classmethod
    def check(cls, config: NLPTaskConfig) -> None:
        """Raise a ValueError where fields, each valid by itself, do not fit each other."""

    @classmethod
    def layout(cls, config: NLPTaskConfig) -> str:
        """What a model feeds: `"text"`, `"pair"` (two texts), `"segments"` (two in one) or `"choices"`."""
        return "text"

    @classmethod
    def make_loss(cls, config: NLPTaskConfig) -> keras.losses.Loss:
        """The default loss of the task."""
        raise NotImplementedError(f"{cls.__name__} has no make_loss; write it, or give `compile` a loss.")

    @classmethod
    def make_metrics(cls, config: NLPTaskConfig) -> list[keras.metrics.Metric]:
        """The default metrics of the task; none unless a head names some."""
        return []

    @classmethod
    def axes(cls, config: NLPTaskConfig) -> tuple[str, str]:
        """Shapes of output and labels, in words, for the table of tasks."""
        raise NotImplementedError(f"{cls.__name__} does not say the shapes of its output and labels; write axes.")

    def decode(self, logits: Any) -> Any:
        """The head's answer to its output, of a call or of `predict`."""
        raise NotImplementedError(f"{type(self).__name__} has no decode; write it, or use its output as it is.")

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_dict()}

    def _dense(self, units: int, name: str, dtype: Any = None, **options: Any) -> keras.layers.Dense:
        return keras.layers.Dense(units, dtype=dtype or self.dtype_policy, name=name, **options)

    def _build_stack(self, width: int, *last: keras.layers.Layer) -> None:
        """Build the hidden layer, if there is one, and layers on top of it."""
        if self.hidden is not None:
            self.hidden.build((None, width))
            width = self.config.hidden_size
        for layer in last:
            layer.build((None, width))

    def _features(self, x: Any) -> Any:
        x = self.dropout(x)
        return x if self.hidden is None else self.dropout(self.hidden(x))


def width_of(input_shape: Any) -> int:
    """Last axis of the hidden states, from the shapes of a head's inputs."""
    shape = input_shape["last_hidden_state"] if isinstance(input_shape, Mapping) else input_shape
    return shape[-1]


def read(inputs: Any, mask: Any, *needed: str) -> tuple[Any, Any]:
    """Hidden states and mask of a head's inputs, and an error if one of the other keys is missing."""
    if not isinstance(inputs, Mapping):
        inputs = {"last_hidden_state": inputs, "attention_mask": mask}
    for key in ("last_hidden_state", *needed):
        if inputs.get(key) is None:
            raise ValueError(f"inputs have the keys {sorted(inputs)}; {key!r} is needed, 'attention_mask' optional.")
    return inputs["last_hidden_state"], inputs.get("attention_mask")


def real_tokens(x: Any, mask: Any) -> Any:
    """A mask (batch, length) bool; true everywhere if there is none."""
    return ops.ones_like(x[..., 0], dtype="bool") if mask is None else ops.cast(mask, "bool")


def is_real(scores: Any) -> Any:
    """Where scores do not belong to padding."""
    return scores > NOWHERE / 2
