"""Causal depthwise convolution as a layer, with carried state."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dl_mamba.layers import initializers
from dl_mamba.layers.variables import NamedVariables
from dl_mamba.ops import causal_conv1d


@keras.saving.register_keras_serializable(package="dl_mamba")
class CausalConv1D(NamedVariables, keras.layers.Layer):
    """Causal depthwise convolution over the last `d_conv` real tokens, followed by SiLU.

    See `dl_mamba.ops.causal_conv1d` for the equation and the meaning of mask, state and segment ids.

    Args:
        d_conv: taps, >= 1.
        use_bias: add a bias to each channel.
        init_limit: the kernel is drawn from U(-init_limit, init_limit); 1/sqrt(d_conv) if None.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Call arguments:
        x: (batch, length, channels) float.
        mask: (batch, length), true at real tokens, or None.
        state: (batch, d_conv - 1, channels), or None for an empty one.
        segment_ids: (batch, length) int, or None.

    Returns:
        (batch, length, channels) and the state after the last real token.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.layers import CausalConv1D
    >>> y, state = CausalConv1D(d_conv=4)(np.ones((2, 5, 3), "float32"))
    >>> tuple(y.shape), tuple(state.shape)
    ((2, 5, 3), (2, 3, 3))
    """

    def __init__(self, d_conv: int = 4, use_bias: bool = True, init_limit: float | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.d_conv = d_conv
        self.use_bias = use_bias
        self.init_limit = init_limit
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]
        limit = self.d_conv**-0.5
        kernel = initializers.uniform(limit if self.init_limit is None else self.init_limit)
        self.kernel = self.add_weight(name="kernel", shape=(self.d_conv, channels), initializer=kernel)
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(channels,), initializer=initializers.uniform(limit))

    def call(self, x: Any, mask: Any = None, state: Any = None, segment_ids: Any = None) -> tuple[Any, Any]:
        return causal_conv1d(
            x,
            self.kernel,
            self.bias,
            mask=mask,
            initial_state=state,
            segment_ids=segment_ids,
            return_final_state=True,
        )

    def weights_in_use(self) -> tuple[Any, Any]:
        """Kernel and bias in the compute dtype."""
        return tuple(None if v is None else ops.cast(v, self.compute_dtype) for v in (self.kernel, self.bias))

    def compute_output_spec(self, x: Any, mask: Any = None, state: Any = None, segment_ids: Any = None) -> tuple:
        state_shape = (x.shape[0], self.d_conv - 1, x.shape[-1])
        return tuple(keras.KerasTensor(shape, dtype=self.compute_dtype) for shape in (x.shape, state_shape))

    def get_config(self) -> dict[str, Any]:
        own = {"d_conv": self.d_conv, "use_bias": self.use_bias, "init_limit": self.init_limit}
        return {**super().get_config(), **own}
