"""State-space duality of one token: the recurrence itself, without a chunk around it."""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.numerics import plus_product, skip_and_gate, step_sizes, upcast


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask):
    x, dt, A, B, C, D, z, dt_bias, scale, state = upcast(
        "float32", x, dt, A, B, C, D, z, dt_bias, input_scale, initial_state
    )
    dt = step_sizes(dt, dt_bias, dt_softplus, mask, dt_limit)
    batch, _, nheads, headdim = ops.shape(x)
    ngroups, d_state = B.shape[2:]
    decay = ops.exp(dt * A)
    if starts is not None:
        decay = ops.where(starts[..., None], 0.0, decay)
    if scale is None:
        scale = dt
    elif mask is not None:
        scale = ops.where(mask[..., None], scale, 0.0)
    rows = (batch, ngroups, nheads // ngroups * headdim)
    kept = ops.reshape(ops.reshape(decay, (batch, nheads, 1, 1)) * state, (*rows, d_state))
    u = ops.reshape(x * scale[..., None], (*rows, 1))
    state = plus_product(kept, u, ops.reshape(B, (batch, ngroups, 1, d_state)))
    y = ops.matmul(state, ops.reshape(C, (batch, ngroups, d_state, 1)))
    y = ops.reshape(y, (batch, 1, nheads, headdim))
    state = ops.reshape(state, (batch, nheads, headdim, d_state))
    D = D if D is None or len(D.shape) == 2 else D[:, None]
    return skip_and_gate(y, x, D, z), state
