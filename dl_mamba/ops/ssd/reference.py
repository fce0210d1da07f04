"""State-space duality: h[t] = exp(dt[t] A) h[t-1] + scale[t] x[t] B[t]^T;  y[t] = h[t] C[t].  One scalar A a head."""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.loops import native_loop
from dl_mamba.ops.numerics import accumulation_dtype, skip_and_gate, step_sizes, upcast


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask):
    x, dt, A, B, C, D, z, dt_bias, scale, h = upcast(
        accumulation_dtype(x, dt, A, B, C), x, dt, A, B, C, D, z, dt_bias, input_scale, initial_state
    )
    dt = step_sizes(dt, dt_bias, dt_softplus, mask, dt_limit)
    if scale is None:
        scale = dt
    elif mask is not None:
        scale = ops.where(mask[..., None], scale, 0.0)
    group_of = [head * B.shape[2] // x.shape[2] for head in range(x.shape[2])]
    B, C = (ops.stack([M[:, :, g] for g in group_of], axis=2) for M in (B, C))  # (b, l, h, n)
    starts = ops.zeros(ops.shape(x)[:2], dtype="bool") if starts is None else starts

    def token(carry, inputs):
        (h,), (x, dt, scale, B, C, start) = carry, inputs
        h = ops.where(start[:, None, None, None], 0.0, h)
        h = ops.exp(dt * A)[..., None, None] * h + (scale[..., None] * x)[..., None] * B[:, :, None, :]
        return (h,), (ops.sum(C[:, :, None, :] * h, axis=-1),)

    (h,), (y,) = native_loop(token, (h,), tuple(ops.moveaxis(v, 1, 0) for v in (x, dt, scale, B, C, starts)))
    D = D if D is None or len(D.shape) == 2 else D[:, None]
    return skip_and_gate(ops.moveaxis(y, 0, 1), x, D, z), h
