"""States of SSD between chunks, forwards, and their gradients, backwards: one product for each chunk.

A program owns one head of one row, or a block of its channels and a segment of its chunks. For each chunk it reads two
tiles, Q x (P + N) numbers; if STORE, it writes the state before the chunk (its gradient behind the chunk) as
N x P numbers in the dtype of the inputs. Operations: 2 Q N P a chunk.
"""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.tiles import load_tile, state_address, state_inside


@triton.jit
def ssd_states(
    x,
    B,
    total,
    rest,
    scale,
    start,
    length,
    segment,
    states,
    end,
    X_TOKEN: tl.constexpr,
    B_TOKEN: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    REVERSE: tl.constexpr,
    STORE: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_START: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Forwards of x and B; in reverse of the gradient of y (as x) and of C (as B)."""
    row = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    block = tl.program_id(1)
    first = block * BP
    chunks = tl.cdiv(length, Q)
    low = tl.program_id(2) * segment
    high = tl.minimum(low + segment, chunks)
    dtype = x.dtype.element_ty
    rows = tl.arange(0, Q)
    tile = tl.arange(0, BN)[:, None] * BP + tl.arange(0, BP)[None, :]
    steps = (row * H + head) * chunks * Q
    x += row * length * X_TOKEN + head * P
    B += row * length * B_TOKEN + head // (H // G) * N
    inside = state_inside(N, P, BN, BP, first)
    place = ((row * tl.num_programs(2) + tl.program_id(2)) * H + head) * P * N
    if HAS_START:
        state = tl.load(state_address(start + place, N, BN, BP, first), mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.zeros((BN, BP), tl.float32)
    for i in range(low, high):
        chunk = i
        if REVERSE:
            chunk = high - 1 - (i - low)
        token = tl.cast(chunk, tl.int64) * Q
        left = length - chunk * Q
        here = steps + token
        sums = tl.load(total + here + rows)
        last = tl.load(total + here + Q - 1)
        writes = load_tile(B + token * B_TOKEN, rows, B_TOKEN, left, N, BN, 0)
        values = load_tile(x + token * X_TOKEN, rows, X_TOKEN, left, P, BP, first)
        if EXACT:
            fine = tl.load(rest + here + rows)
            fine_last = tl.load(rest + here + Q - 1)
        else:
            fine = 0.0
            fine_last = 0.0
        if REVERSE:
            weights = tl.exp2(sums + fine)
        else:
            weights = tl.load(scale + here + rows) * tl.exp2((last - sums) + (fine_last - fine))
        if STORE:
            at = ((row * chunks + chunk) * H + head) * tl.num_programs(1) + block
            tl.store(states + at * (BN * BP) + tile, state.to(dtype))
        added = (values * weights[:, None]).to(dtype)
        state = tl.dot(tl.trans(writes), added, state * tl.exp2(last + fine_last), input_precision=PRECISION)
    tl.store(state_address(end + place, N, BN, BP, first), state, mask=inside)


@triton.jit
def ssd_segments(
    total,
    rest,
    start,
    ends,
    length,
    segment,
    segments,
    starts,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    Q: tl.constexpr,
    COUNT: tl.constexpr,
    REVERSE: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_START: tl.constexpr,
):
    """The state before each segment (b, s, h, SIZE), from what each adds (`ends`) and how much it forgets.

    Reads and writes one state for each segment. COUNT: a power of two, at least the chunks of a segment.
    """
    row = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    chunks = tl.cdiv(length, Q)
    state = tl.zeros((BLOCK,), tl.float32)
    if HAS_START:
        state = tl.load(start + (row * H + head) * SIZE + at, mask=at < SIZE, other=0.0).to(tl.float32)
    for i in range(segments):
        s = i
        if REVERSE:
            s = segments - 1 - i
        place = ((row * segments + s) * H + head) * SIZE + at
        tl.store(starts + place, state, mask=at < SIZE)
        chunk = s * segment + tl.arange(0, COUNT)
        known = (tl.arange(0, COUNT) < segment) & (chunk < chunks)
        last = ((row * H + head) * chunks + chunk) * Q + Q - 1
        forgets = tl.load(total + last, mask=known, other=0.0)
        if EXACT:
            forgets += tl.load(rest + last, mask=known, other=0.0)
        state = state * tl.exp2(tl.sum(forgets, axis=0)) + tl.load(ends + place, mask=at < SIZE, other=0.0)
