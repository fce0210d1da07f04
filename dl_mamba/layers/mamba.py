"""The mixer of Mamba-1: x, z = in_proj(u);  x = SiLU(conv(x));  dt, B, C = x_proj(x);  out_proj(scan(x) SiLU(z))."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dl_mamba.config import MambaMixerConfig, with_options_of
from dl_mamba.layers import initializers
from dl_mamba.layers.conv import CausalConv1D
from dl_mamba.layers.mixer import Mixer, MixerState
from dl_mamba.layers.norm import RMSNorm
from dl_mamba.ops import gated_rms_norm, selective_scan
from dl_mamba.ops.sequence import split_channels


@keras.saving.register_keras_serializable(package="dl_mamba")
@with_options_of(MambaMixerConfig, "d_model")
class MambaLayer(Mixer):
    """Mamba-1: a selective state-space layer for sequences of vectors, causal, linear in length.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, figure 3 and
    algorithm 2.
    It stands alone, without embedding or residual: a drop-in for an LSTM layer that returns sequences.

    Args:
        d_model: width of input and output.
        d_state: states for each channel.
        d_conv: taps of the causal convolution.
        expand: d_inner = expand x d_model channels inside; a fraction is allowed where d_inner is whole.
        dt_rank: rank of the step-size projection; `"auto"` is ceil(d_model / 16).
        bias: biases in in_proj and out_proj.
        conv_bias: bias in the convolution.
        dt_min, dt_max, dt_init_floor: initial step sizes are log-uniform between the first two, at least the third.
        dt_init: `"random"` draws the dt projection from U(+-dt_scale / sqrt(dt_rank)), `"constant"` sets it to that
            value.
        dt_scale: see `dt_init`.
        bcdt_norm_epsilon: RMS norms without weights on dt (before its projection), B and C, with this epsilon, as
            FalconMamba has them (Zuo et al., "Falcon Mamba", 2024); None for no such norms.
        num_layers: depth of the stack that the layer stands in; out_proj starts 1/sqrt(num_layers) smaller.
        name, dtype, trainable: of a Keras layer.

    Call arguments:
        x: (batch, length, d_model) float.
        mask: (batch, length), true at real tokens; Keras' own mask of `x` if None. Padding changes neither the state
            nor the other outputs; the outputs at padding have no meaning.
        state: a `MixerState` to continue from, or None for an empty one.
        return_state: also return the `MixerState` after the last real token of each row.
        segment_ids: (batch, length) int; documents packed into one row do not see each other.
        training: Keras sets it. Without it a long sequence on a CPU passes in pieces, which takes less memory and time.
        norm: the `RMSNorm` of a block around the layer, which x passes first and whose weights stay the block's. Under
            XLA on a CPU the gradient does not keep what comes out of it.

    Returns:
        (batch, length, d_model) in the compute dtype, or that and the state.

    Raises:
        ValueError: an option is unknown, or a shape does not fit.

    Example:

    >>> import numpy as np, dl_mamba, keras
    >>> layer = dl_mamba.MambaLayer(d_model=8)
    >>> x = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")
    >>> first, state = layer(x[:, :4], return_state=True)
    >>> second = layer(x[:, 4:], state=state)
    >>> bool(keras.ops.all(keras.ops.isclose(layer(x)[:, 4:], second, atol=1e-5)))
    True
    """

    config_class = MambaMixerConfig

    def __init__(self, d_model: int, **options: Any):
        super().__init__(d_model, **options)
        c = self.config
        limit = c.dt_scale * c.dt_width**-0.5
        dt_kernel = keras.initializers.Constant(limit) if c.dt_init == "constant" else initializers.uniform(limit)
        self.in_proj = self._dense("in_proj", 2 * c.d_inner, c.bias)
        self.conv1d = CausalConv1D(c.d_conv, c.conv_bias, dtype=self.dtype_policy, name="conv1d")
        self.x_proj = self._dense("x_proj", c.dt_width + 2 * c.d_state, use_bias=False)
        self.dt_proj = self._dense("dt_proj", c.d_inner, use_bias=False, initializer=dt_kernel)
        self.out_proj = self._dense("out_proj", c.d_model, c.bias, initializers.projection(c.num_layers))

    def build(self, input_shape: Any = None) -> None:
        c = self.config
        self.in_proj.build((None, None, c.d_model))
        self.conv1d.build((None, None, c.d_inner))
        self.x_proj.build((None, None, c.d_inner))
        self.dt_proj.build((None, None, c.dt_width))
        self.out_proj.build((None, None, c.d_inner))
        dt_bias = initializers.DtBias(c.dt_min, c.dt_max, c.dt_init_floor)
        self.A_log = self._float32_weight("A_log", (c.d_inner, c.d_state), initializers.S4DReal())
        self.D = self._float32_weight("D", (c.d_inner,), "ones")
        self.dt_bias = self._float32_weight("dt_bias", (c.d_inner,), dt_bias)

    def project(
        self, x: Any, mask: Any, conv: Any, segment_ids: Any, norm: RMSNorm | None = None
    ) -> tuple[dict[str, Any], tuple, Any]:
        c = self.config
        x, z = self._parts(x, norm, c.d_inner, c.d_inner)
        x, conv = self.conv1d(x, mask=mask, state=conv, segment_ids=segment_ids)
        dt, B, C = split_channels(self.x_proj(x), c.dt_width, c.d_state, c.d_state)
        if c.bcdt_norm_epsilon is not None:
            dt, B, C = (_normalized(part, c.bcdt_norm_epsilon) for part in (dt, B, C))
        A, dt = -ops.exp(self.A_log), self.dt_proj(dt)
        return {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": self.D, "z": z, "dt_bias": self.dt_bias}, (), conv

    def recur(self, **inputs: Any) -> tuple[Any, Any]:
        return selective_scan(**inputs, return_final_state=True)

    def finish(self, y: Any) -> Any:
        return self.out_proj(y)

    def state_shapes(self, batch_size: int | None) -> MixerState:
        c = self.config
        return MixerState((batch_size, c.d_conv - 1, c.d_inner), (batch_size, c.d_inner, c.d_state))


def _normalized(x: Any, epsilon: float) -> Any:
    return gated_rms_norm(x, ops.ones((x.shape[-1],)), epsilon=epsilon)
