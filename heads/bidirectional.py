"""Two directions over one text: a causal backbone sees no right context, one that reads backwards sees nothing else."""

from __future__ import annotations

from typing import Any, Self

import keras
from keras import ops

from dl_mamba.models.backbone import Backbone
from dl_mamba.models.inputs import read_inputs
from dl_mamba.ops.sequence import left_alignment, take_tokens


@keras.saving.register_keras_serializable(package="dl_mamba")
class BidirectionalEncoder(keras.layers.Layer):
    """Hidden states of two readings of each row, left to right and right to left, side by side.

    The real tokens of each row change places among themselves, so padding changes nothing, wherever it stands.

    Args:
        left_to_right: a `Mamba` or `Mamba2`.
        right_to_left: another one of the same width; None to read backwards with the weights of the first.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: those of a backbone.
        output_embeddings: add "embeddings", those of `left_to_right`.

    Returns:
        `{"last_hidden_state": (batch, length, 2 d_model)}`.

    Raises:
        ValueError: the two have different widths or vocabularies.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.heads import BidirectionalEncoder
    >>> encoder = BidirectionalEncoder(dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=1))
    >>> tuple(encoder(np.array([[3, 1, 4]]))["last_hidden_state"].shape)
    (1, 3, 16)
    """

    def __init__(self, left_to_right: Backbone, right_to_left: Backbone | None = None, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.left_to_right = left_to_right
        self.right_to_left = right_to_left
        if right_to_left is not None:
            for size in ("d_model", "vocab_size"):
                one, other = (getattr(backbone.config, size) for backbone in (left_to_right, right_to_left))
                if one != other:
                    raise ValueError(f"the two directions have {size}={one} and {other}; they must be equal.")
        self.built = True

    @property
    def config(self) -> Any:
        """The config of the backbone that reads left to right."""
        return self.left_to_right.config

    def call(self, inputs: Any, output_embeddings: bool = False) -> dict[str, Any]:
        ids, mask, segment_ids = read_inputs(inputs, self.config.embedding_rows)
        outputs = self.left_to_right(inputs, output_embeddings=output_embeddings)
        turned = {"input_ids": reverse(ids, mask), "attention_mask": mask}
        if segment_ids is not None:
            turned["segment_ids"] = reverse(segment_ids, mask)
        backwards = (self.right_to_left or self.left_to_right)(turned)["last_hidden_state"]
        both = [outputs["last_hidden_state"], reverse(backwards, mask)]
        return {**outputs, "last_hidden_state": ops.concatenate(both, axis=-1)}

    def compute_output_spec(self, inputs: Any, output_embeddings: bool = False) -> dict[str, Any]:
        outputs = self.left_to_right.compute_output_spec(inputs, output_embeddings=output_embeddings)
        hidden = outputs["last_hidden_state"]
        both = keras.KerasTensor((*hidden.shape[:-1], 2 * hidden.shape[-1]), dtype=hidden.dtype)
        return {**outputs, "last_hidden_state": both}

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None

    def get_config(self) -> dict[str, Any]:
        parts = {"left_to_right": self.left_to_right, "right_to_left": self.right_to_left}
        return {
            **super().get_config(),
            **{name: part and keras.saving.serialize_keras_object(part) for name, part in parts.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        for name in ("left_to_right", "right_to_left"):
            config[name] = config[name] and keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def reverse(x: Any, mask: Any = None) -> Any:
    """Turn the real tokens of each row around; padding stays where it is. Done twice, it changes nothing.

    Args:
        x: (batch, length, ...).
        mask: (batch, length), true at real tokens, or None.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.bidirectional import reverse
    >>> np.asarray(reverse(np.array([[0, 1, 2, 0, 3]]), np.array([[0, 1, 1, 0, 1]]))).tolist()
    [[0, 3, 2, 0, 1]]
    """
    if mask is None:
        return ops.flip(x, axis=1)
    mask = ops.cast(mask, "bool")
    order, rank = left_alignment(mask)
    count = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
    place = ops.cumsum(ops.ones_like(rank), axis=1) - 1
    mirror = take_tokens(order, ops.where(mask, count - 1 - rank, 0))
    return take_tokens(x, ops.where(mask, mirror, place))
