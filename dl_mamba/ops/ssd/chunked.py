"""State-space duality as matrix products (Dao and Gu, 2024, section 6 and listing 1).

In a chunk the recurrence is y = (C B^T o decay) x, a small attention matrix; between chunks only the states travel. A
step handles a group of chunks at once, and a loop carries the state from group to group: a group is as large as the
processor can work on at a time, one chunk that fits into the cache of a CPU, all chunks of a short sequence on a GPU.

Axes: b batch, c chunk, q i j token in a chunk, h head = (g group, e head in the group), p head channel, n state.
"""

from __future__ import annotations

import math
from functools import partial

import keras
from keras import ops

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.loops import scan
from dl_mamba.ops.numerics import (
    lean_skip_and_gate,
    scaled_rows,
    skip_and_gate,
    spread,
    step_sizes,
    sum_of_rows,
    upcast,
)
from dl_mamba.ops.sequence import first, on_accelerator, padded, size_of
from dl_mamba.ops.ssd import token

FORGOTTEN = -1000.0  # exp() of it is 0 in float32: log decay of an emptied state
CPU_CHUNK = 64  # tokens; twice as many make twice the decays
CPU_DECAYS = {"torch": 2**19}.get(keras.backend.backend(), 2**17)  # of a group: half a MiB; torch's calls cost more
CPU_WHOLE = {"torch": 2**20}.get(keras.backend.backend(), 0)  # decays of a sequence that is one group, not run again
ACCELERATOR_CHUNKS = 256  # in a group; the decays between them stay small against the tokens
UNKNOWN_COUNT = 1024  # chunks in a group that the exact running sum provides for when their number is not known


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask):
    if isinstance(x.shape[1], int) and x.shape[1] == 1:
        return token.run(
            x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask
        )
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
    D = ops.broadcast_to(D[:, None], x.shape[2:]) if D is not None and len(D.shape) == 1 else D
    y, state = _ssd((x, scale, log_decay, B, C), state, D, chunk_size)
    return lean_skip_and_gate(y, x, None, z), state


def _ssd(tokens, state, D, chunk_size):
    x = tokens[0]
    batch, _, nheads, headdim = ops.shape(x)
    length = size_of(x, 1)
    size, group = _sizes(x, chunk_size)
    chunks = (length + size - 1) // size
    step = partial(_group, size=size)
    carry = (state,) if D is None else (state, D)
    if group is None or (isinstance(chunks, int) and chunks <= group):
        (state, *_), (y,) = step(carry, tuple(padded(v, chunks * size - length) for v in tokens))
    else:
        groups = (chunks + group - 1) // group
        xs = tuple(_in_groups(v, groups, group * size, length) for v in tokens)
        (state, *_), (y,) = scan(step, carry, xs)
        y = ops.reshape(ops.moveaxis(y, 0, 1), (batch, groups * group * size, nheads, headdim))
    return first(y, length), state


