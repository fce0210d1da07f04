"""Selective scan backward: from the last K tokens to the first, states computed again from the one saved before them.

For a token and channel it reads x, dt, dy (and z) and writes dx, ddt (and dz). The gradients of B and C are
summed over the R E channels of a program and written once for each program; those of A, D and the bias stay in
registers to the end. Work: one exp2 and thirteen multiplications or additions for each state.

QUICK, for bfloat16 and 16 states: each sum over channels or states ends in the lane that writes it (`scan_lanes`).
"""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.scan_lanes import (
    for_four_states,
    over_four_states,
    plus_product,
    sum_over_states,
    sums_over_channels,
    sums_over_states,
    unordered,
)
from dl_mamba.ops.kernels.scan_tiles import (
    channels_of,
    load_tokens,
    quick_sigmoid,
    saved_states,
    states_of,
    step_size,
    step_slope,
    store,
    widened,
)
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
    WHOLE: tl.constexpr,
    QUICK: tl.constexpr,
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
    if QUICK:
        m = tl.arange(0, 4)[:, None]
        lane = tl.arange(0, E)[None, :]
        own = block * (R * E) + unordered(lane * R + m // 2)
        own_to = tl.where(m % 2 == 1, ddt + own, dx + own)
        own_gate = dz + own
        own_row = tl.where(lane < 4, dB, dC) + unordered(m * 4 + lane % 4)
        doffset = tl.zeros((4, E), tl.float32)
    else:
        doffset = tl.zeros((E, R), tl.float32)
    dskip = tl.zeros((E, 4, R) if QUICK else (E, R), tl.float32)
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
        channels,
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
        WHOLE,
    )
    saved += (row * parts * blocks + block) * (R * BN * E) + tile
    before = tl.load(saved + (parts - 1).to(tl.int64) * (blocks * R * BN * E))
    for i in range(parts):
        part = parts - 1 - i
        ahead = tl.maximum(part - 1, 0)
        state = before.to(tl.float32)
        before = tl.load(saved + ahead.to(tl.int64) * (blocks * R * BN * E))
        coming = load_tokens(
            x,
            dt,
            z,
            dy,
            B,
            C,
            channels,
            channels,
            ahead,
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
            WHOLE,
        )
        if part * K < length:  # always: a block of its own, so that the loads before it stay before it
            values, raws, gates, douts, writes, reads = loaded
            decays, keeps, states, sizes = (), (), (), ()
            for k in tl.static_range(K):
                token = tl.cast(part, tl.int64) * K + k
                size = step_size(widened(raws[k]) + offset, EXACT, SOFTPLUS)
                if not WHOLE:
                    size = tl.where(token < length, size, 0.0)
                decay = tl.exp2(size[:, None, :] * rates)
                if HAS_FLAGS:
                    flag = tl.load(flags + first + token, mask=token < length, other=2.0)
                    size = tl.where(flag < 2.0, size, 0.0)
                    decay = tl.where(flag < 1.0, decay, tl.where(flag < 2.0, 0.0, 1.0))
                kept = decay * state
                added = size * widened(values[k])
                state = kept + added[:, None, :] * widened(writes[k])[None, :, None]
                decays, keeps = decays + (decay,), keeps + (kept,)
                states, sizes = states + (state,), sizes + (size,)
            for k in tl.static_range(K - 1, -1, -1):
                token = tl.cast(part, tl.int64) * K + k
                real = token < length
                inside = valid & real
                to = (first + token) * CHANNELS + channels
                value = widened(values[k])
                dout = widened(douts[k])
                write = widened(writes[k])[None, :, None]
                read = widened(reads[k])[None, :, None]
                size, kept, after = sizes[k], keeps[k], states[k]
                if HAS_Z:
                    gate = widened(gates[k])
                    opens = quick_sigmoid(gate) if QUICK else sigmoid(gate)
                    slope_of_gate = dout * opens * (1.0 + gate * (1.0 - opens))
                    if QUICK:
                        out = over_four_states(after * read) + for_four_states(value * (skip * 0.25))
                        out *= for_four_states(slope_of_gate)
                        store(
                            own_gate + (first + token) * CHANNELS, sum_over_states(out), (own < CHANNELS) & real, WHOLE
                        )
                    else:
                        out = tl.sum(after * read, axis=1) + skip * value
                        store(dz + to, out * slope_of_gate, inside, WHOLE)
                    dout *= gate * opens
                added = size * value
                dstate += dout[:, None, :] * read
                dlog = dstate * kept
                drates += dlog * size[:, None, :]
                of_write = tl.sum(added[:, None, :] * dstate, axis=2)
                of_read = tl.sum(dout[:, None, :] * after, axis=2)
                slope = (
                    step_slope(widened(raws[k]) + offset, size, EXACT) if SOFTPLUS else tl.full((E, R), 1.0, tl.float32)
                )
                if HAS_FLAGS:
                    flag = tl.load(flags + first + token, mask=real, other=2.0)
                    slope = tl.where(flag < 2.0, slope, 0.0)
                there = (partial + token) * N
                if QUICK:
                    of_added = over_four_states(dstate * write)
                    of_size = over_four_states(dlog * rates) * LN2 + of_added * for_four_states(value)
                    of_value = of_added * for_four_states(size) + for_four_states(dout * (skip * 0.25))
                    gradient = sums_over_states(of_value, of_size * for_four_states(slope))
                    store(own_to + (first + token) * CHANNELS, gradient, (own < CHANNELS) & real, WHOLE)
                    doffset += gradient if WHOLE else tl.where(real, gradient, 0.0)
                    store(own_row + there, sums_over_channels(of_write, of_read), real, WHOLE)
                else:
                    dadded = tl.sum(dstate * write, axis=1)
                    dsize = (tl.sum(dlog * rates, axis=1) * LN2 + dadded * value) * slope
                    store(dx + to, dadded * size + dout * skip, inside, WHOLE)
                    store(ddt + to, dsize, inside, WHOLE)
                    doffset += dsize if WHOLE else tl.where(real, dsize, 0.0)
                    store(dB + there + n, tl.sum(of_write, axis=0), (n < N) & real, WHOLE)
                    store(dC + there + n, tl.sum(of_read, axis=0), (n < N) & real, WHOLE)
                dstate *= decays[k]
                dskip = plus_product(dskip, dout, value, of_added) if QUICK else dskip + dout * value
        loaded = coming
    tl.store(dstart + row * CHANNELS * N + at, dstate, mask=exists)
    tl.store(dA + row * CHANNELS * N + at, drates, mask=exists)
    if QUICK:
        tl.store(dbias + row * CHANNELS + own, doffset, mask=(m % 2 == 1) & (own < CHANNELS))
        tl.store(dD + row * CHANNELS + own, sum_over_states(dskip) * 0.25, mask=own < CHANNELS)
    else:
        tl.store(dD + row * CHANNELS + channels, dskip, mask=valid)
        tl.store(dbias + row * CHANNELS + channels, doffset, mask=valid)
