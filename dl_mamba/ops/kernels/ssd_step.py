"""SSD of one token: decoding. A program owns BP channels of one head and reads and writes their states once."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dl_mamba.ops.kernels.tiles import sigmoid, softplus


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
    z,
    scale,
    y,
    end,
    squares,
    X_ROW: tl.constexpr,
    X_AT: tl.constexpr,
    DT_ROW: tl.constexpr,
    DT_AT: tl.constexpr,
    B_ROW: tl.constexpr,
    B_AT: tl.constexpr,
    C_ROW: tl.constexpr,
    C_AT: tl.constexpr,
    WEIGHTS_ROW: tl.constexpr,
    WEIGHTS_AT: tl.constexpr,
    Z_ROW: tl.constexpr,
    Z_AT: tl.constexpr,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    LOG_A: tl.constexpr,
    HAS_D: tl.constexpr,
    D_HEAD: tl.constexpr,
    D_CHANNEL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    HAS_Z: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y (b, 1, h, p) and the next state (b, h, p, n); with z y SiLU(z) scale, and sums of squares of y SiLU(z).

    `scale` is (h, p). Tensors of a token lie NAME_AT numbers behind their pointers, and rows NAME_ROW apart. With LOG_A
    `A` is log(-A). `end` may be `start`. Each program writes one of the sums (b, h programs).
    """
    if OVERLAP:
        gdc_launch_dependents()
    row = (tl.program_id(0) // H).to(tl.int64)
    head = tl.program_id(0) % H
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    n = tl.arange(0, BN)
    at = ((row * H + head) * P + p[:, None]) * N + n[None, :]
    inside = (p[:, None] < P) & (n[None, :] < N)
    if HAS_START:
        before = tl.load(start + at, mask=inside, other=0.0)
    if OVERLAP:
        gdc_wait()  # for what the kernels before write: x, dt, B, C, z
    value = tl.load(x + X_AT + row * X_ROW + head * P + p, mask=p < P, other=0.0)
    group = head // (H // G) * N
    write = tl.load(B + B_AT + row * B_ROW + group + n, mask=n < N, other=0.0)
    read = tl.load(C + C_AT + row * C_ROW + group + n, mask=n < N, other=0.0)
    if HAS_D:
        skip = tl.load(D + head * D_HEAD + p * D_CHANNEL, mask=p < P, other=0.0)
    if HAS_Z:
        opens = tl.load(z + Z_AT + row * Z_ROW + head * P + p, mask=p < P, other=0.0)
        factor = tl.load(scale + head * P + p, mask=p < P, other=0.0)
    # These loads are under way before the step size is waited for, and before a store: `end` may be `start`, of which a
    # small tile lies in several warps.
    tl.debug_barrier()
    size = tl.load(dt + DT_AT + row * DT_ROW + head).to(tl.float32)
    if HAS_BIAS:
        size += tl.load(bias + head)
    if SOFTPLUS:
        size = softplus(size)
    size = tl.minimum(tl.maximum(size, LOW), HIGH) if (LOW > 0.0 or not SOFTPLUS) else tl.minimum(size, HIGH)
    weight = size
    if HAS_WEIGHTS:
        weight = tl.load(weights + WEIGHTS_AT + row * WEIGHTS_ROW + head).to(tl.float32)
    rate = tl.load(A + head)
    if LOG_A:
        rate = -tl.exp(rate)
    decay = tl.exp(size * rate)
    if HAS_FLAGS:
        flag = tl.load(flags + row)
        decay = tl.where(flag < 1.0, decay, tl.where(flag < 2.0, 0.0, 1.0))
        weight = tl.where(flag < 2.0, weight, 0.0)
    value, write, read = value.to(tl.float32), write.to(tl.float32), read.to(tl.float32)
    state = (weight * value)[:, None] * write[None, :]
    if HAS_START:
        state += decay * before.to(tl.float32)
    tl.store(end + at, state.to(end.dtype.element_ty), mask=inside)
    out = tl.sum(state * read[None, :], axis=1)
    if HAS_D:
        out += value * skip
    if HAS_Z:
        opens = opens.to(tl.float32)
        out *= opens * sigmoid(opens)
        to = (row * H + head) * tl.num_programs(1) + tl.program_id(1)
        tl.store(squares + to, tl.sum(out * out, axis=0))
        out *= factor.to(tl.float32)
    tl.store(y + (row * H + head) * P + p, out.to(y.dtype.element_ty), mask=p < P)
