"""State-space duality as matrix products (Dao and Gu, 2024, section 6 and listing 1).

In a chunk the recurrence is y = (C B^T o decay) x, a small attention matrix; between chunks only the states travel, and
that recurrence is the same lower-triangular product, over chunks instead of tokens. No loop is left.

Axes: b batch, c chunk, q i j token in a chunk, h head = (g group, e head in the group), p head channel, n state.
"""

from __future__ import annotations

import math

from keras import ops

from dl_mamba.ops.loops import with_gradient
from dl_mamba.ops.numerics import skip_and_gate, step_sizes, upcast
from dl_mamba.ops.sequence import size_of

FORGOTTEN = -1000.0  # exp() of it is 0 in float32: log decay of an emptied state
CHUNK_OF_UNKNOWN_LENGTH = 64
UNKNOWN_COUNT = 1024  # chunks in a group that the exact running sum provides for when their number is not known
ONE_LEVEL = 32  # chunks up to which one triangular product is cheaper than two levels


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask):
    x, dt, A, B, C, D, z, dt_bias, scale, state = upcast(
        "float32", x, dt, A, B, C, D, z, dt_bias, input_scale, initial_state
    )
    dt = step_sizes(dt, dt_bias, dt_softplus, mask, dt_limit)
    log_decay = ops.maximum(dt * A, FORGOTTEN)
    if starts is not None:
        log_decay = ops.where(starts[..., None], FORGOTTEN, log_decay)
    if scale is None:
        scale = dt
    elif mask is not None:
        scale = ops.where(mask[..., None], scale, 0.0)
    y, state = _ssd(x * scale[..., None], log_decay, B, C, state, chunk_size)
    D = D if D is None or len(D.shape) == 2 else D[:, None]
    return skip_and_gate(y, x, D, z), state


def _ssd(u, log_decay, B, C, state, chunk_size):
    batch, length, nheads, headdim = ops.shape(u)
    ngroups, d_state = B.shape[2:]
    heads = (ngroups, nheads // ngroups)
    size, chunks, fold = _folding(u, chunk_size)
    u = ops.reshape(fold(u), (batch, chunks, size, *heads, headdim))
    B, C = fold(B), fold(C)
    log_decay = ops.moveaxis(fold(log_decay), 2, 3)  # (b, c, h, q)
    decay = ops.reshape(_between(log_decay), (batch, chunks, *heads, size, size))
    since_start, until_end = (
        ops.reshape(ops.moveaxis(decay_of(log_decay), 3, 2), (batch, chunks, size, *heads, 1))
        for decay_of in (_since_start, _until_end)
    )

    scores = ops.einsum("bcign,bcjgn->bcgij", C, B)[:, :, :, None] * decay
    y = ops.einsum("bcgeij,bcjgep->bcigep", scores, u)
    added = ops.einsum("bcjgep,bcjgn->bcgepn", u * until_end, B)

    added = ops.reshape(added, (batch, chunks, nheads, headdim * d_state))
    state = ops.reshape(state, (batch, 1, nheads, headdim * d_state))
    total = ops.concatenate([ops.zeros_like(log_decay[:, :1, :, 0]), ops.sum(log_decay, axis=-1)], axis=1)
    states = _prefix(ops.maximum(total, FORGOTTEN), ops.concatenate([state, added], axis=1))
    before = ops.slice(states, (0, 0, 0, 0), (batch, chunks, nheads, headdim * d_state))
    before = ops.reshape(before, (batch, chunks, *heads, headdim, d_state))
    y = y + ops.einsum("bcign,bcgepn->bcigep", C, before) * since_start

    y = ops.reshape(y, (batch, chunks * size, nheads, headdim))
    last = ops.slice(states, (0, chunks, 0, 0), (batch, 1, nheads, headdim * d_state))
    return ops.slice(y, (0, 0, 0, 0), (batch, length, nheads, headdim)), ops.reshape(
        last, (batch, nheads, headdim, d_state)
    )


def _folding(u, chunk_size):
    """Chunk length, number of chunks, and the map (b, l, ...) -> (b, c, q, ...) with zeros behind the last token."""
    length = u.shape[1]
    size = min(chunk_size, length) if isinstance(length, int) else min(chunk_size, CHUNK_OF_UNKNOWN_LENGTH)
    length = size_of(u, 1)
    chunks = (length + size - 1) // size
    padding = chunks * size - length

    def fold(tensor):
        tail = [[0, 0]] * (len(tensor.shape) - 2)
        tensor = ops.pad(tensor, [[0, 0], [0, padding], *tail])
        shape = ops.shape(tensor)
        return ops.reshape(tensor, (shape[0], chunks, size, *shape[2:]))

    return size, chunks, fold


def _between(log_decay):
    """Decay from token j to token i of a chunk, exp(log_decay[j+1] + ... + log_decay[i]): (..., q) -> (..., i, j)."""
    return _between_and_its_gradient(log_decay)[0]


def _between_with_residuals(log_decay):
    coarse, fine = _cumulative(log_decay)
    difference = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :])
    decay = ops.exp(ops.where(_not_before(log_decay), difference, FORGOTTEN))
    return (decay,), (decay, log_decay)


