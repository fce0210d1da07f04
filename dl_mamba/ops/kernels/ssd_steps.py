"""Step sizes of SSD: from raw dt to cumulative decays before the products, and the gradients back after them.

Both read and write a few bytes for each token and head, 1/60 of what the products move.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dl_mamba.ops.kernels.tiles import sigmoid, softplus

LOG2E = tl.constexpr(1.4426950408889634)
FORGOTTEN = tl.constexpr(-256.0)  # 2**-256 is 0 in float32: log2 decay of an emptied state
COARSE = tl.constexpr(1024.0)  # sums of 64 multiples of 1/1024 below 2**14 are exact in float32


@triton.jit
def raw_and_size(dt, bias, head, at, inside, H: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr):
    """dt with its bias, and the step size before limits. `head` is broadcast against `at`."""
    raw = tl.load(dt + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += tl.load(bias + head, mask=head < H, other=0.0)
    size = raw
    if SOFTPLUS:
        size = softplus(raw)
    return raw, size


@triton.jit
def write_steps(
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
    H: tl.constexpr,
    Q: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """What `ssd_steps` writes, for a tile whose second axis is a chunk; `head` and `token` are broadcast."""
    inside = (head < H) & (token < length)
    at = (row * length + token) * H + head
    _, size = raw_and_size(dt, bias, head, at, inside, H, HAS_BIAS, SOFTPLUS)
    size = tl.minimum(tl.maximum(size, LOW), HIGH) if (LOW > 0.0 or not SOFTPLUS) else tl.minimum(size, HIGH)
    real = inside
    if HAS_FLAGS:
        flag = tl.load(flags + row * length + token, mask=token < length, other=2.0)
        real = real & (flag < 2.0)
    size = tl.where(real, size, 0.0)
    weight = size
    if HAS_WEIGHTS:
        weight = tl.where(real, tl.load(weights + at, mask=inside, other=0.0).to(tl.float32), 0.0)
    decay = tl.maximum(size * (tl.load(A + head, mask=head < H, other=0.0) * LOG2E), FORGOTTEN)
    if HAS_FLAGS:
        decay = tl.where(flag == 1.0, FORGOTTEN, decay)
    coarse = tl.floor(decay * COARSE + 0.5) / COARSE
    fine = tl.cumsum(decay - coarse, axis=1)
    coarse = tl.cumsum(coarse, axis=1)
    tokens = tl.cdiv(length, Q) * Q
    to = (row * H + head) * tokens + token
    there = (head < H) & (token < tokens)
    if EXACT:
        tl.store(total + to, coarse, mask=there)
        tl.store(rest + to, fine, mask=there)
    else:
        tl.store(total + to, coarse + fine, mask=there)
    tl.store(scale + to, weight, mask=there)


@triton.jit
def ssd_steps(
    dt,
    weights,
    flags,
    A,
    bias,
    length,
    total,
    rest,
    scale,
    H: tl.constexpr,
    HB: tl.constexpr,
    Q: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    EXACT: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Running sums of log2 decay within each chunk, and the weight of each token: (b, h, chunks Q) float32.

    The sum has two parts, of which `total` is exact, so that differences of sums do not cancel; without EXACT it is
    one. Flags: 1 empties the state before the token, 2 is padding.
    """
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    chunks = tl.cdiv(length, Q)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    token = ((tl.program_id(0) % chunks) * Q + tl.arange(0, Q))[None, :]
    head = (tl.program_id(1) * HB + tl.arange(0, HB))[:, None]
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


@triton.jit
def ssd_steps_gradient(
    dt,
    flags,
    A,
    bias,
    after,
    before,
    dscale,
    after_state,
    carried,
    length,
    ddt,
    dweights,
    dA,
    dbias,
    H: tl.constexpr,
    HB: tl.constexpr,
    PB: tl.constexpr,
    NB: tl.constexpr,
    Q: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
):
    """Gradients of raw dt, of the weights, and each chunk's part of those of A and of the bias.

    The log decay of token k gets `after` and `after_state` of the tokens from k on, `before` of those before k, and
    `carried`, the part of the state that crosses the whole chunk. Each comes in PB blocks of the head dimension, what
    the state before the chunk gives also in NB blocks of the state dimension.
    """
    chunks = tl.cdiv(length, Q)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    tokens = chunk * Q + tl.arange(0, Q)
    heads = tl.program_id(1) * HB + tl.arange(0, HB)
    valid = heads < H
    from_k = tl.zeros((HB, Q), tl.float32)
    to_k = tl.zeros((HB, Q), tl.float32)
    weight = tl.zeros((HB, Q), tl.float32)
    whole = tl.zeros((HB,), tl.float32)
    for block in tl.static_range(PB):
        part = row * H * PB + heads * PB + block
        to = part[:, None] * (chunks * Q) + tokens[None, :]
        from_k += tl.load(after + to, mask=valid[:, None], other=0.0)
        to_k += tl.load(before + to, mask=valid[:, None], other=0.0)
        weight += tl.load(dscale + to, mask=valid[:, None], other=0.0)
        for n in tl.static_range(NB):
            to = (part[:, None] * NB + n) * (chunks * Q) + tokens[None, :]
            from_k += tl.load(after_state + to, mask=valid[:, None], other=0.0)
            whole += tl.load(carried + (part * NB + n) * chunks + chunk, mask=valid, other=0.0)
    dlog = tl.cumsum(from_k, axis=1, reverse=True) + (tl.cumsum(to_k, axis=1) - to_k) + whole[:, None]
    inside = valid[:, None] & (tokens[None, :] < length)
    at = (row * length + tokens[None, :]) * H + heads[:, None]
    raw, size = raw_and_size(dt, bias, heads[:, None], at, inside, H, HAS_BIAS, SOFTPLUS)
    passes = inside & (size <= HIGH)
    if LOW > 0.0 or not SOFTPLUS:
        passes = passes & (size >= LOW)
        size = tl.maximum(size, LOW)
    size = tl.minimum(size, HIGH)
    real = inside
    rate = tl.load(A + heads, mask=valid, other=0.0)[:, None]
    dlog = tl.where(size * rate * LOG2E >= FORGOTTEN, dlog, 0.0)
    if HAS_FLAGS:
        flag = tl.load(flags + row * length + tokens, mask=tokens < length, other=2.0)
        real = real & (flag[None, :] < 2.0)
        dlog = tl.where(flag[None, :] == 1.0, 0.0, dlog)
    dlog = tl.where(real, dlog, 0.0)
    weight = tl.where(real, weight, 0.0)
    dsize = dlog * rate
    if HAS_WEIGHTS:
        tl.store(dweights + at, weight.to(dweights.dtype.element_ty), mask=inside)
    else:
        dsize += weight
    draw = tl.where(passes & real, dsize, 0.0)
    if SOFTPLUS:
        draw *= sigmoid(raw)
    tl.store(ddt + at, draw.to(ddt.dtype.element_ty), mask=inside)
    tl.store(dA + tl.program_id(0) * H + heads, tl.sum(dlog * size, axis=1), mask=valid)
    tl.store(dbias + tl.program_id(0) * H + heads, tl.sum(draw, axis=1), mask=valid)
