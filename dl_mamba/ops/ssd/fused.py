"""State-space duality by the Triton kernels: bindings, and what they refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

from keras import ops
from keras.backend import standardize_dtype

from dl_mamba.ops.kernels.availability import refusal_of
from dl_mamba.ops.numerics import flags_of

LARGEST_STATE = {"bfloat16": 256, "float32": 128}  # numbers a channel; more would not fit on the chip


def refusal(x: Any, B: Any, C: Any, *others: Any) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    reason = refusal_of(x, B, C, *others)
    if reason:
        return reason
    largest = LARGEST_STATE[_product_dtype(x, B, C)]
    if B.shape[-1] > largest:
        return f"d_state={B.shape[-1]}; the kernels hold states up to {largest} for this dtype"
    return None


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask):
    """As `reference.run`. The kernels choose their own chunk size."""
    from dl_mamba.ops.kernels import ssd as kernels
    from dl_mamba.ops.kernels.binding import bind

    dtype = _product_dtype(x, B, C)
    D = D if D is None or len(D.shape) == 2 else ops.broadcast_to(D[:, None], x.shape[2:])
    A, D, dt_bias, state = (None if v is None else ops.cast(v, "float32") for v in (A, D, dt_bias, initial_state))
    # a gate is applied before the result is rounded
    options = kernels.Options(dt_softplus, tuple(dt_limit), dtype if z is None else "float32")
    step = partial(kernels.step, options) if x.shape[1] == 1 else None
    op = bind(partial(kernels.forward, options), partial(kernels.backward, options), kernels.ROWS, step)
    x, B, C = (ops.cast(v, dtype) for v in (x, B, C))
    y, state = op(x, dt, A, B, C, D, dt_bias, input_scale, state, flags_of(starts, mask))
    if z is not None:
        y = y * ops.silu(ops.cast(z, "float32"))
    return y, state


def _product_dtype(*tensors) -> str:
    """bfloat16 if all are; float16 has too little range for states."""
    return "bfloat16" if all(standardize_dtype(v.dtype) == "bfloat16" for v in tensors) else "float32"
