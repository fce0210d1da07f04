"""Precision inside an op: float32 whatever the inputs; a reference takes float64 when an input has it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dl_mamba.ops.sequence import on_accelerator

Tensor = Any


def accumulation_dtype(*tensors: Tensor | None) -> str:
    """`"float64"` if any tensor is float64, else `"float32"`."""
    dtypes = {keras.backend.standardize_dtype(t.dtype) for t in tensors if t is not None}
    return "float64" if "float64" in dtypes else "float32"


def upcast(dtype: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in `dtype`; None stays None."""
    return tuple(None if t is None else ops.cast(t, dtype) for t in tensors)


def at_least(x: Tensor, low: float) -> Tensor:
    """max(x, low) in the dtype of x; `ops.maximum` turns float64 into float32 on torch."""
    low = ops.convert_to_tensor(low, dtype=x.dtype)
    return ops.where(x < low, low, x)


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, mask: Tensor | None, limit=None) -> Tensor:
    """dt (batch, length, channels) as the recurrence uses it: bias, softplus, limits, then 0 at padding."""
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = -ops.log_sigmoid(-dt)  # softplus without the threshold that torch's own has
    if limit is not None:
        low, high = limit
        dt = dt if low <= 0.0 and dt_softplus else at_least(dt, low)
        dt = dt if high == float("inf") else -at_least(-dt, -high)
    return dt if mask is None else ops.where(mask[..., None], dt, 0.0)


def times(x: Tensor, x_axes: str, w: Tensor, w_axes: str) -> Tensor:
    """x w, with w broadcast along the axes of x that it lacks: `times(x, "blc", w, "c")`.

    On JAX the gradient of a broadcast is a sum that XLA computes slowly on a CPU where it runs along the last axis or
    reads a slice; that of an einsum is a dot product (`python -m benchmarks train`).
    """
    if _sums_are_slow(x):
        return ops.einsum(f"{x_axes},{w_axes}->{x_axes}", x, w)
    return x * w[tuple(slice(None) if axis in w_axes else None for axis in x_axes)]


def mean_square(x: Tensor) -> Tensor:
    """Mean of x^2 over the last axis, which goes."""
    total = ops.einsum("...c,...c->...", x, x) if _sums_are_slow(x) else ops.sum(ops.square(x), axis=-1)
    return total / x.shape[-1]


def _sums_are_slow(x: Tensor) -> bool:
    return keras.backend.backend() == "jax" and not on_accelerator(x)


def skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """(y + D x) SiLU(z), each term only if given; D must broadcast against x."""
    if D is not None:
        y = y + D * x
    return y if z is None else y * ops.silu(z)
