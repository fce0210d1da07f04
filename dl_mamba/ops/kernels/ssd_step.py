"""SSD of one token: decoding. A program owns BP channels of one head and reads and writes their states once."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dl_mamba.ops.kernels.tiles import softplus


@triton.jit
def ssd_step(
    x,
    dt,
    A,
    B,
    C,
    D,
    bias,
    weights,
    start,
    flags,
    y,
    end,
    X_ROW: tl.constexpr,
    DT_ROW: tl.constexpr,
    B_ROW: tl.constexpr,
    C_ROW: tl.constexpr,
    WEIGHTS_ROW: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y (b, 1, h, p) without its gate, and the next state (b, h, p, n) float32."""
    if OVERLAP:
        gdc_launch_dependents()
    row = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    n = tl.arange(0, BN)
    at = ((row * H + head) * P + p[:, None]) * N + n[None, :]
    inside = (p[:, None] < P) & (n[None, :] < N)
    if HAS_START:
        before = tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()  # for what the kernels before write: x, dt, B, C
    size = tl.load(dt + row * DT_ROW + head).to(tl.float32)
    if HAS_BIAS:
        size += tl.load(bias + head)
    if SOFTPLUS:
        size = softplus(size)
    size = tl.minimum(tl.maximum(size, LOW), HIGH) if (LOW > 0.0 or not SOFTPLUS) else tl.minimum(size, HIGH)
    weight = size
    if HAS_WEIGHTS:
        weight = tl.load(weights + row * WEIGHTS_ROW + head).to(tl.float32)
    decay = tl.exp(size * tl.load(A + head))
    if HAS_FLAGS:
        flag = tl.load(flags + row)
        decay = tl.where(flag < 1.0, decay, tl.where(flag < 2.0, 0.0, 1.0))
        weight = tl.where(flag < 2.0, weight, 0.0)
    value = tl.load(x + row * X_ROW + head * P + p, mask=p < P, other=0.0).to(tl.float32)
    write = tl.load(B + row * B_ROW + head // (H // G) * N + n, mask=n < N, other=0.0).to(tl.float32)
    read = tl.load(C + row * C_ROW + head // (H // G) * N + n, mask=n < N, other=0.0).to(tl.float32)
    state = (weight * value)[:, None] * write[None, :]
    if HAS_START:
        state += decay * before
        tl.debug_barrier()  # `end` may be `start`, and a small tile lies in several warps
    tl.store(end + at, state, mask=inside)
    out = tl.sum(state * read[None, :], axis=1)
    if HAS_D:
        out += value * tl.load(D + head * P + p, mask=p < P, other=0.0)
    tl.store(y + (row * H + head) * P + p, out.to(y.dtype.element_ty), mask=p < P)
