"""SSD backward: all gradients of a chunk, head after head.

A program owns one chunk of one row and some heads of a group. B C^T is computed once for all of them, and their
gradients of B and C are summed on the chip, in the order of the heads. For each head it reads x, dy (Q x P), the state
before the chunk and the gradient of the state behind it (N x P), and writes dx. Operations: 2 Q (2 Q P + 3 N P) a head.

Tiles have the token j that writes along rows and the token i that reads along columns: then no accumulator has to be
transposed on its way into a product.
"""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.tiles import load_tile, store_tile


@triton.jit
def ssd_gradient(
    x,
    dy,
    B,
    C,
    total,
    rest,
    scale,
    D,
    states,
    dstates,
    length,
    dx,
    dB,
    dC,
    dD,
    after,
    before,
    dscale,
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
    PB: tl.constexpr,
    SPLITS: tl.constexpr,
    EXACT: tl.constexpr,
    HAS_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of x, B and C (SPLITS parts), D (a part for each chunk), and of the steps; see `ssd_steps_gradient`."""
    chunks = tl.cdiv(length, Q)
    chunk = tl.program_id(0) % chunks
    row = (tl.program_id(0) // chunks).to(tl.int64)
    group = tl.program_id(1)
    split = tl.program_id(2).to(tl.int64)
    token = tl.cast(chunk, tl.int64) * Q
    left = length - chunk * Q
    dtype = x.dtype.element_ty
    rows = tl.arange(0, Q)
    tile = tl.arange(0, BN)[:, None] * BP + tl.arange(0, BP)[None, :]
    first_token = row * length + token
    writes = load_tile(B + first_token * B_TOKEN + group * N, rows, B_TOKEN, left, N, BN, 0)
    reads = load_tile(C + first_token * C_TOKEN + group * N, rows, C_TOKEN, left, N, BN, 0)
    products = tl.dot(writes, tl.trans(reads), input_precision=PRECISION)  # (j, i)
    dproducts = tl.zeros((Q, Q), tl.float32)
    dwrites = tl.zeros((Q, BN), tl.float32)
    dreads = tl.zeros((Q, BN), tl.float32)
    each: tl.constexpr = H // G * PB // SPLITS
    for k in range(each):
        part = (group * SPLITS + split.to(tl.int32)) * each + k
        head = part // PB
        first = part % PB * BP
        here = (row * H + head) * chunks * Q + token
        sums = tl.load(total + here + rows)
        weights = tl.load(scale + here + rows)
        last = tl.load(total + here + Q - 1)
        values = load_tile(x + first_token * X_TOKEN + head * P, rows, X_TOKEN, left, P, BP, first)
        douts = load_tile(dy + (first_token * H + head) * P, rows, H * P, left, P, BP, first)
        place = ((row * chunks + chunk) * H * PB + part) * (BN * BP)
        state = tl.load(states + place + tile)
        dstate = tl.load(dstates + place + tile)
        between = sums[None, :] - sums[:, None]
        until_end = last - sums
        since_start = sums
        if EXACT:
            fine = tl.load(rest + here + rows)
            fine_last = tl.load(rest + here + Q - 1)
            between += fine[None, :] - fine[:, None]
            until_end += fine_last - fine
            since_start += fine
            last += fine_last
        decay = tl.exp2(tl.where(rows[None, :] >= rows[:, None], between, float("-inf")))
        until_end = tl.exp2(until_end)
        since_start = tl.exp2(since_start)

        inner = tl.dot(values, tl.trans(douts), input_precision=PRECISION) * decay * weights[:, None]
        dproducts += inner
        inner *= products
        dvalues = tl.dot(writes, dstate, input_precision=PRECISION) * until_end[:, None]
        through_state = weights * tl.sum(dvalues * values, axis=1)
        dvalues = tl.dot((products * decay).to(dtype), douts, dvalues, input_precision=PRECISION)
        dweights = tl.sum(dvalues * values, axis=1)
        dvalues *= weights[:, None]
        if HAS_D:
            p = first + tl.arange(0, BP)
            dvalues += douts * tl.load(D + head * P + p, mask=p < P, other=0.0)[None, :]
            skip = tl.sum(values.to(tl.float32) * douts.to(tl.float32), axis=0)
            tl.store(dD + (tl.program_id(0).to(tl.int64) * H + head) * P + p, skip, mask=p < P)
        store_tile(dx + (first_token * H + head) * P, dvalues, rows, H * P, left, P, BP, first)

        read = tl.dot(douts, tl.trans(state), input_precision=PRECISION) * since_start[:, None]  # (i, n)
        dreads += read
        added = (values * (weights * until_end)[:, None]).to(dtype)
        dwrites = tl.dot(added, tl.trans(dstate), dwrites, input_precision=PRECISION)

        there = (row * H * PB + part) * chunks * Q + token + rows
        tl.store(after + there, tl.sum(inner, axis=0) - tl.sum(inner, axis=1) + tl.sum(read * reads, axis=1))
        tl.store(before + there, through_state)
        tl.store(dscale + there, dweights)
        crossing = tl.sum(tl.sum(state.to(tl.float32) * dstate.to(tl.float32), axis=1), axis=0)
        tl.store(carried + (row * H * PB + part) * chunks + chunk, crossing * tl.exp2(last))

    dproducts = dproducts.to(dtype)
    dwrites = tl.dot(dproducts, reads, dwrites, input_precision=PRECISION)
    dreads += tl.trans(tl.dot(tl.trans(writes), dproducts, input_precision=PRECISION))
    batch = tl.num_programs(0) // chunks
    to = ((split * batch * length + first_token) * G + group) * N
    store_tile(dB + to, dwrites, rows, G * N, left, N, BN, 0)
    store_tile(dC + to, dreads, rows, G * N, left, N, BN, 0)
