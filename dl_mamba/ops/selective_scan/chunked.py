"""Selective scan in two levels, with a gradient that recomputes the states.

The sequence is cut into chunks of `steps` ~ sqrt(length) tokens. All chunks walk their tokens in lock-step, first from
an empty state to learn what each chunk adds; a short walk over the chunks then gives the state at every border, and
a second lock-step walk from there gives the outputs. That is 2 steps + length / steps sequential steps.

The gradient walks backwards in the same way. It needs the state before every token, and keeps it for one block of
sqrt(steps) tokens of each chunk at a time.

Axes: q step in a chunk, b batch, c chunk, g group, e channel in a group, n state.
"""

from __future__ import annotations

import math

import keras
from keras import ops

from dl_mamba.ops.loops import scan, with_gradient
from dl_mamba.ops.numerics import skip_and_gate, step_sizes, upcast
from dl_mamba.ops.sequence import size_of


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask):
    x, dt, A, B, C, D, z, dt_bias, h = upcast("float32", x, dt, A, B, C, D, z, dt_bias, initial_state)
    _refuse_tracing_of_torch(x)
    dt = step_sizes(dt, dt_bias, dt_softplus, mask)
    keep = None if starts is None else ops.cast(ops.logical_not(starts), "float32")
    batch, length, d_inner = ops.shape(x)
    ngroups, d_state = B.shape[2:]
    channels = (ngroups, d_inner // ngroups)
    y, h = _recurrence(
        ops.reshape(dt * x, (batch, length, *channels)),
        ops.reshape(dt, (batch, length, *channels)),
        ops.reshape(A, (*channels, d_state)),
        B,
        C,
        keep,
        ops.reshape(h, (batch, *channels, d_state)),
    )
    y = skip_and_gate(ops.reshape(y, (batch, length, d_inner)), x, D, z)
    return y, ops.reshape(h, (batch, d_inner, d_state))


def _refuse_tracing_of_torch(x):
    """A tracer of torch would write out the loop for the one length that it sees."""
    if keras.backend.backend() == "torch" and ops.is_tensor(x.shape[1]):
        raise ValueError(
            "selective_scan cannot be exported to ONNX from torch: its loop over tokens has the length of the example. "
            "Export Mamba-1 as a SavedModel from TensorFlow (the same .keras file loads there), or use Mamba-2."
        )


def _forward(u, dt, A, B, C, keep, h):
    """h[t] = keep[t] exp(dt[t] A) h[t-1] + u[t] B[t];  y[t] = C[t] h[t]."""
    length = size_of(u, 1)
    fold, unfold = _folding(length)
    tokens = _tokens(fold, u, dt, B, C, keep)
    borders, h = _borders(tokens, A, h)

    def step(carry, token):
        state = _advance(carry[0], token, A)
        return (state,), (ops.sum(state * token[3][..., None, :], axis=-1),)

    _, (y,) = scan(step, (borders,), tokens)
    return (unfold(y), h), (u, dt, A, B, C, keep, borders) if keep is not None else (u, dt, A, B, C, borders)


def _backward(residuals, gradients):
    *inputs, borders = residuals
    u, dt, A, B, C, keep = inputs if len(inputs) == 6 else (*inputs, None)
    dy, dh = gradients
    length = size_of(u, 1)
    fold, unfold = _folding(length)
    tokens = _tokens(fold, u, dt, B, C, keep)
    dy = fold(dy)
    adjoints, dh = _adjoint_borders(tokens, dy, A, dh)
    du, ddt, dA, dB, dC = _token_gradients(tokens, dy, A, borders, adjoints, _block(length))
    dkeep = None if keep is None else ops.zeros_like(keep)
    return unfold(du), unfold(ddt), dA, unfold(dB), unfold(dC), dkeep, dh


_recurrence = with_gradient(_forward, _backward)


def _block(length):
    """The smallest r with r^4 >= length: chunks have r^2 steps, the gradient recomputes r states at a time."""
    if isinstance(length, int):
        return max(1, math.ceil(round(length**0.25, 9)))
    return 1 + sum(ops.cast(length > r**4, "int32") for r in range(1, 64))


def _folding(length):
    """(b, l, ...) -> (q, b, c, ...) with zeros behind the last token, and the way back."""
    steps = _block(length) ** 2
    chunks = (length + steps - 1) // steps
    padding = chunks * steps - length

    def fold(tensor, value=0.0):
        tail = [[0, 0]] * (len(tensor.shape) - 2)
        tensor = ops.pad(tensor, [[0, 0], [0, padding], *tail], constant_values=value)
        shape = ops.shape(tensor)
        tensor = ops.reshape(tensor, (shape[0], chunks, steps, *shape[2:]))
        return ops.moveaxis(tensor, 2, 0)

    def unfold(tensor):
        tensor = ops.moveaxis(tensor, 0, 2)
        shape = ops.shape(tensor)
        tensor = ops.reshape(tensor, (shape[0], chunks * steps, *shape[3:]))
        return ops.slice(tensor, [0] * len(tensor.shape), (shape[0], length, *shape[3:]))

    return fold, unfold


def _tokens(fold, u, dt, B, C, keep):
    tokens = tuple(fold(tensor) for tensor in (u, dt, B, C))
    return tokens if keep is None else (*tokens, fold(keep, 1.0)[..., None, None, None])


def _decay(token, A):
    decay = ops.exp(token[1][..., None] * A)
    return decay if len(token) == 4 else decay * token[4]


def _advance(state, token, A):
    u, _, B = token[:3]
    return _decay(token, A) * state + u[..., None] * B[..., None, :]


def _total_decay(tokens, A):
    """Decay over each whole chunk, chunks leading: (c, b, g, e, n)."""
    decay = ops.exp(ops.sum(tokens[1], axis=0)[..., None] * A)
    if len(tokens) == 5:
        decay = decay * ops.prod(tokens[4], axis=0)
    return ops.moveaxis(decay, 1, 0)


def _borders(tokens, A, h):
    """States at the start of each chunk (b, c, g, e, n), and after the last token (b, g, e, n)."""

    def step(carry, token):
        return (_advance(carry[0], token, A),), ()

    def chunk(carry, item):
        decay, added = item
        return (decay * carry[0] + added,), carry

    u = tokens[0]
    (added,), _ = scan(step, (ops.zeros((*ops.shape(u)[1:], A.shape[-1]), dtype=u.dtype),), tokens)
    (h,), (borders,) = scan(chunk, (h,), (_total_decay(tokens, A), ops.moveaxis(added, 1, 0)))
    return ops.moveaxis(borders, 0, 1), h


def _adjoint_borders(tokens, dy, A, dh):
    """Gradients of the states at the end of each chunk (b, c, g, e, n), and of the initial state."""

    def step(carry, item):
        token, dy = item[:-1], item[-1]
        return (_decay(token, A) * (carry[0] + dy[..., None] * token[3][..., None, :]),), ()

    def chunk(carry, item):
        decay, added = item
        return (decay * carry[0] + added,), carry

    empty = ops.zeros((*ops.shape(dy)[1:], A.shape[-1]), dtype=dy.dtype)
    (added,), _ = scan(step, (empty,), (*tokens, dy), reverse=True)
    (dh,), (ends,) = scan(chunk, (dh,), (_total_decay(tokens, A), ops.moveaxis(added, 1, 0)), reverse=True)
    return ops.moveaxis(ends, 0, 1), dh


def _token_gradients(tokens, dy, A, borders, adjoints, block):
    """Gradients of u, dt, A, B and C from the states and their gradients at the borders of the chunks."""

    def by_block(tensor):
        return ops.reshape(tensor, (block, block, *ops.shape(tensor)[1:]))

    def advance(carry, token):
        return (_advance(carry[0], token, A),), carry

    def advance_block(carry, tokens):
        return scan(advance, carry, tokens)[0], carry

    def token_backward(carry, item):
        dh, dA = carry
        *token, dy, before = item
        u, dt, B, C = token[:4]
        decay = _decay(token, A)
        decayed = decay * before
        dh = dh + dy[..., None] * C[..., None, :]
        dlog = dh * decayed
        dC = ops.sum((decayed + u[..., None] * B[..., None, :]) * dy[..., None], axis=-2)
        ys = ops.sum(dh * B[..., None, :], axis=-1), ops.sum(dlog * A, axis=-1), ops.sum(dh * u[..., None], axis=-2), dC
        return (dh * decay, dA + ops.sum(dlog * dt[..., None], axis=(0, 1))), ys

    def block_backward(carry, item):
        *tokens, dy, start = item
        _, (before,) = scan(advance, (start,), tuple(tokens))
        return scan(token_backward, carry, (*tokens, dy, before), reverse=True)

    tokens, dy = tuple(map(by_block, tokens)), by_block(dy)
    _, (starts,) = scan(advance_block, (borders,), tokens)
    carry = (adjoints, ops.zeros_like(A))
    (_, dA), gradients = scan(block_backward, carry, (*tokens, dy, starts), reverse=True)
    du, ddt, dB, dC = (ops.reshape(g, (block * block, *ops.shape(g)[2:])) for g in gradients)
    return du, ddt, dA, dB, dC
