"""State-space duality as matrix products (Dao and Gu, 2024, section 6 and listing 1).

In a chunk the recurrence is y = (C B^T o decay) x, a small attention matrix; between chunks only the states travel. On
a CPU one chunk at a time, which fits into its cache: `by_chunk` for XLA, `in_place` for torch. Elsewhere, and where
torch traces, a step handles a group of chunks at once, and a loop carries the state from group to group.

Axes: b batch, c chunk, q i j token in a chunk, h head = (g group, e head in the group), p head channel, n state.
"""

from __future__ import annotations

from functools import partial

import keras
from keras import ops

from dl_mamba.ops.loops import scan
from dl_mamba.ops.numerics import lean_skip_and_gate, scaled_rows, skip_and_gate, spread, step_sizes, upcast
from dl_mamba.ops.sequence import compiled_on_a_cpu, first, on_accelerator, padded, runs_in_place, size_of
from dl_mamba.ops.ssd import by_chunk, token
from dl_mamba.ops.ssd.decays import FORGOTTEN, differentiable_decays

CPU_CHUNK = 64  # tokens; twice as many make twice the decays
SMALL_STATE = 2**11  # numbers of a head, up to which its products cost so little that half as many tokens are faster
CPU_DECAYS = 2**19  # of a chunk; with fewer, torch's calls cost more than its work
ACCELERATOR_CHUNKS = 256  # in a group; the decays between them stay small against the tokens


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask):
    if isinstance(x.shape[1], int) and x.shape[1] == 1:
        return token.run(
            x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask
        )
    x, dt, A, B, C, D, z, dt_bias, scale, state = upcast(
        "float32", x, dt, A, B, C, D, z, dt_bias, input_scale, initial_state
    )
    scale, log_decay = weights_and_decays(dt, A, dt_bias, dt_softplus, dt_limit, scale, starts, mask)
    D = ops.broadcast_to(D[:, None], x.shape[2:]) if D is not None and len(D.shape) == 1 else D
    y, state = _ssd((x, scale, log_decay, B, C), state, D, chunk_size)
    return lean_skip_and_gate(y, x, None, z), state


def weights_and_decays(dt, A, dt_bias, dt_softplus, dt_limit, scale, starts, mask):
    """What x is weighed with, dt if `scale` is None, and the log of what is left of the state: (b, l, h) each."""
    dt = step_sizes(dt, dt_bias, dt_softplus, mask, dt_limit)
    log_decay = ops.maximum(dt * A, FORGOTTEN)
    if starts is not None:
        log_decay = ops.where(starts[..., None], FORGOTTEN, log_decay)
    if scale is None:
        scale = dt
    elif mask is not None:
        scale = ops.where(mask[..., None], scale, 0.0)
    return scale, log_decay


def _ssd(tokens, state, D, chunk_size):
    x = tokens[0]
    batch, _, nheads, headdim = ops.shape(x)
    length = size_of(x, 1)
    size = size_of_chunks(x, nheads, headdim, tokens[3].shape[-1], chunk_size)
    if runs_in_place(x):
        from dl_mamba.ops.ssd import in_place

        return in_place.run(tokens, state, D, size)
    if compiled_on_a_cpu(x):
        return by_chunk.run(tokens, state, D, size)
    group = _chunks_of_group(x)
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


def size_of_chunks(x, nheads, headdim, d_state, chunk_size):
    """Tokens of a chunk of x (b, l, ...)."""
    length = x.shape[1]
    largest = chunk_size if on_accelerator(x) else min(chunk_size, _cpu_chunk(x, nheads, headdim, d_state))
    return -(-length // -(-length // largest)) if isinstance(length, int) else largest  # equal ones need least padding


def _cpu_chunk(x, nheads, headdim, d_state):
    shorter = CPU_CHUNK // 2 if headdim * d_state <= SMALL_STATE else CPU_CHUNK
    if not runs_in_place(x):
        return shorter
    few = lambda size: x.shape[0] * nheads * size**2 <= CPU_DECAYS  # noqa: E731
    return 2 * CPU_CHUNK if few(2 * CPU_CHUNK) else CPU_CHUNK if few(CPU_CHUNK) else shorter


def _chunks_of_group(x):
    """None for all of them."""
    if isinstance(x.shape[1], int):
        return ACCELERATOR_CHUNKS
    return None if keras.backend.backend() == "torch" else 1  # a tracer of torch cannot see a loop


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
    between, since_start, until_end = differentiable_decays(log_decay)
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
    between, since_start, _ = differentiable_decays(ops.moveaxis(log_total, 1, 2))
    behind = ops.einsum("bhij,bjhpn->bihpn", between, added)
    behind = behind + ops.moveaxis(since_start, 1, 2)[..., None, None] * state[:, None]
    before = ops.concatenate([state[:, None], behind], axis=1)
    return first(before, chunks), behind[:, -1]
