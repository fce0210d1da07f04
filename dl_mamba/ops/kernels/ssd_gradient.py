"""SSD backward inside a chunk, head after head: two kernels that each own one chunk of one row and some heads.

`ssd_gradient_values` reads x, dy (Q x P) and the gradient of the state behind the chunk (N x P) for each head and
writes dx. B C^T is computed once for all heads of a group, and its gradient is summed on the chip, in the order of the
heads. Operations: 2 Q (2 Q P + N P) a head.

`ssd_gradient_groups` reads x, dy and both states and sums the gradients of B and C on the chip, for a block of the
state dimension. Operations: 4 Q N P a head.

Tiles have the token j that writes along rows and the token i that reads along columns: then no accumulator has to be
transposed on its way into a product.
"""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.tiles import load_tile, store_tile


@triton.jit
def ssd_gradient_values(
    x,
    dy,
    B,
    C,
    total,
    rest,
    scale,
    D,
    dstates,
    length,
    dx,
    dproducts,
    dD,
    after,
    before,
    dscale,
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
    PB: tl.constexpr,
    SPLITS: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of x, D (a part for each chunk), B C^T (SPLITS parts), and of the steps (`ssd_steps_gradient`)."""
    chunks = tl.cdiv(length, Q)
    chunk = tl.program_id(0) % chunks
    row = (tl.program_id(0) // chunks).to(tl.int64)
    group = tl.program_id(1)
    split = tl.program_id(2)
    token = tl.cast(chunk, tl.int64) * Q
    left = length - chunk * Q
    dtype = x.dtype.element_ty
    rows = tl.arange(0, Q)
    tile = tl.arange(0, BN)[:, None] * BP + tl.arange(0, BP)[None, :]
    first_token = row * length + token
    writes = load_tile(B + first_token * B_TOKEN + group * N, rows, B_TOKEN, left, N, BN, 0)
    reads = load_tile(C + first_token * C_TOKEN + group * N, rows, C_TOKEN, left, N, BN, 0)
    products = tl.dot(writes, tl.trans(reads), input_precision=PRECISION)  # (j, i)
    summed = tl.zeros((Q, Q), tl.float32)
    each: tl.constexpr = H // G * PB // SPLITS
    for k in range(each):
        part = (group * SPLITS + split) * each + k
        head = part // PB
        first = part % PB * BP
        here = (row * H + head) * chunks * Q + token
        sums = tl.load(total + here + rows)
        weights = tl.load(scale + here + rows)
        last = tl.load(total + here + Q - 1)
        values = load_tile(x + first_token * X_TOKEN + head * P, rows, X_TOKEN, left, P, BP, first)
        douts = load_tile(dy + (first_token * H + head) * P, rows, H * P, left, P, BP, first)
        dstate = tl.load(dstates + ((row * chunks + chunk) * H * PB + part) * (BN * BP) + tile)
        between = sums[None, :] - sums[:, None]
        until_end = last - sums
        if EXACT:
            fine = tl.load(rest + here + rows)
            between += fine[None, :] - fine[:, None]
            until_end += tl.load(rest + here + Q - 1) - fine
        decay = tl.exp2(tl.where(rows[None, :] >= rows[:, None], between, float("-inf")))
        inner = tl.dot(values, tl.trans(douts), input_precision=PRECISION) * decay * weights[:, None]
        summed += inner
        inner *= products
        there = (row * H * PB + part) * chunks * Q + token + rows
        tl.store(after + there, tl.sum(inner, axis=0) - tl.sum(inner, axis=1))
        dvalues = tl.dot(writes, dstate, input_precision=PRECISION) * tl.exp2(until_end)[:, None]
        tl.store(before + there, weights * tl.sum(dvalues * values, axis=1))
        dvalues = tl.dot((products * decay).to(dtype), douts, dvalues, input_precision=PRECISION)
        tl.store(dscale + there, tl.sum(dvalues * values, axis=1))
        dvalues *= weights[:, None]
        if HAS_D:
            p = first + tl.arange(0, BP)
            dvalues += douts * tl.load(D + head * P + p, mask=p < P, other=0.0)[None, :]
            skip = tl.sum(values.to(tl.float32) * douts.to(tl.float32), axis=0)
            tl.store(dD + (tl.program_id(0).to(tl.int64) * H + head) * P + p, skip, mask=p < P)
        store_tile(dx + (first_token * H + head) * P, dvalues, rows, H * P, left, P, BP, first)
    at = (tl.program_id(0).to(tl.int64) * G + group) * SPLITS + split
    tl.store(dproducts + at * (Q * Q) + rows[:, None] * Q + rows[None, :], summed.to(dtype))


@triton.jit
def ssd_gradient_groups(
    x,
    dy,
    B,
    C,
    total,
    rest,
    scale,
    states,
    dstates,
    dproducts,
    length,
    dB,
    dC,
    after,
    carried,
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
    NB: tl.constexpr,
    PB: tl.constexpr,
    SPLITS: tl.constexpr,
    EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of B and C (SPLITS parts), and of the decays through the state before the chunk.

    BN: rows of a state in this program, one block of NB.
    """
    chunks = tl.cdiv(length, Q)
    block = tl.program_id(0) % NB
    chunk = tl.program_id(0) // NB % chunks
    row = (tl.program_id(0) // NB // chunks).to(tl.int64)
    group = tl.program_id(1)
    split = tl.program_id(2)
    token = tl.cast(chunk, tl.int64) * Q
    left = length - chunk * Q
    dtype = x.dtype.element_ty
    rows = tl.arange(0, Q)
    tile = (block * BN + tl.arange(0, BN))[:, None] * BP + tl.arange(0, BP)[None, :]
    first_token = row * length + token
    reads = load_tile(C + first_token * C_TOKEN + group * N, rows, C_TOKEN, left, N, BN, block * BN)
    dwrites = tl.zeros((Q, BN), tl.float32)
    dreads = tl.zeros((Q, BN), tl.float32)
    each: tl.constexpr = H // G * PB // SPLITS
    for k in range(each):
        part = (group * SPLITS + split) * each + k
        head = part // PB
        first = part % PB * BP
        here = (row * H + head) * chunks * Q + token
        sums = tl.load(total + here + rows)
        weights = tl.load(scale + here + rows)
        last = tl.load(total + here + Q - 1)
        values = load_tile(x + first_token * X_TOKEN + head * P, rows, X_TOKEN, left, P, BP, first)
        douts = load_tile(dy + (first_token * H + head) * P, rows, H * P, left, P, BP, first)
        place = ((row * chunks + chunk) * H * PB + part) * (NB * BN * BP)
        state = tl.load(states + place + tile)
        dstate = tl.load(dstates + place + tile)
        until_end = last - sums
        if EXACT:
            fine = tl.load(rest + here + rows)
            fine_last = tl.load(rest + here + Q - 1)
            until_end += fine_last - fine
            sums += fine
            last += fine_last
        read = tl.dot(douts, tl.trans(state), input_precision=PRECISION) * tl.exp2(sums)[:, None]
        dreads += read
        added = (values * (weights * tl.exp2(until_end))[:, None]).to(dtype)
        dwrites = tl.dot(added, tl.trans(dstate), dwrites, input_precision=PRECISION)
        at = (row * H * PB + part) * NB + block
        tl.store(after + at * chunks * Q + token + rows, tl.sum(read * reads, axis=1))
        crossing = tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), axis=1), axis=0)
        tl.store(carried + at * chunks + chunk, crossing * tl.exp2(last))
    writes = load_tile(B + first_token * B_TOKEN + group * N, rows, B_TOKEN, left, N, BN, block * BN)
    at = ((row * chunks + chunk) * G + group) * SPLITS + split
    square = dproducts + at * (Q * Q)
    upright = tl.load(square + rows[:, None] * Q + rows[None, :])  # (j, i)
    dwrites = tl.dot(upright, reads, dwrites, input_precision=PRECISION)
    dreads = tl.dot(tl.trans(upright), writes, dreads, input_precision=PRECISION)
    batch = tl.num_programs(0) // NB // chunks
    to = ((tl.cast(split, tl.int64) * batch * length + first_token) * G + group) * N
    store_tile(dB + to, dwrites, rows, G * N, left, N, BN, block * BN)
    store_tile(dC + to, dreads, rows, G * N, left, N, BN, block * BN)
