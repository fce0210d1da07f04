"""What the mixers of both generations share: options, state, masks, the checks before any compute."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from dl_mamba.config import MixerConfig
from dl_mamba.layers import initializers, pieces
from dl_mamba.layers.adapted import Projection
from dl_mamba.layers.norm import RMSNorm
from dl_mamba.layers.quantized import QuantizedParts
from dl_mamba.layers.variables import NamedVariables
from dl_mamba.ops import checks

KERAS_OPTIONS = ("name", "dtype", "trainable")


class MixerState(NamedTuple):
    """What a mixer remembers of the tokens it has seen.

    Attributes:
        conv: (batch, d_conv - 1, channels), the last inputs of the convolution, in the compute dtype.
        ssm: (batch, d_inner, d_state) for Mamba-1, (batch, nheads, headdim, d_state) for Mamba-2, float32.

    Example:

    >>> import dl_mamba
    >>> state = dl_mamba.MambaLayer(d_model=8).initial_state(batch_size=2)
    >>> tuple(state.conv.shape), tuple(state.ssm.shape)
    ((2, 3, 16), (2, 16, 16))
    """

    conv: Any
    ssm: Any


class Mixer(NamedVariables, QuantizedParts, keras.layers.Layer):
    """Base of `MambaLayer` and `Mamba2Layer`: in_proj, convolution, state space, out_proj."""

    config_class: type[MixerConfig]
    no_weight_decay = ("A_log", "D", "dt_bias")

    def __init__(self, d_model: int, **options: Any):
        options = {"d_model": d_model, **options}
        config, layer_options = self.config_class.from_options(type(self).__name__, options, KERAS_OPTIONS)
        super().__init__(autocast=False, **layer_options)
        self.config = config
        self.supports_masking = True

    def call(
        self,
        x: Any,
        mask: Any = None,
        state: MixerState | None = None,
        return_state: bool = False,
        segment_ids: Any = None,
        training: bool | None = None,
        norm: RMSNorm | None = None,
    ) -> Any:
        mask = getattr(x, "_keras_mask", None) if mask is None else mask
        self.check(x, mask, state, segment_ids)
        x = ops.cast(x, self.compute_dtype) if norm is None else x
        count = pieces.count(x, 2 * self.config.d_inner, training) if mask is None and segment_ids is None else 1
        if count > 1:
            conv, ssm = self.initial_state(x.shape[0]) if state is None else state
            state = ops.cast(conv, self.compute_dtype), ops.cast(ssm, "float32")  # as they come out of a piece
            y, state = pieces.run(lambda x, state: self.mix(x, None, MixerState(*state), None, norm), x, state, count)
        else:
            y, state = self.mix(x, mask, MixerState(*(state or (None, None))), segment_ids, norm)
        return (y, MixerState(*state)) if return_state else y

    def mix(
        self, x: Any, mask: Any, state: MixerState, segment_ids: Any, norm: RMSNorm | None
    ) -> tuple[Any, MixerState]:
        """The mixer itself, on checked inputs in the compute dtype, or in that of the norm in front of it."""
        inputs, beside, conv = self.project(x, mask, state.conv, segment_ids, norm)
        y, ssm = self.recur(**inputs, initial_state=state.ssm, segment_ids=segment_ids, mask=mask)
        return self.finish(y, *beside), MixerState(conv, ssm)

    def project(
        self, x: Any, mask: Any, conv: Any, segment_ids: Any, norm: RMSNorm | None = None
    ) -> tuple[dict[str, Any], tuple, Any]:
        """What stands before the recurrence: its inputs by name, what goes past it to `finish`, the conv state."""
        raise NotImplementedError

    def recur(self, **inputs: Any) -> tuple[Any, Any]:
        """The recurrence: y and the ssm state."""
        raise NotImplementedError

    def finish(self, y: Any, *beside: Any) -> Any:
        """What stands behind the recurrence."""
        raise NotImplementedError

    def state_shapes(self, batch_size: int | None) -> MixerState:
        """Shapes of the state for a batch."""
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> MixerState:
        """The empty state: zeros."""
        shapes = self.state_shapes(batch_size)
        return MixerState(ops.zeros(shapes.conv, dtype=self.compute_dtype), ops.zeros(shapes.ssm, dtype="float32"))

    def compute_output_spec(
        self,
        x: Any,
        mask: Any = None,
        state: Any = None,
        return_state: bool = False,
        segment_ids: Any = None,
        training: bool | None = None,
        norm: RMSNorm | None = None,
    ) -> Any:
        if norm is not None:
            raise ValueError(
                "norm is for a block that owns it; a model of Keras would not find its weights. Call layer(norm(x))."
            )
        self.check(x, mask, state, segment_ids)
        y = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        shapes = self.state_shapes(x.shape[0])
        state = MixerState(
            keras.KerasTensor(shapes.conv, dtype=self.compute_dtype), keras.KerasTensor(shapes.ssm, dtype="float32")
        )
        return (y, state) if return_state else y

    def compute_mask(self, x: Any, previous_mask: Any = None) -> Any:
        return previous_mask

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.config.to_dict()}

    def check(self, x: Any, mask: Any, state: Any, segment_ids: Any) -> None:
        """Refuse inputs whose shapes do not fit, before any compute.

        Raises:
            ValueError: names what came and what was wanted.
        """
        batch, length, _ = checks.expect_rank("x", x, "(batch, length, d_model)")
        checks.expect_shape("x", x, batch=batch, length=length, d_model=self.config.d_model)
        checks.expect_shape("mask", mask, batch=batch, length=length)
        checks.expect_shape("segment_ids", segment_ids, batch=batch, length=length)
        if state is not None:
            check_state("state", state, self.state_shapes(batch))

    def _parts(self, x: Any, norm: RMSNorm | None, *sizes: int) -> list[Any]:
        """in_proj(x), or in_proj(norm(x)), in parts of these sizes."""
        if norm is None:
            return self.in_proj.parts(x, *sizes)
        if not isinstance(norm, RMSNorm):
            raise ValueError(f"norm is a {type(norm).__name__}; a dl_mamba.RMSNorm is needed, or layer(norm(x)).")
        return norm.parts(self.in_proj, x, *sizes)

    def _dense(self, name: str, units: int, use_bias: bool, initializer: Any = None) -> keras.layers.Dense:
        return Projection(
            units,
            use_bias=use_bias,
            kernel_initializer=initializer or initializers.projection(),
            dtype=self.dtype_policy,
            name=name,
        )

    def _float32_weight(self, name: str, shape: tuple[int, ...], initializer: Any) -> keras.Variable:
        return self.add_weight(name=name, shape=shape, initializer=initializer, dtype="float32", autocast=False)


def check_state(name: str, state: Any, shapes: MixerState) -> None:
    """Compare a state with the shapes of its mixer, part by part."""
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise ValueError(
            f"{name} is a {type(state).__name__}; a MixerState (conv, ssm) is needed, e.g. initial_state(batch)."
        )
    for part, tensor, shape in zip(MixerState._fields, state, shapes, strict=True):
        axes = {f"axis_{i}": size for i, size in enumerate(shape)}
        axes = {"batch": axes.pop("axis_0"), **axes}
        checks.expect_shape(f"{name}.{part}", tensor, **axes)
