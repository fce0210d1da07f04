"""Pre-norm residual block: x = x + mixer(norm(x)), with the sum kept in float32."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dl_mamba.config import Config, Mamba2BlockConfig, MambaBlockConfig, with_options_of
from dl_mamba.layers import one_token
from dl_mamba.layers.mamba import MambaLayer
from dl_mamba.layers.mamba2 import Mamba2Layer
from dl_mamba.layers.mixer import KERAS_OPTIONS, Mixer, MixerState
from dl_mamba.layers.norm import RMSNorm
from dl_mamba.layers.quantized import QuantizedParts


def residual_dtype(compute_dtype: str, residual_in_fp32: bool) -> str:
    """Dtype of the residual stream: half precision is widened to float32 if asked for."""
    half = compute_dtype in ("float16", "bfloat16")
    return "float32" if half and residual_in_fp32 else compute_dtype


class ResidualBlock(QuantizedParts, keras.layers.Layer):
    """Base of the residual blocks of both generations."""

    config_class: type[Config]
    mixer_class: type[Mixer]

    def __init__(self, d_model: int, **options: Any):
        options = {"d_model": d_model, **options}
        config, layer_options = self.config_class.from_options(type(self).__name__, options, KERAS_OPTIONS)
        super().__init__(autocast=False, **layer_options)
        self.config = config
        self.supports_masking = True
        self.residual_dtype = residual_dtype(self.compute_dtype, config.residual_in_fp32)
        fields = self.mixer_class.config_class.__dataclass_fields__
        mixer_options = {name: value for name, value in config.to_dict().items() if name in fields}
        self.norm = RMSNorm(config.norm_epsilon, dtype=self.dtype_policy, name="norm")
        self.mixer = self.mixer_class(**mixer_options, dtype=self.dtype_policy, name="mixer")

    def build(self, input_shape: Any = None) -> None:
        shape = (None, None, self.config.d_model)
        self.norm.build(shape)
        self.mixer.build(shape)

    def call(
        self,
        x: Any,
        mask: Any = None,
        state: MixerState | None = None,
        return_state: bool = False,
        segment_ids: Any = None,
    ) -> Any:
        mask = getattr(x, "_keras_mask", None) if mask is None else mask
        self.mixer.check(x, mask, state, segment_ids)
        x = ops.cast(x, self.residual_dtype)
        if one_token.fits(self, x, mask, state, segment_ids):
            x, state = one_token.step(self, x, state)
        else:
            options = {"mask": mask, "state": state, "segment_ids": segment_ids, "norm": self.norm}
            y, state = self.mixer(x, return_state=True, **options)
            x = ops.add(x, y)  # in the wider dtype of the two, that of the residual stream
        return (x, state) if return_state else x

    def state_shapes(self, batch_size: int | None) -> MixerState:
        """Shapes of the mixer's state for a batch."""
        return self.mixer.state_shapes(batch_size)

    def initial_state(self, batch_size: int) -> MixerState:
        """The empty state of the mixer: zeros."""
        return self.mixer.initial_state(batch_size)

    def compute_output_spec(
        self, x: Any, mask: Any = None, state: Any = None, return_state: bool = False, segment_ids: Any = None
    ) -> Any:
        _, state = self.mixer.compute_output_spec(x, mask, state, return_state=True, segment_ids=segment_ids)
        x = keras.KerasTensor(x.shape, dtype=self.residual_dtype)
        return (x, state) if return_state else x

    def compute_mask(self, x: Any, previous_mask: Any = None) -> Any:
        return previous_mask

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.config.to_dict()}


@keras.saving.register_keras_serializable(package="dl_mamba")
@with_options_of(MambaBlockConfig, "d_model")
class MambaResidualBlock(ResidualBlock):
    """Mamba-1 block: `x + MambaLayer(RMSNorm(x))`.

    Args:
        d_model: width of input and output.
        norm_epsilon: added to the mean square of the norm.
        residual_in_fp32: keep the sum in float32 when the compute dtype is float16 or bfloat16.
        **options: every option of `MambaLayer`.

    Call arguments and shapes are those of `MambaLayer`; the output has the dtype of the residual stream.

    Example:

    >>> import numpy as np, dl_mamba
    >>> block = dl_mamba.MambaResidualBlock(d_model=8, num_layers=4)
    >>> tuple(block(np.ones((2, 5, 8), "float32")).shape)
    (2, 5, 8)
    """

    config_class = MambaBlockConfig
    mixer_class = MambaLayer


@keras.saving.register_keras_serializable(package="dl_mamba")
@with_options_of(Mamba2BlockConfig, "d_model")
class Mamba2ResidualBlock(ResidualBlock):
    """Mamba-2 block: `x + Mamba2Layer(RMSNorm(x))`.

    Args:
        d_model: width of input and output.
        norm_epsilon: added to the mean square of both norms.
        residual_in_fp32: keep the sum in float32 when the compute dtype is float16 or bfloat16.
        **options: every option of `Mamba2Layer`.

    Call arguments and shapes are those of `Mamba2Layer`; the output has the dtype of the residual stream.

    Example:

    >>> import numpy as np, dl_mamba
    >>> block = dl_mamba.Mamba2ResidualBlock(d_model=8, headdim=4, d_state=8)
    >>> tuple(block(np.ones((2, 5, 8), "float32")).shape)
    (2, 5, 8)
    """

    config_class = Mamba2BlockConfig
    mixer_class = Mamba2Layer
