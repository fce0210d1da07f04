"""SSD forward: outputs of all tokens in one pass, with the state on the chip.

A program owns one head of one row, or a block of its channels and a segment of its chunks, and walks over chunks of Q
tokens. For each it reads x, B, C (Q x (P + 2 N) numbers) and the steps, and writes y (Q x P): the state never
leaves the registers, and neither do the scores. Operations: 2 Q (Q N + Q P + 2 N P).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from dl_mamba.ops.kernels.ssd_steps import write_steps
from dl_mamba.ops.kernels.tiles import load_tile, state_address, state_inside, store_tile


@triton.jit
def walk(
    x,
    B,
    C,
    total,
    rest,
    scale,
    D,
    start,
    length,
    segment,
    part,
    parts,
    y,
    end,
    X_TOKEN: tl.constexpr,
    B_TOKEN: tl.constexpr,
    C_TOKEN: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_START: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Outputs of the chunks of a segment, `part` of `parts`, and behind the last one the state."""
    row = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    first = tl.program_id(1) * BP
    chunks = tl.cdiv(length, Q)
    low = part * segment
    high = tl.minimum(low + segment, chunks)
    dtype = x.dtype.element_ty
    rows = tl.arange(0, Q)
    steps = (row * H + head) * chunks * Q
    x += row * length * X_TOKEN + head * P
    y += (row * length * H + head) * P
    B += row * length * B_TOKEN + head // (H // G) * N
    C += row * length * C_TOKEN + head // (H // G) * N
    inside = state_inside(N, P, BN, BP, first)
    if HAS_START:
        at = start + ((row * parts + part) * H + head) * P * N
        state = tl.load(state_address(at, N, BN, BP, first), mask=inside, other=0.0).to(tl.float32)
    else:
        state = tl.zeros((BN, BP), tl.float32)
    if HAS_D:
        p = first + tl.arange(0, BP)
        skip = tl.load(D + head * P + p, mask=p < P, other=0.0)
    for chunk in range(low, high):
        token = tl.cast(chunk, tl.int64) * Q
        left = length - chunk * Q
        here = steps + token
        sums = tl.load(total + here + rows)
        weights = tl.load(scale + here + rows)
        last = tl.load(total + here + Q - 1)
        reads = load_tile(C + token * C_TOKEN, rows, C_TOKEN, left, N, BN, 0)
        writes = load_tile(B + token * B_TOKEN, rows, B_TOKEN, left, N, BN, 0)
        values = load_tile(x + token * X_TOKEN, rows, X_TOKEN, left, P, BP, first)
        between = sums[:, None] - sums[None, :]
        until_end = last - sums
        since_start = sums
        if EXACT:
            fine = tl.load(rest + here + rows)
            fine_last = tl.load(rest + here + Q - 1)
            between += fine[:, None] - fine[None, :]
            until_end += fine_last - fine
            since_start += fine
            last += fine_last
        scores = tl.dot(reads, tl.trans(writes), input_precision=PRECISION)
        decay = tl.exp2(tl.where(rows[:, None] >= rows[None, :], between, float("-inf")))
        scores = (scores * decay * weights[None, :]).to(dtype)
        out = tl.dot(reads, state.to(dtype), input_precision=PRECISION) * tl.exp2(since_start)[:, None]
        out = tl.dot(scores, values, out, input_precision=PRECISION)
        added = values * (weights * tl.exp2(until_end))[:, None]
        state = tl.dot(tl.trans(writes), added.to(dtype), state * tl.exp2(last), input_precision=PRECISION)
        if HAS_D:
            out += values * skip[None, :]
        store_tile(y + token * H * P, out, rows, H * P, left, P, BP, first)
    if high == chunks:
        at = end + (row * H + head) * P * N
        tl.store(state_address(at, N, BN, BP, first), state, mask=inside)


@triton.jit
def ssd_forward(
    x,
    B,
    C,
    total,
    rest,
    scale,
    D,
    start,
    length,
    segment,
    y,
    end,
    X_TOKEN: tl.constexpr,
    B_TOKEN: tl.constexpr,
    C_TOKEN: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_START: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y (b, l, h, p) without its gate, and the state behind the last token (b, h, p, n) float32."""
    if OVERLAP:
        gdc_wait()  # for the steps
    walk(
        x,
        B,
        C,
        total,
        rest,
        scale,
        D,
        start,
        length,
        segment,
        tl.program_id(2),
        tl.num_programs(2),
        y,
        end,
        X_TOKEN,
        B_TOKEN,
        C_TOKEN,
        H,
        P,
        N,
        G,
        Q,
        BP,
        BN,
        EXACT,
        HAS_D,
        HAS_START,
        PRECISION,
    )


@triton.jit
def ssd_short(
    dt,
    weights,
    flags,
    A,
    bias,
    x,
    B,
    C,
    D,
    start,
    length,
    y,
    end,
    total,
    rest,
    scale,
    X_TOKEN: tl.constexpr,
    B_TOKEN: tl.constexpr,
    C_TOKEN: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    Q: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    CHUNKS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_START: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`ssd_steps` and `ssd_forward` of at most CHUNKS chunks: a program makes the steps of its head first.

    Programs of several blocks of one head write the same steps.
    """
    row = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    token = tl.arange(0, CHUNKS)[:, None] * Q + tl.arange(0, Q)[None, :]
    write_steps(
        dt,
        weights,
        flags,
        A,
        bias,
        length,
        total,
        rest,
        scale,
        row,
        head,
        token,
        H,
        Q,
        LOW,
        HIGH,
        SOFTPLUS,
        HAS_BIAS,
        HAS_WEIGHTS,
        HAS_FLAGS,
        EXACT,
    )
    tl.debug_barrier()  # other threads read the steps
    walk(
        x,
        B,
        C,
        total,
        rest,
        scale,
        D,
        start,
        length,
        tl.cdiv(length, Q),
        0,
        1,
        y,
        end,
        X_TOKEN,
        B_TOKEN,
        C_TOKEN,
        H,
        P,
        N,
        G,
        Q,
        BP,
        BN,
        EXACT,
        HAS_D,
        HAS_START,
        PRECISION,
    )
