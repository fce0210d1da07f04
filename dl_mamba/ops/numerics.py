"""Precision inside an op: float32 whatever the inputs; a reference takes float64 when an input has it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

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


def skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """(y + D x) SiLU(z), each term only if given; D must broadcast against x."""
    if D is not None:
        y = y + D * x
    return y if z is None else y * ops.silu(z)
