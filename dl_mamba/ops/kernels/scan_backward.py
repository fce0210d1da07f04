"""Selective scan backward: from the last K tokens to the first, states computed again from the one saved before them.

For a token and channel it reads x, dt, dy (and z) twice and writes dx, ddt (and dz). The gradients of B and C are
summed over the R E channels of a program and written once for each program; those of A, D and the bias stay in
registers to the end. Work: two exp2 and fifteen multiplications or additions for each state.
"""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.scan_tiles import channels_of, load_tokens, saved_states, states_of, step_size, step_slope
from dl_mamba.ops.kernels.tiles import sigmoid

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def scan_backward(
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    bias,
    flags,
    dy,
    dend,
    saved,
    length,
    dx,
    ddt,
    dz,
    dB,
    dC,
    dA,
    dD,
    dbias,
    dstart,
    X_TOKEN: tl.constexpr,
    DT_TOKEN: tl.constexpr,
    B_TOKEN: tl.constexpr,
    C_TOKEN: tl.constexpr,
    Z_TOKEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    G: tl.constexpr,
    BN: tl.constexpr,
    R: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    EXACT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
):
    """All gradients; those of B and C in a part for each program, those of A, D and the bias for each row."""
    blocks: tl.constexpr = (CHANNELS + R * E - 1) // (R * E)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    channels = channels_of(block, R, E)
    valid = channels < CHANNELS
    group = block * (R * E) // (CHANNELS // G)
    at, exists = states_of(channels, N, BN, CHANNELS)
    n = tl.arange(0, BN)
    rates = tl.load(A + at, mask=exists, other=0.0) * LOG2E
    dstate = tl.load(dend + row * CHANNELS * N + at, mask=exists, other=0.0)
    drates = tl.zeros((E, BN, R), tl.float32)
    doffset = tl.zeros((E, R), tl.float32)
    dskip = tl.zeros((E, R), tl.float32)
    offset = tl.zeros((E, R), tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + channels, mask=valid, other=0.0)
    skip = tl.zeros((E, R), tl.float32)
    if HAS_D:
        skip = tl.load(D + channels, mask=valid, other=0.0)
    first = row * length
    x += first * X_TOKEN
    dt += first * DT_TOKEN
    z += first * Z_TOKEN
    dy += first * CHANNELS
    B += first * B_TOKEN + group * N
    C += first * C_TOKEN + group * N
    batch = tl.num_programs(0) // blocks
    partial = tl.cast(block, tl.int64) * batch * length + first
    tile = saved_states(R, BN, E)
    parts = tl.cdiv(length, K)
    loaded = load_tokens(
        x,
        dt,
        z,
        dy,
        B,
        C,
        channels,
        valid,
        parts - 1,
        length,
        X_TOKEN,
        DT_TOKEN,
        Z_TOKEN,
        B_TOKEN,
        C_TOKEN,
        CHANNELS,
        N,
        BN,
        K,
        HAS_Z,
        True,
    )
    for i in range(parts):
        part = parts - 1 - i
        place = ((row * parts + part) * blocks + block) * (R * BN * E)
        state = tl.load(saved + place + tile).to(tl.float32)
        coming = load_tokens(
            x,
            dt,
            z,
            dy,
            B,
            C,
            channels,
            valid,
            part - 1,
            length,
            X_TOKEN,
            DT_TOKEN,
            Z_TOKEN,
            B_TOKEN,
            C_TOKEN,
            CHANNELS,
            N,
            BN,
            K,
            HAS_Z,
            True,
        )
        values, raws, gates, douts, writes, reads = loaded
        befores, sizes = (), ()
        for k in tl.static_range(K):
            token = tl.cast(part, tl.int64) * K + k
            size = step_size(raws[k].to(tl.float32) + offset, EXACT, SOFTPLUS)
            size = tl.where(token < length, size, 0.0)
            decay = tl.exp2(size[:, None, :] * rates)
            if HAS_FLAGS:
                flag = tl.load(flags + first + token, mask=token < length, other=2.0)
                size = tl.where(flag < 2.0, size, 0.0)
                decay = tl.where(flag < 1.0, decay, tl.where(flag < 2.0, 0.0, 1.0))
            befores = befores + (state,)
            sizes = sizes + (size,)
            added = size * values[k].to(tl.float32)
            state = decay * state + added[:, None, :] * writes[k].to(tl.float32)[None, :, None]
        for k in tl.static_range(K - 1, -1, -1):
            token = tl.cast(part, tl.int64) * K + k
            real = token < length
            inside = valid & real
            to = (first + token) * CHANNELS + channels
            value = values[k].to(tl.float32)
            dout = douts[k].to(tl.float32)
            write = writes[k].to(tl.float32)[None, :, None]
            read = reads[k].to(tl.float32)[None, :, None]
            size = sizes[k]
            decay = tl.exp2(size[:, None, :] * rates)
            if HAS_FLAGS:
                flag = tl.load(flags + first + token, mask=real, other=2.0)
                decay = tl.where(flag < 1.0, decay, tl.where(flag < 2.0, 0.0, 1.0))
            kept = decay * befores[k]
            after = kept + (size * value)[:, None, :] * write
            if HAS_Z:
                gate = gates[k].to(tl.float32)
                opens = sigmoid(gate)
                out = tl.sum(after * read, axis=1) + skip * value
                dgate = dout * out * opens * (1.0 + gate * (1.0 - opens))
                tl.store(dz + to, dgate.to(dz.dtype.element_ty), mask=inside)
                dout *= gate * opens
            of_read = tl.sum(tl.sum(dout[:, None, :] * after, axis=2), axis=0)
            dstate += dout[:, None, :] * read
            of_write = tl.sum(tl.sum((size * value)[:, None, :] * dstate, axis=2), axis=0)
            dadded = tl.sum(dstate * write, axis=1)
            dlog = dstate * kept
            drates += dlog * size[:, None, :]
            dsize = tl.sum(dlog * rates, axis=1) * LN2 + dadded * value
            if HAS_FLAGS:
                dsize = tl.where(flag < 2.0, dsize, 0.0)
            if SOFTPLUS:
                dsize *= step_slope(raws[k].to(tl.float32) + offset, size, EXACT)
            dstate *= decay
            tl.store(dx + to, (dadded * size + dout * skip).to(dx.dtype.element_ty), mask=inside)
            tl.store(ddt + to, dsize.to(ddt.dtype.element_ty), mask=inside)
            there = (partial + token) * N + n
            tl.store(dB + there, of_write.to(dB.dtype.element_ty), mask=(n < N) & real)
            tl.store(dC + there, of_read.to(dC.dtype.element_ty), mask=(n < N) & real)
            doffset += tl.where(real, dsize, 0.0)
            dskip += dout * value
        loaded = coming
    tl.store(dstart + row * CHANNELS * N + at, dstate, mask=exists)
    tl.store(dA + row * CHANNELS * N + at, drates, mask=exists)
    tl.store(dD + row * CHANNELS + channels, dskip, mask=valid)
    tl.store(dbias + row * CHANNELS + channels, doffset, mask=valid)