def _sizes(x, chunk_size):
    """Tokens of a chunk, and chunks of a group; None for all of them."""
    batch, length, nheads, _ = x.shape
    if isinstance(length, int):
        largest = chunk_size if on_accelerator(x) else min(chunk_size, CPU_CHUNK)
        size = -(-length // -(-length // largest))  # equal chunks need the least padding
        if on_accelerator(x):
            return size, ACCELERATOR_CHUNKS
        decays = nheads * size**2 * (batch if isinstance(batch, int) else 1)
        return size, max(1, (CPU_WHOLE if decays * -(-length // size) <= CPU_WHOLE else CPU_DECAYS) // decays)
    size = min(chunk_size, CPU_CHUNK)
    return size, None if keras.backend.backend() == "torch" else 1  # a tracer of torch cannot see a loop


def _in_groups(tensor, groups, tokens, length):
    """(b, l, ...) -> (groups, b, tokens, ...); zeros behind the last token leave the state as it is."""
    tensor = padded(tensor, groups * tokens - length)
    shape = ops.shape(tensor)
    return ops.moveaxis(ops.reshape(tensor, (shape[0], groups, tokens, *shape[2:])), 1, 0)


def _group(carry, tokens, *, size):
    """The state behind a group of chunks and the outputs of its tokens; D, if there is one, is carried along."""
    (state, *D), (x, scale, log_decay, B, C) = carry, tokens
    batch, length, nheads, headdim = ops.shape(x)
    ngroups, d_state = B.shape[2:]
    chunks, heads = length // size, (ngroups, nheads // ngroups)
    u = ops.reshape(scaled_rows(x, scale), (batch, chunks, size, *heads, headdim))
    B, C = (ops.reshape(M, (batch, chunks, size, ngroups, d_state)) for M in (B, C))
    log_decay = ops.moveaxis(ops.reshape(log_decay, (batch, chunks, size, nheads)), 2, 3)  # (b, c, h, q)
    between, since_start, until_end = _decays(log_decay)
    total = ops.reshape(since_start[..., -1], (batch, chunks, nheads))
    between = ops.reshape(between, (batch, chunks, *heads, size, size))
    since_start, until_end = (
        ops.reshape(ops.moveaxis(decay, 3, 2), (batch, chunks, size, *heads)) for decay in (since_start, until_end)
    )

    scores = between * spread(ops.einsum("bcign,bcjgn->bcgij", C, B)[:, :, :, None], between)
    y = ops.einsum("bcgeij,bcjgep->bcigep", scores, u)
    added = ops.einsum("bcjgep,bcjgn->bcgepn", scaled_rows(u, until_end), B)
    before, state = _states(state, ops.reshape(added, (batch, chunks, nheads, headdim, d_state)), total, log_decay)
    before = ops.reshape(before, (batch, chunks, *heads, headdim, d_state))
    y = y + scaled_rows(ops.einsum("bcign,bcgepn->bcigep", C, before), since_start)
    y = ops.reshape(y, (batch, length, nheads, headdim))
    return (state, *D), (skip_and_gate(y, x, D[0] if D else None, None),)


def _states(state, added, total, log_decay):
    """States before each chunk (b, c, h, p, n), and behind the last one, from what each chunk adds."""
    if isinstance(added.shape[1], int) and added.shape[1] == 1:
        return state[:, None], total[:, 0, :, None, None] * state + added[:, 0]
    batch, chunks, nheads, headdim, d_state = ops.shape(added)
    log_total = ops.maximum(ops.sum(log_decay, axis=-1), FORGOTTEN)
    between, since_start, _ = _decays(ops.moveaxis(log_total, 1, 2))
    behind = ops.einsum("bhij,bjhpn->bihpn", between, added)
    behind = behind + ops.moveaxis(since_start, 1, 2)[..., None, None] * state[:, None]
    before = ops.concatenate([state[:, None], behind], axis=1)
    return first(before, chunks), behind[:, -1]


def _decays_with_residuals(log_decay):
    """Decay from token j to token i of a chunk, exp(log_decay[j+1] + ... + log_decay[i]): (..., q) -> (..., i, j).

    Also from the start of the chunk to token i, that of token i included, and from token j to the end.
    """
    coarse, fine = _cumulative(log_decay)
    difference = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :])
    between = ops.where(_not_before(log_decay), ops.exp(ops.minimum(difference, 0.0)), 0.0)
    since_start = between[..., 0] * ops.exp(log_decay[..., :1])
    return (between, since_start, between[..., -1, :]), (between, since_start, log_decay)


def _decays_backward(residuals, gradients):
    """The gradient of step k sums over the pairs j < k <= i, without the difference of two large sums."""
    between, since_start, log_decay = residuals
    dbetween, dsince_start, duntil_end = gradients
    not_before = ops.cast(_not_before(log_decay), log_decay.dtype)
    after = 1.0 - not_before
    until = ops.matmul(dbetween * between, after) + (dsince_start * since_start)[..., None]
    return (sum_of_rows(until * not_before) + ops.matmul(duntil_end * between[..., -1, :], after),)


_decays = with_gradient(_decays_with_residuals, _decays_backward)


def _not_before(log_decay):
    """True where token i does not come before token j: (i, j)."""
    token = ops.arange(ops.shape(log_decay)[-1], dtype="int32")
    return token[:, None] >= token


def _cumulative(log_decay):
    """Running sum as two parts whose differences do not cancel.

    The coarse part is rounded so that its sums are exact in float32; the fine part stays small. The difference of two
    plain running sums would lose up to 1e-3 of a decay that lies behind a strong one.
    """
    count = log_decay.shape[-1]
    reach = math.ceil(math.log2(-FORGOTTEN * (count if isinstance(count, int) else UNKNOWN_COUNT)))
    unit = 2.0 ** (reach - 24)
    coarse = ops.round(log_decay / unit) * unit
    return _running_sum(coarse), _running_sum(log_decay - coarse)


def _running_sum(x):
    if keras.backend.backend() == "torch" or on_accelerator(x):
        return ops.cumsum(x, axis=-1)
    return ops.matmul(x, ops.cast(ops.transpose(_not_before(x)), x.dtype))  # XLA's own cumsum is ten times as slow
