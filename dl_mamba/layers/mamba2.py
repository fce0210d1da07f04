"""The mixer of Mamba-2: z, x, B, C, dt = in_proj(u);  x, B, C = SiLU(conv(x, B, C));  out_proj(norm(ssd(x) z))."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dl_mamba.config import Mamba2MixerConfig, with_options_of
from dl_mamba.layers import initializers
from dl_mamba.layers.conv import CausalConv1D
from dl_mamba.layers.mixer import Mixer, MixerState
from dl_mamba.layers.norm import RMSNorm
from dl_mamba.ops import ssd
from dl_mamba.ops.sequence import split_channels
from dl_mamba.ops.ssd import convolved


@keras.saving.register_keras_serializable(package="dl_mamba")
@with_options_of(Mamba2MixerConfig, "d_model")
class Mamba2Layer(Mixer):
    """Mamba-2: a state-space layer with one scalar decay a head, computed as matrix products.

    Source: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
    Space Duality", 2024, section 7.1 and figure 6. It stands alone, without embedding or residual.

    Args:
        d_model: width of input and output.
        d_state: states for each channel.
        d_conv: taps of the causal convolution.
        expand: d_inner = expand x d_model channels inside.
        headdim: channels of a head; divides d_ssm.
        ngroups: groups of heads that share B and C; divides the number of heads.
        d_ssm: channels that pass through the state space, the others through a gated MLP; d_inner if None.
        chunk_size: tokens in a chunk of the matrix form; the result does not depend on it.
        bias: biases in in_proj and out_proj.
        conv_bias: bias in the convolution.
        conv_init: the convolution's kernel is drawn from U(+-conv_init); 1/sqrt(d_conv) if None.
        A_init_range: A starts as -U(first, second).
        dt_min, dt_max, dt_init_floor: initial step sizes are log-uniform between the first two, at least the third.
        dt_limit: smallest and largest step size at run time.
        D_has_hdim: the skip connection has a weight for each channel instead of each head.
        rmsnorm: RMS norm of the output, in `ngroups` groups; without it the output is only gated.
        norm_before_gate: apply the gate after the norm instead of before it.
        norm_epsilon: added to the mean square of that norm.
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
        ValueError: an option is unknown, d_ssm is no multiple of headdim, nheads none of ngroups, or a shape does
            not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> layer = dl_mamba.Mamba2Layer(d_model=16, headdim=8, d_state=4)
    >>> tuple(layer(np.ones((2, 5, 16), "float32")).shape)
    (2, 5, 16)
    """

    config_class = Mamba2MixerConfig

    def __init__(self, d_model: int, **options: Any):
        super().__init__(d_model, **options)
        c = self.config
        self.in_proj = self._dense("in_proj", c.in_proj_width, c.bias)
        self.conv1d = CausalConv1D(c.d_conv, c.conv_bias, c.conv_init, dtype=self.dtype_policy, name="conv1d")
        self.norm = None
        if c.rmsnorm:
            self.norm = RMSNorm(c.norm_epsilon, c.ngroups, c.norm_before_gate, dtype=self.dtype_policy, name="norm")
        self.out_proj = self._dense("out_proj", c.d_model, c.bias, initializers.projection(c.num_layers))

    def build(self, input_shape: Any = None) -> None:
        c = self.config
        self.in_proj.build((None, None, c.d_model))
        self.conv1d.build((None, None, c.conv_width))
        if self.norm is not None:
            self.norm.build((None, None, c.ssm_width))
        self.out_proj.build((None, None, c.d_inner))
        dt_bias = initializers.DtBias(c.dt_min, c.dt_max, c.dt_init_floor)
        skip_shape = (c.nheads, c.headdim) if c.D_has_hdim else (c.nheads,)
        self.A_log = self._float32_weight("A_log", (c.nheads,), initializers.LogOfUniform(*c.A_init_range))
        self.D = self._float32_weight("D", skip_shape, "ones")
        self.dt_bias = self._float32_weight("dt_bias", (c.nheads,), dt_bias)

    def mix(
        self, x: Any, mask: Any, state: MixerState, segment_ids: Any, norm: RMSNorm | None
    ) -> tuple[Any, MixerState]:
        if not convolved.takes(x, mask, segment_ids):
            return super().mix(x, mask, state, segment_ids, norm)
        *beside, z, xBC, dt = self._projected(x, norm)
        conv, ssm = self.initial_state(ops.shape(x)[0])
        y, conv, ssm = convolved.run(
            xBC,
            *self.conv1d.weights_in_use(),
            dt=dt,
            before=conv if state.conv is None else state.conv,
            state=ssm if state.ssm is None else state.ssm,
            ngroups=self.config.ngroups,
            **self._recurrence(z),
        )
        return self.finish(y, z, *beside), MixerState(conv, ssm)

    def _projected(self, x: Any, norm: RMSNorm | None) -> list[Any]:
        """in_proj: gate and input of the MLP, z, xBC, dt."""
        c = self.config
        return self._parts(x, norm, c.mlp_width, c.mlp_width, c.ssm_width, c.conv_width, c.nheads)

    def project(
        self, x: Any, mask: Any, conv: Any, segment_ids: Any, norm: RMSNorm | None = None
    ) -> tuple[dict[str, Any], tuple, Any]:
        mlp_gate, mlp, z, xBC, dt = self._projected(x, norm)
        xBC, conv = self.conv1d(xBC, mask=mask, state=conv, segment_ids=segment_ids)
        return self.recurrence_inputs(z, xBC, dt), (z, mlp_gate, mlp), conv

    def recurrence_inputs(self, z: Any, xBC: Any, dt: Any) -> dict[str, Any]:
        """What `ssd` takes, from the parts of in_proj behind the convolution."""
        c = self.config
        batch, length, _ = ops.shape(xBC)
        x, B, C = split_channels(xBC, c.ssm_width, c.ngroups * c.d_state, c.ngroups * c.d_state)
        heads, groups = (batch, length, c.nheads, c.headdim), (batch, length, c.ngroups, c.d_state)
        return {
            "x": ops.reshape(x, heads),
            "dt": dt,
            "B": ops.reshape(B, groups),
            "C": ops.reshape(C, groups),
            **self._recurrence(z),
        }

    def _recurrence(self, z: Any) -> dict[str, Any]:
        """The recurrence itself: its weights, and z where no norm has it for a gate."""
        c = self.config
        return {
            "A": -ops.exp(self.A_log),
            "D": ops.convert_to_tensor(self.D),
            "z": None if c.rmsnorm else ops.reshape(z, (*ops.shape(z)[:2], c.nheads, c.headdim)),
            "dt_bias": ops.convert_to_tensor(self.dt_bias),
            "dt_limit": c.dt_limit,
            "chunk_size": c.chunk_size,
        }

    def recur(self, **inputs: Any) -> tuple[Any, Any]:
        return ssd(**inputs, return_final_state=True)

    def finish(self, y: Any, z: Any, mlp_gate: Any, mlp: Any) -> Any:
        batch, length, _ = ops.shape(z)
        y = ops.reshape(y, (batch, length, self.config.ssm_width))
        if self.norm is not None and not self.config.mlp_width:
            return self.norm.projected(self.out_proj, y, gate=z)
        y = y if self.norm is None else self.norm(y, gate=z)
        if self.config.mlp_width:
            y = ops.concatenate([ops.silu(mlp_gate) * mlp, y], axis=-1)
        return self.out_proj(y)

    def state_shapes(self, batch_size: int | None) -> MixerState:
        c = self.config
        return MixerState((batch_size, c.d_conv - 1, c.conv_width), (batch_size, c.nheads, c.headdim, c.d_state))
