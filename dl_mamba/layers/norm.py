"""RMS norm as a layer: y = x / sqrt(mean(x^2) + epsilon) * scale, in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
from keras import ops

from dl_mamba.layers.adapted import Projection
from dl_mamba.layers.variables import NamedVariables
from dl_mamba.ops import gated_rms_norm
from dl_mamba.ops.gated_rms_norm.chunked import normalized
from dl_mamba.ops.gradients import after, vjp, with_gradient
from dl_mamba.ops.numerics import product
from dl_mamba.ops.sequence import compiled_on_a_cpu, split_channels


@keras.saving.register_keras_serializable(package="dl_mamba")
class RMSNorm(NamedVariables, keras.layers.Layer):
    """Root-mean-square norm over the last axis, with the optional gate and groups of Mamba-2.

    The input is read in its own precision (a float32 residual stream stays float32), the mean is taken in float32, the
    result has the layer's compute dtype. See `dl_mamba.ops.gated_rms_norm` for the equations.

    Args:
        epsilon: added to the mean square, > 0.
        ngroups: slices of the channels that are normalised apart; divides channels.
        norm_before_gate: apply the gate after the norm instead of before it.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Call arguments:
        x: (..., channels) float.
        gate: shape of `x`, or None for no gate.

    Returns:
        (..., channels) in the compute dtype.

    Example:

    >>> import numpy as np, dl_mamba, keras
    >>> norm = dl_mamba.RMSNorm()
    >>> [round(float(v), 4) for v in keras.ops.convert_to_numpy(norm(np.array([[3.0, 4.0]], "float32")))[0]]
    [0.8485, 1.1314]
    """

    no_weight_decay = ("scale",)

    def __init__(self, epsilon: float = 1e-5, ngroups: int = 1, norm_before_gate: bool = False, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon!r}; a number > 0 is needed, e.g. 1e-5.")
        self.epsilon = epsilon
        self.ngroups = ngroups
        self.norm_before_gate = norm_before_gate
        self.supports_masking = True

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones", autocast=False)

    def call(self, x: Any, gate: Any = None) -> Any:
        return gated_rms_norm(x, self.scale, gate, **self._options())

    def projected(self, projection: Projection, x: Any, gate: Any = None) -> Any:
        """`projection(self(x, gate))`. Of that, under XLA on a CPU, the gradient computes the norm again.

        It would be kept only for the gradient of the projection's kernel, and the norm's own gradient computes most of
        it anyway.
        """
        if not _computes_again(projection, x):
            return projection(self(x, gate=gate))
        if not self.built:
            self.build(x.shape)
        weights = ops.convert_to_tensor(self.scale), ops.cast(projection.kernel, self.compute_dtype)
        return _product_of_norm(**self._options())(x, gate, *weights)[0]

    def parts(self, projection: Projection, x: Any, *sizes: int) -> list[Any]:
        """The same without gate, in parts of these sizes."""
        if not _computes_again(projection, x):
            return projection.parts(self(x), *sizes)
        return split_channels(self.projected(projection, x), *sizes)

    def _options(self) -> dict[str, Any]:
        own = {"epsilon": self.epsilon, "ngroups": self.ngroups, "norm_before_gate": self.norm_before_gate}
        return {**own, "dtype": self.compute_dtype}

    def compute_output_spec(self, x: Any, gate: Any = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        own = {"epsilon": self.epsilon, "ngroups": self.ngroups, "norm_before_gate": self.norm_before_gate}
        return {**super().get_config(), **own}


def _computes_again(projection: Projection, x: Any) -> bool:
    return compiled_on_a_cpu(x) and projection.quantization_mode is None and projection.bias is None


@cache
def _product_of_norm(dtype: str, **options: Any) -> Callable[..., Any]:
    """One function for all layers of the same options: TensorFlow traces it once."""

    def norm(x, scale, gate=None):
        return ops.cast(normalized(x, scale, gate, **options), dtype)

    def forward(x, gate, scale, kernel):
        return (product(norm(x, scale, gate), kernel),), (x, gate, scale, kernel)

    def backward(kept, gradients):
        x, gate, scale, kernel = kept
        inputs = (after(gradients[0], x), scale, *(() if gate is None else (after(gradients[0], gate),)))
        y = norm(*inputs)
        dy, dkernel = vjp(lambda y, kernel: (product(y, kernel),), (y, kernel), gradients)
        dx, dscale, *dgate = vjp(lambda *inputs: (norm(*inputs),), inputs, (dy,))
        return dx, dgate[0] if dgate else None, dscale, dkernel

    return with_gradient(forward, backward)
