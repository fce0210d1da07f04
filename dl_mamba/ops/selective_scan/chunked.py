"""Selective scan, a block of tokens at a time, with a gradient that recomputes the states.

The decays of a block and what its tokens write are computed at once; a walk over its tokens then needs one product and
one sum each, and the outputs are read from all states of the block at once. The gradient walks backwards in the same
way from the states before each block, the only ones that are kept.

Where the processor has room for more than one state, the sequence is cut into chunks that walk in lock-step: first from
an empty state to learn what each chunk adds, then, after a short walk over the chunks, from the state at its border.
That is O(sqrt length) sequential steps, for twice the work.

Axes: k token in a block, b batch, c chunk, g group, n state, e channel in a group.
"""

from __future__ import annotations

import math

import keras
from keras import ops

from dl_mamba.ops.loops import loop, with_gradient
from dl_mamba.ops.numerics import skip_and_gate, step_sizes, upcast
from dl_mamba.ops.selective_scan import token
from dl_mamba.ops.sequence import on_accelerator, size_of

BLOCK = 32  # tokens
CPU_STATES = 2**15  # numbers in the states of the chunks that walk together
ACCELERATOR_STATES = 2**22


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask):
    if isinstance(x.shape[1], int) and x.shape[1] == 1:
        return token.run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask)
    x, dt, A, B, C, D, z, dt_bias, h = upcast("float32", x, dt, A, B, C, D, z, dt_bias, initial_state)
    _refuse_tracing_of_torch(x)
    dt = step_sizes(dt, dt_bias, dt_softplus, mask)
    starts = None if starts is None else ops.cast(starts, "float32")
    batch, length, d_inner = ops.shape(x)
    ngroups, d_state = B.shape[2:]
    channels = (ngroups, d_inner // ngroups)
    y, h = _recurrence(
        ops.reshape(dt * x, (batch, length, *channels)),
        ops.reshape(dt, (batch, length, *channels)),
        ops.swapaxes(ops.reshape(A, (*channels, d_state)), 1, 2),
        B,
        C,
        starts,
        ops.swapaxes(ops.reshape(h, (batch, *channels, d_state)), 2, 3),
    )
    y = skip_and_gate(ops.reshape(y, (batch, length, d_inner)), x, D, z)
    return y, ops.reshape(ops.swapaxes(h, 2, 3), (batch, d_inner, d_state))


def _refuse_tracing_of_torch(x):
    """A tracer of torch would write out the loop for the one length that it sees."""
    if keras.backend.backend() == "torch" and ops.is_tensor(x.shape[1]):
        raise ValueError(
            "selective_scan cannot be exported to ONNX from torch: its loop over tokens has the length of the example. "
            "Export Mamba-1 as a SavedModel from TensorFlow (the same .keras file loads there), or use Mamba-2."
        )


def _forward(u, dt, A, B, C, starts, h):
    """h[t] = (1 - start[t]) exp(dt[t] A) h[t-1] + u[t] B[t];  y[t] = C[t] h[t]."""
    fold, unfold, chunks = _folding(u, A.shape[1])
    blocks = tuple(None if v is None else fold(v) for v in (u, dt, B, C, starts))
    borders, h = (h[:, None], None) if chunks == 1 else _borders(blocks, A, h)

    def step(carry, block):
        h, y = _outputs(carry[0], block, A)
        return (h,), (y, carry[0])

    (last,), (y, kept) = _over_blocks(step, (borders,), blocks)
    h = last[:, 0] if h is None else h
    return (unfold(y), h), tuple(v for v in (u, dt, A, B, C, kept, starts) if v is not None)


def _backward(residuals, gradients):
    u, dt, A, B, C, kept, *starts = residuals
    starts = starts[0] if starts else None
    dy, dh = gradients
    fold, unfold, chunks = _folding(u, A.shape[1])
    blocks = tuple(None if v is None else fold(v) for v in (u, dt, B, C, starts))
    ends, dh = (dh[:, None], None) if chunks == 1 else _adjoint_borders(blocks, fold(dy), A, dh)

    def step(carry, item):
        *block, dy, before = item
        dh, dA = carry
        dh, more, gradients = _block_gradient(block, dy, before, dh, A)
        return (dh, dA + more), gradients

    dA = ops.zeros_like(kept[0])
    (first, dA), gradients = _over_blocks(step, (ends, dA), blocks, (fold(dy), kept), reverse=True)
    dA = ops.sum(dA, axis=(0, 1))
    du, ddt, dB, dC = map(unfold, gradients)
    return du, ddt, dA, dB, dC, None if starts is None else ops.zeros_like(starts), first[:, 0] if dh is None else dh


_recurrence = with_gradient(_forward, _backward)


def _folding(u, d_state):
    """(b, l, ...) -> (blocks, k, b, c, ...) with zeros behind the last token, the way back, and how many chunks."""
    length = size_of(u, 1)
    size, chunks = _sizes(u, d_state)
    blocks = (length + chunks * size - 1) // (chunks * size)
    padding = chunks * blocks * size - length

    def fold(tensor):
        tail = len(tensor.shape) - 2
        tensor = ops.pad(tensor, [[0, 0], [0, padding], *[[0, 0]] * tail])
        shape = ops.shape(tensor)
        tensor = ops.reshape(tensor, (shape[0], chunks, blocks, size, *shape[2:]))
        return ops.transpose(tensor, (2, 3, 0, 1, *range(4, 4 + tail)))

    def unfold(tensor):
        tensor = ops.transpose(tensor, (2, 3, 0, 1, *range(4, len(tensor.shape))))
        shape = ops.shape(tensor)
        tensor = ops.reshape(tensor, (shape[0], chunks * blocks * size, *shape[4:]))
        return ops.slice(tensor, [0] * len(tensor.shape), (shape[0], length, *shape[4:]))

    return fold, unfold, chunks


def _sizes(u, d_state):
    """Tokens of a block, and chunks that walk in lock-step."""
    batch, length = u.shape[:2]
    numbers = (batch if isinstance(batch, int) else 1) * math.prod(u.shape[2:]) * d_state
    fitting = max(1, (ACCELERATOR_STATES if on_accelerator(u) else CPU_STATES) // numbers)
    if not isinstance(length, int):
        return BLOCK, min(fitting, 16)
    chunks = min(fitting, max(1, math.isqrt(length)))  # beyond, the walk over the chunks is the longer one
    tokens = -(-length // chunks)
    return -(-tokens // -(-tokens // BLOCK)), chunks  # equal blocks need the least padding


def _over_blocks(step, carry, blocks, more=(), reverse=False):
    """`loop` over tuples in which None may stand."""
    present = [v is not None for v in blocks]

    def dense(carry, item):
        remaining = iter(item)
        block = tuple(next(remaining) if here else None for here in present)
        return step(carry, (*block, *remaining))

    return loop(dense, carry, (*(v for v in blocks if v is not None), *more), reverse)


def _decay(dt, starts, A):
    """(k, b, c, g, n, e)."""
    decay = ops.exp(dt[..., None, :] * A)
    return decay if starts is None else decay * (1.0 - starts[..., None, None, None])


def _outputs(h, block, A):
    """The state behind a block, and what its tokens read."""
    if keras.backend.backend() == "torch":
        states = _states(h, block, A)
        return states[-1], _over_states(block[3], states)

    def step(carry, token):
        u, dt, B, C, starts = token
        h = _decay(dt, starts, A) * carry[0] + u[..., None, :] * B[..., None]
        return (h,), (_over_states(C, h),)

    (h,), (y,) = _over_blocks(step, (h,), block)  # one token is one pass of XLA
    return h, y


def _states(h, block, A):
    """The states behind each token of a block (k, b, c, g, n, e)."""
    u, dt, B, _, starts = block
    return _walk(h, _decay(dt, starts, A), u[..., None, :] * B[..., None])


def _walk(h, decay, added, reverse=False):
    """h = decay[t] h + added[t] for each t: all h, which on torch take the place of `added`."""
    if keras.backend.backend() == "torch":
        import torch

        for t in reversed(range(len(added))) if reverse else range(len(added)):
            h = torch.addcmul(added[t], decay[t], h, out=added[t])
        return added

    def step(carry, item):
        h = item[0] * carry[0] + item[1]
        return (h,), (h,)

    return loop(step, (h,), (decay, added), reverse)[1][0]


def _over_states(weights, states):
    """Sum over n of (..., n) and (..., n, e)."""
    if keras.backend.backend() == "torch":
        return ops.matmul(weights[..., None, :], states)[..., 0, :]
    # XLA makes one pass of these sums; for a sum over an axis it calls a library, which is slow for a small one
    return sum(weights[..., n, None] * states[..., n, :] for n in range(states.shape[-2]))


def _over_tokens(weights, states):
    """Sum over k of (k, ..., e) and (k, ..., n, e)."""
    if keras.backend.backend() == "torch":
        return ops.sum(weights[..., None, :] * states, axis=0)
    return sum(weights[k][..., None, :] * states[k] for k in range(states.shape[0]))


def _block_gradient(block, dy, before, dh, A):
    """Gradients of the state before a block, of A, and of u, dt, B, C, from that of the state behind it."""
    u, dt, B, C, starts = block
    decay = _decay(dt, starts, A)
    states = _walk(before, decay, u[..., None, :] * B[..., None])
    # dh[t] = C[t] dy[t] + decay[t+1] dh[t+1]
    after = ops.concatenate([decay[1:], ops.ones_like(decay[:1])], axis=0)
    dstates = _walk(dh, after, C[..., None] * dy[..., None, :], reverse=True)
    dlog = dstates * decay * ops.concatenate([before[None], states[:-1]], axis=0)
    du = _over_states(B, dstates)
    ddt = _over_states(ops.ones_like(B), dlog * A)
    dB = ops.matmul(dstates, u[..., None])[..., 0]
    dC = ops.matmul(states, dy[..., None])[..., 0]
    return decay[0] * dstates[0], _over_tokens(dt, dlog), (du, ddt, dB, dC)


def _borders(blocks, A, h):
    """States at the start of each chunk (b, c, g, n, e), and behind the last token (b, g, n, e)."""

    def step(carry, block):
        return (_states(carry[0], block, A)[-1],), ()

    u = blocks[0]
    empty = ops.zeros((*ops.shape(u)[2:5], *A.shape[1:]), dtype=u.dtype)
    (added,), _ = _over_blocks(step, (empty,), blocks)
    return _over_chunks(blocks, A, added, h)


def _adjoint_borders(blocks, dy, A, dh):
    """Gradients of the states at the end of each chunk (b, c, g, n, e), and of the initial state."""

    def step(carry, item):
        _, dt, _, C, starts, dy = item
        decay = _decay(dt, starts, A)
        after = ops.concatenate([decay[1:], ops.ones_like(decay[:1])], axis=0)
        return (decay[0] * _walk(carry[0], after, C[..., None] * dy[..., None, :], reverse=True)[0],), ()

    empty = ops.zeros((*ops.shape(dy)[2:5], *A.shape[1:]), dtype=dy.dtype)
    (added,), _ = _over_blocks(step, (empty,), blocks, (dy,), reverse=True)
    return _over_chunks(blocks, A, added, dh, reverse=True)


def _over_chunks(blocks, A, added, h, reverse=False):
    """h = decay[c] h + added[c] over the chunks: h before each, and the last one."""

    def step(carry, item):
        decay, added = item
        return (decay * carry[0] + added,), carry

    dt, starts = blocks[1], blocks[4]
    decay = ops.exp(ops.sum(dt, axis=(0, 1))[..., None, :] * A)
    if starts is not None:
        decay = decay * ops.prod(1.0 - starts, axis=(0, 1))[..., None, None, None]
    (h,), (borders,) = loop(step, (h,), (ops.moveaxis(decay, 1, 0), ops.moveaxis(added, 1, 0)), reverse)
    return ops.moveaxis(borders, 0, 1), h
