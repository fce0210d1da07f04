"""A block of tokens, one token at a time: every step is a few fused passes over the states, which XLA compiles.

A block is (u, dt, B, C, starts), each (k, b, c, ...); starts may be None. Axes as in `chunked`.
"""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.selective_scan.blocks import over_blocks


def outputs(h, block, A):
    """The state behind a block, and what its tokens read."""

    def step(carry, token):
        h = _next(carry[0], token, A)
        return (h,), (_over_states(token[3], h),)

    (h,), (y,) = over_blocks(step, (h,), block)
    return h, y


def last_state(h, block, A):
    """The state behind a block."""
    return over_blocks(lambda carry, token: ((_next(carry[0], token, A),), ()), (h,), block)[0][0]


def adjoint_first_state(dh, block, dy, A):
    """Gradient of the state before a block, from that of the state behind it and those of the outputs."""

    def step(carry, item):
        *token, dy = item
        return (_decay(token, A) * (carry[0] + token[3][..., None] * dy[..., None, :]),), ()

    return over_blocks(step, (dh,), block, (dy,), reverse=True)[0][0]


def gradient(block, dy, before, dh, A):
    """Gradients of the state before a block, of A, and of u, dt, B, C, from that of the state behind it."""

    def forward(carry, item):
        *token, dy = item
        (previous,) = carry
        h = _next(previous, token, A)
        return (h,), (previous, _over_channels(h, dy))

    def backward(carry, item):
        *token, dy, previous = item
        dh, dA = carry
        u, dt, B, C, _ = token
        dstate = dh + C[..., None] * dy[..., None, :]
        dh = _decay(token, A) * dstate
        dlog = dh * previous
        gradients = _over_states(B, dstate), _over_states(A, dlog), _over_channels(dstate, u)
        return (dh, dA + dt[..., None, :] * dlog), gradients

    _, (previous, dC) = over_blocks(forward, (before,), block, (dy,))
    carry = (dh, ops.zeros_like(before))
    carry, (du, ddt, dB) = over_blocks(backward, carry, block, (dy, previous), reverse=True)
    return *carry, (du, ddt, dB, dC)


def _decay(token, A):
    _, dt, _, _, start = token
    decay = ops.exp(dt[..., None, :] * A)
    return decay if start is None else decay * (1.0 - start[..., None, None, None])


def _next(h, token, A):
    u, _, B, _, _ = token
    return _decay(token, A) * h + u[..., None, :] * B[..., None]


def _over_states(weights, states):
    """Sum over n of weights (..., n) or (..., n, e) and states (..., n, e).

    XLA makes one pass of these sums; for a sum over an axis it calls a library, which is slow for a small one.
    """
    columns = weights[..., None] if len(weights.shape) == len(states.shape) - 1 else weights
    return sum(columns[..., n, :] * states[..., n, :] for n in range(states.shape[-2]))


def _over_channels(states, x):
    """Sum over e of states (..., n, e) and x (..., e)."""
    return ops.matmul(states, x[..., None])[..., 0]