def _between_backward(residuals, gradients):
    """The gradient of step k sums over the pairs j < k <= i, without the difference of two large sums."""
    decay, log_decay = residuals
    not_before = ops.cast(_not_before(log_decay), log_decay.dtype)
    until = ops.einsum("...ij,jk->...ik", gradients[0] * decay, 1.0 - not_before)
    return (ops.sum(until * not_before, axis=-2),)


_between_and_its_gradient = with_gradient(_between_with_residuals, _between_backward)


def _not_before(log_decay):
    """True where token i does not come before token j: (i, j)."""
    token = ops.arange(ops.shape(log_decay)[-1], dtype="int32")
    return token[:, None] >= token


def _since_start(log_decay):
    """Decay from the start of a chunk to token i, that of token i included."""
    return ops.exp(ops.cumsum(log_decay, axis=-1))


def _until_end(log_decay):
    """Decay from token j to the end of a chunk, that of token j not included."""
    from_here = ops.flip(ops.cumsum(ops.flip(log_decay, axis=-1), axis=-1), axis=-1)
    return ops.exp(ops.concatenate([from_here[..., 1:], ops.zeros_like(from_here[..., :1])], axis=-1))


def _cumulative(log_decay):
    """Running sum as two parts whose differences do not cancel.

    The coarse part is rounded so that its sums are exact in float32; the fine part stays small. The difference of two
    plain running sums would lose up to 1e-3 of a decay that lies behind a strong one.
    """
    count = log_decay.shape[-1]
    reach = math.ceil(math.log2(-FORGOTTEN * (count if isinstance(count, int) else UNKNOWN_COUNT)))
    unit = 2.0 ** (reach - 24)
    coarse = ops.round(log_decay / unit) * unit
    return ops.cumsum(coarse, axis=-1), ops.cumsum(log_decay - coarse, axis=-1)


def _prefix(log_decay, added):
    """h[i] = exp(log_decay[i]) h[i-1] + added[i] over axis 1: (b, t, h), (b, t, h, s) -> (b, t, h, s)."""
    count = size_of(added, 1)
    if isinstance(count, int) and count > ONE_LEVEL:
        return _prefix_of_groups(log_decay, added, count, math.isqrt(count - 1) + 1)
    if added.shape[1] is None:
        return _prefix_of_groups(log_decay, added, count, _ceil_sqrt(count))
    return ops.einsum("bhij,bjhs->bihs", _between(ops.moveaxis(log_decay, 1, 2)), added)


def _ceil_sqrt(count):
    return ops.cast(ops.ceil(ops.sqrt(ops.cast(count, "float32"))), "int32")


def _prefix_of_groups(log_decay, added, count, size):
    """The same in two levels: inside groups of `size` items, then over the groups."""
    batch, _, nheads, width = ops.shape(added)
    groups = (count + size - 1) // size
    padding = [[0, 0], [0, groups * size - count], [0, 0]]
    log_decay = ops.reshape(ops.pad(log_decay, padding), (batch, groups, size, nheads))
    added = ops.reshape(ops.pad(added, [*padding, [0, 0]]), (batch, groups, size, nheads, width))
    inside = ops.einsum("bghij,bgjhs->bgihs", _between(ops.moveaxis(log_decay, 2, 3)), added)

    total = ops.maximum(ops.sum(log_decay, axis=2), FORGOTTEN)
    after = ops.einsum("bhij,bjhs->bihs", _between(ops.moveaxis(total, 1, 2)), inside[:, :, -1])
    before = ops.pad(after, [[0, 0], [1, 0], [0, 0], [0, 0]])
    before = ops.slice(before, (0, 0, 0, 0), (batch, groups, nheads, width))
    since_start = ops.moveaxis(_since_start(ops.moveaxis(log_decay, 2, 3)), 3, 2)
    states = inside + since_start[..., None] * before[:, :, None]
    states = ops.reshape(states, (batch, groups * size, nheads, width))
    return ops.slice(states, (0, 0, 0, 0), (batch, count, nheads, width))
