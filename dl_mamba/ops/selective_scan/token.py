"""Selective scan of one token: what decoding runs, without a block around it."""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.numerics import plus_product, skip_and_gate, step_sizes, upcast


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask):
    x, dt, A, B, C, D, z, dt_bias, h = upcast("float32", x, dt, A, B, C, D, z, dt_bias, initial_state)
    dt = step_sizes(dt, dt_bias, dt_softplus, mask)
    batch, _, d_inner = ops.shape(x)
    ngroups, d_state = B.shape[2:]
    channels = (batch, ngroups, d_inner // ngroups)
    if starts is not None:
        h = ops.where(starts[..., None], 0.0, h)
    kept = ops.reshape(ops.exp(ops.reshape(dt, (batch, d_inner, 1)) * A) * h, (*channels, d_state))
    h = plus_product(kept, ops.reshape(dt * x, (*channels, 1)), ops.reshape(B, (batch, ngroups, 1, d_state)))
    y = ops.matmul(h, ops.reshape(C, (batch, ngroups, d_state, 1)))
    y = skip_and_gate(ops.reshape(y, (batch, 1, d_inner)), x, D, z)
    return y, ops.reshape(h, (batch, d_inner, d_state))
