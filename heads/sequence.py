"""Sequence classification: pool, drop, one hidden layer if wanted, logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from dl_mamba.heads.pooling import MaskedPooling
from dl_mamba.heads.tasks import NLPTaskConfig


@keras.saving.register_keras_serializable(package="dl_mamba")
class SequenceClassificationHead(keras.layers.Layer):
    """Class logits of whole sequences.

    Args:
        config: an `NLPTaskConfig`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, length, d_model), "attention_mask": (batch, length)}`, the mask
            optional; or the hidden states alone, with or without a Keras mask.

    Returns:
        Logits (batch, num_classes) in float32.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> head = create_nlp_head(NLPTaskConfig("mood", "sentiment_analysis", num_classes=2))
    >>> tuple(head({"last_hidden_state": np.ones((3, 5, 8), "float32")}).shape)
    (3, 2)
    """

    def __init__(self, config: NLPTaskConfig | Mapping[str, Any], **kwargs: Any):
        config = config if isinstance(config, NLPTaskConfig) else NLPTaskConfig(**config)
        super().__init__(autocast=False, **{"name": config.name, **kwargs})
        self.config = config
        self.supports_masking = True
        self.pooling = MaskedPooling(config.pooling, dtype=self.dtype_policy, name="pooling")
        self.hidden = None
        if config.hidden_size is not None:
            self.hidden = keras.layers.Dense(config.hidden_size, "tanh", dtype=self.dtype_policy, name="hidden")
        self.dropout = keras.layers.Dropout(config.dropout_rate, dtype=self.dtype_policy, name="dropout")
        self.logits = keras.layers.Dense(config.num_classes, dtype="float32", name="logits")

    def build(self, input_shape: Any) -> None:
        shape = input_shape["last_hidden_state"] if isinstance(input_shape, Mapping) else input_shape
        pooled = (shape[0], shape[-1])
        self.pooling.build(shape)
        if self.hidden is not None:
            self.hidden.build(pooled)
            pooled = (shape[0], self.config.hidden_size)
        self.logits.build(pooled)

    def call(self, inputs: Any, mask: Any = None) -> Any:
        hidden_states, mask = _read(inputs, mask)
        x = self.dropout(self.pooling(hidden_states, mask=mask))
        if self.hidden is not None:
            x = self.dropout(self.hidden(x))
        return self.logits(ops.cast(x, "float32"))

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> keras.KerasTensor:
        hidden_states, _ = _read(inputs, mask)
        return keras.KerasTensor((hidden_states.shape[0], self.config.num_classes), dtype="float32")

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_dict()}


def _read(inputs: Any, mask: Any) -> tuple[Any, Any]:
    if not isinstance(inputs, Mapping):
        return inputs, mask
    if "last_hidden_state" not in inputs:
        raise ValueError(
            f"inputs have the keys {sorted(inputs)}; 'last_hidden_state' is needed, 'attention_mask' optional."
        )
    return inputs["last_hidden_state"], inputs.get("attention_mask")
