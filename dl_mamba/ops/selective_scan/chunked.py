"""Selective scan, a block of tokens at a time, with a gradient that recomputes the states.

The forward pass keeps the state before each block and nothing else of that size. The gradient walks over the blocks
backwards: it computes the states of a block again, then their gradients.

Where the processor has room for more than one state, the sequence is cut into chunks that walk in lock-step: first from
an empty state to learn what each chunk adds, then, after a short walk over the chunks, from the state at its border.
That is O(sqrt length) sequential steps, for twice the work.

Axes: k token in a block, b batch, c chunk, g group, n state, e channel in a group.
"""

from __future__ import annotations

import math

import keras
from keras import ops

from dl_mamba.ops.gradients import after, with_gradient
from dl_mamba.ops.kernels.launch import packed
from dl_mamba.ops.loops import loop
from dl_mamba.ops.numerics import lean_skip_and_gate, plus, plus_product, softplus, upcast
from dl_mamba.ops.selective_scan import block_by_token, token
from dl_mamba.ops.selective_scan.blocks import over_blocks
from dl_mamba.ops.sequence import first, on_accelerator, padded, size_of

BLOCK = {"torch": 64}.get(keras.backend.backend(), 32)  # tokens; torch's calls cost more
SHORTEST = 8
CACHED = 2**19  # numbers in the states of a block for each core, up to four, over which torch passes several times
CPU_STATES = 2**15  # numbers in the states of the chunks that walk together
ACCELERATOR_STATES = 2**22


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask):
    if isinstance(x.shape[1], int) and x.shape[1] == 1:
        return token.run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask)
    x, dt, A, B, C, D, z, dt_bias, h = upcast("float32", x, dt, A, B, C, D, z, dt_bias, initial_state)
    _refuse_tracing_of_torch(x)
    dt = dt if dt_bias is None else plus(dt, dt_bias)
    dt = _softplus(dt)[0] if dt_softplus else dt
    dt = dt if mask is None else ops.where(mask[..., None], dt, 0.0)
    starts = None if starts is None else ops.cast(starts, "float32")
    batch, length, d_inner = ops.shape(x)
    ngroups, d_state = B.shape[2:]
    channels = (ngroups, d_inner // ngroups)
    y, h = _recurrence(
        *(ops.reshape(v, (batch, length, *channels)) for v in (x, dt)),
        packed(ops.swapaxes(ops.reshape(A, (*channels, d_state)), 1, 2)),  # every block is multiplied by it
        B,
        C,
        starts,
        ops.swapaxes(ops.reshape(h, (batch, *channels, d_state)), 2, 3),
    )
    y = lean_skip_and_gate(ops.reshape(y, (batch, length, d_inner)), x, D, z)
    return y, ops.reshape(ops.swapaxes(h, 2, 3), (batch, d_inner, d_state))


def _refuse_tracing_of_torch(x):
    """A tracer of torch would write out the loop for the one length that it sees."""
    if keras.backend.backend() == "torch" and ops.is_tensor(x.shape[1]):
        raise ValueError(
            "selective_scan cannot be exported to ONNX from torch: its loop over tokens has the length of the example. "
            "Export Mamba-1 as a SavedModel from TensorFlow (the same .keras file loads there), or use Mamba-2."
        )


def _softplus_backward(kept, gradients):
    """From the output, which the recurrence keeps."""
    (y,), (dy,) = kept, gradients
    if keras.backend.backend() == "torch":
        return (y.neg().expm1_().mul_(dy).neg_(),)
    return (dy * -ops.expm1(-after(dy, y)),)


_softplus = with_gradient(lambda x: (((y := softplus(x)),), (y,)), _softplus_backward)


def _forward(x, dt, A, B, C, starts, h):
    """h[t] = (1 - start[t]) exp(dt[t] A) h[t-1] + dt[t] x[t] B[t];  y[t] = C[t] h[t]."""
    u = dt * x
    fold, unfold, chunks = _folding(u, A.shape[1])
    blocks = tuple(None if v is None else fold(v) for v in (u, dt, B, C, starts))
    borders, h = (h[:, None], None) if chunks == 1 else _borders(blocks, A, h)
    work = _work_on_blocks(dt, A)

    def step(carry, block):
        h, y = work.outputs(*carry, block, A)
        return (h,), (y, carry[0])

    (last,), (y, kept) = over_blocks(step, (borders,), blocks)
    h = last[:, 0] if h is None else h
    return (unfold(y), h), tuple(v for v in (x, dt, A, B, C, kept, starts) if v is not None)


def _backward(residuals, gradients):
    x, dt, A, B, C, kept, *starts = residuals
    starts = starts[0] if starts else None
    dy, dh = gradients
    u = after(dy, dt) * x
    fold, unfold, chunks = _folding(u, A.shape[1])
    blocks = tuple(None if v is None else fold(v) for v in (u, dt, B, C, starts))
    ends, dh = (dh[:, None], None) if chunks == 1 else _adjoint_borders(blocks, fold(dy), A, dh)
    work = _work_on_blocks(dt, A)

    def step(carry, item):
        *block, before, dy = item
        dh, dA = carry
        dh, more, gradients = work.gradient(block, dy, before, dh, A)
        return (dh, dA + more), gradients

    dA = ops.zeros_like(kept[0])
    (first, dA), gradients = over_blocks(step, (ends, dA), blocks, (kept, fold(dy)), reverse=True)
    dA = ops.sum(dA, axis=(0, 1))
    dh = first[:, 0] if dh is None else dh
    du, ddt, dB, dC = map(unfold, gradients)
    dx, ddt = du * dt, plus_product(ddt, du, x)
    return dx, ddt, dA, dB, dC, None if starts is None else ops.zeros_like(starts), dh


_recurrence = with_gradient(_forward, _backward)


def _work_on_blocks(dt, A):
    """`outputs`, `last_state`, `adjoint_first_state` and `gradient` of a block, for one call."""
    if keras.backend.backend() == "torch":
        from dl_mamba.ops.selective_scan.block_at_once import Blocks

        return Blocks(dt, A)
    return block_by_token


def _folding(u, d_state):
    """(b, l, ...) -> (blocks, k, b, c, ...) with zeros behind the last token, the way back, and how many chunks."""
    length = size_of(u, 1)
    size, chunks = _sizes(u, d_state)
    blocks = (length + chunks * size - 1) // (chunks * size)
    padding = chunks * blocks * size - length

    def fold(tensor):
        tail = len(tensor.shape) - 2
        tensor = padded(tensor, padding)
        shape = ops.shape(tensor)
        tensor = ops.reshape(tensor, (shape[0], chunks, blocks, size, *shape[2:]))
        return ops.transpose(tensor, (2, 3, 0, 1, *range(4, 4 + tail)))

    def unfold(tensor):
        tensor = ops.transpose(tensor, (2, 3, 0, 1, *range(4, len(tensor.shape))))
        shape = ops.shape(tensor)
        tensor = ops.reshape(tensor, (shape[0], chunks * blocks * size, *shape[4:]))
        return first(tensor, length)

    return fold, unfold, chunks


def _sizes(u, d_state):
    """Tokens of a block, and chunks that walk in lock-step."""
    batch, length = u.shape[:2]
    numbers = (batch if isinstance(batch, int) else 1) * math.prod(u.shape[2:]) * d_state
    on_cpu = not on_accelerator(u)
    fitting = max(1, (CPU_STATES if on_cpu else ACCELERATOR_STATES) // numbers)
    chunks = min(fitting, max(1, math.isqrt(length)) if isinstance(length, int) else 16)  # beyond, their walk is longer
    block = BLOCK
    if on_cpu and keras.backend.backend() == "torch":
        block = min(BLOCK, max(SHORTEST, _cached(numbers * chunks) // (numbers * chunks)))
    if not isinstance(length, int):
        return block, chunks
    tokens = -(-length // chunks)
    return -(-tokens // -(-tokens // block)), chunks  # equal blocks need the least padding


def _cached(numbers):
    """Numbers in the states of a block for torch, `numbers` in those of a token."""
    import torch

    from dl_mamba.ops import products

    calls_cost_more = numbers <= CPU_STATES and not products.on_amd()  # than what the cache misses
    return (CACHED * 3 // 2 if calls_cost_more else CACHED) * min(4, torch.get_num_threads())


def _borders(blocks, A, h):
    """States at the start of each chunk (b, c, g, n, e), and behind the last token (b, g, n, e)."""
    u, dt, *_ = blocks
    work = _work_on_blocks(dt, A)
    empty = ops.zeros((*ops.shape(u)[2:5], *A.shape[1:]), dtype=u.dtype)
    (added,), _ = over_blocks(lambda carry, block: ((work.last_state(*carry, block, A),), ()), (empty,), blocks)
    return _over_chunks(blocks, A, added, h)


def _adjoint_borders(blocks, dy, A, dh):
    """Gradients of the states at the end of each chunk (b, c, g, n, e), and of the initial state."""
    work = _work_on_blocks(blocks[1], A)

    def step(carry, item):
        *block, dy = item
        return (work.adjoint_first_state(*carry, block, dy, A),), ()

    empty = ops.zeros((*ops.shape(dy)[2:5], *A.shape[1:]), dtype=dy.dtype)
    (added,), _ = over_blocks(step, (empty,), blocks, (dy,), reverse=True)
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
