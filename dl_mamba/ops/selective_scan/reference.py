"""Selective scan: h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t];  y[t] = C[t] h[t]."""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.loops import native_loop
from dl_mamba.ops.numerics import accumulation_dtype, skip_and_gate, step_sizes, upcast


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask):
    x, dt, A, B, C, D, z, dt_bias, h = upcast(
        accumulation_dtype(x, dt, A, B, C), x, dt, A, B, C, D, z, dt_bias, initial_state
    )
    dt = step_sizes(dt, dt_bias, dt_softplus, mask)
    group_of = [channel * B.shape[2] // x.shape[2] for channel in range(x.shape[2])]
    B, C = (ops.stack([M[:, :, g] for g in group_of], axis=2) for M in (B, C))  # (b, l, d, n)
    starts = ops.zeros(ops.shape(x)[:2], dtype="bool") if starts is None else starts

    def token(carry, inputs):
        (h,), (x, dt, B, C, start) = carry, inputs
        h = ops.where(start[:, None, None], 0.0, h)
        h = ops.exp(dt[..., None] * A) * h + (dt * x)[..., None] * B
        return (h,), (ops.sum(C * h, axis=-1),)

    (h,), (y,) = native_loop(token, (h,), tuple(ops.moveaxis(v, 1, 0) for v in (x, dt, B, C, starts)))
    return skip_and_gate(ops.moveaxis(y, 0, 1), x, D, z), h
