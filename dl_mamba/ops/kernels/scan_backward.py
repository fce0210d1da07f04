"""Selective scan backward: from the last K tokens to the first, states computed again from the one saved before them.

For a token and channel it reads x, dt, dy (and z) and writes dx, ddt (and dz). The gradients of B and C are
summed over the R E channels of a program and written once for each program; those of A, D and the bias stay in
registers to the end. Work: one exp2 and thirteen multiplications or additions for each state.

QUICK, for bfloat16 and 16 states: two tokens at a time; what a channel has once for a token is computed by the lane
that owns it, and each sum over channels or states ends in the lane that writes it (`scan_lanes`).
"""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.scan_lanes import sum_over_tokens, sums_over_channels, unordered
from dl_mamba.ops.kernels.scan_tiles import (
    channels_of,
    for_states,
    gate_opening,
    load_tokens,
    over_states,
    owners,
    saved_states,
    states_of,
    step_size,
    step_slope,
    store,
    widened,
)

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
    PAIR: tl.constexpr = 2 if QUICK else 1
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    own, late = owners(block, R, E, QUICK)
    there = own < CHANNELS
    group = block * (R * E) // (CHANNELS // G)
    at, exists = states_of(channels_of(block, R, E), N, BN, CHANNELS)
    n = tl.arange(0, BN)
    rates = tl.load(A + at, mask=exists, other=0.0) * LOG2E
    dstate = tl.load(dend + row * CHANNELS * N + at, mask=exists, other=0.0)
    drates = tl.zeros((E, BN, R), tl.float32)
    doffset = tl.zeros(own.shape, tl.float32)
    dskip = tl.zeros(own.shape, tl.float32)
    offset = tl.zeros(own.shape, tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + own, mask=there, other=0.0)
    skip = tl.zeros(own.shape, tl.float32)
    if HAS_D:
        skip = tl.load(D + own, mask=there, other=0.0)
    if QUICK:
        m, lane = tl.arange(0, 4)[:, None], tl.arange(0, E)[None, :]
        own_row = tl.where(lane < 4, dB, dC) + unordered(m * 4 + lane % 4)
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
        own,
        late,
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
        QUICK,
    )
    saved += (row * parts * blocks + block) * (R * BN * E) + tile
    before = tl.load(saved + (parts - 1).to(tl.int64) * (blocks * R * BN * E))
    for turn in range(parts):
        part = parts - 1 - turn
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
            own,
            late,
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
            QUICK,
        )
        if part * K < length:  # always: a block of its own, so that the loads before it stay before it
            values, raws, gates, douts, writes, reads = loaded
            decays, keeps, states, tokens = (), (), (), ()
            for i in tl.static_range(K // PAIR):
                token = tl.cast(part, tl.int64) * K + i * PAIR
                real = token + late < length
                value, raw = values[i].to(tl.float32), raws[i].to(tl.float32) + offset
                size = step_size(raw, EXACT, SOFTPLUS)
                if not WHOLE:
                    size = tl.where(real, size, 0.0)
                slope = step_slope(raw, size, EXACT) if SOFTPLUS else tl.full(own.shape, 1.0, tl.float32)
                if HAS_FLAGS:
                    flag = tl.load(flags + first + token + late, mask=real, other=2.0)
                    size = tl.where(flag < 2.0, size, 0.0)
                    slope = tl.where(flag < 2.0, slope, 0.0)
                sizes, added = for_states(size, QUICK), for_states(size * value, QUICK)
                tokens = tokens + ((value, size, slope, sizes, added),)
                for j in tl.static_range(PAIR):
                    decay = tl.exp2(sizes[j] * rates)
                    if HAS_FLAGS:
                        flag = tl.load(flags + first + token + j, mask=token + j < length, other=2.0)
                        decay = tl.where(flag < 1.0, decay, tl.where(flag < 2.0, 0.0, 1.0))
                    kept = decay * state
                    state = kept + added[j] * widened(writes[i * PAIR + j])[None, :, None]
                    decays, keeps, states = decays + (decay,), keeps + (kept,), states + (state,)
            for i in tl.static_range(K // PAIR - 1, -1, -1):
                token = tl.cast(part, tl.int64) * K + i * PAIR
                inside = there & (token + late < length)
                to = (first + token) * CHANNELS + (late * CHANNELS + own)
                value, size, slope, sizes, added = tokens[i]
                dout = douts[i].to(tl.float32)
                if HAS_Z:
                    gate = gates[i].to(tl.float32)
                    opens = gate_opening(gate, QUICK)
                    slope_of_gate = dout * opens * (1.0 + gate * (1.0 - opens))
                    dout *= gate * opens
                slopes, outs, of_added, of_log = for_states(dout, QUICK), (), (), ()
                for j in tl.static_range(PAIR - 1, -1, -1):
                    of_row = (partial + token + j) * N
                    real = token + j < length
                    read = widened(reads[i * PAIR + j])[None, :, None]
                    dstate += slopes[j] * read
                    dlog = dstate * keeps[i * PAIR + j]
                    drates += dlog * sizes[j]
                    of_write = tl.sum(added[j] * dstate, axis=2)
                    of_read = tl.sum(slopes[j] * states[i * PAIR + j], axis=2)
                    if QUICK:
                        store(own_row + of_row, sums_over_channels(of_write, of_read), real, WHOLE)
                    else:
                        store(dB + of_row + n, tl.sum(of_write, axis=0), (n < N) & real, WHOLE)
                        store(dC + of_row + n, tl.sum(of_read, axis=0), (n < N) & real, WHOLE)
                    outs = (states[i * PAIR + j] * read,) + outs
                    of_added = (dstate * widened(writes[i * PAIR + j])[None, :, None],) + of_added
                    of_log = (dlog * rates,) + of_log
                    dstate *= decays[i * PAIR + j]
                if HAS_Z:
                    store(dz + to, (over_states(outs, QUICK) + skip * value) * slope_of_gate, inside, WHOLE)
                dadded = over_states(of_added, QUICK)
                dsize = (over_states(of_log, QUICK) * LN2 + dadded * value) * slope
                store(dx + to, dadded * size + dout * skip, inside, WHOLE)
                store(ddt + to, dsize, inside, WHOLE)
                doffset += dsize if WHOLE else tl.where(inside, dsize, 0.0)
                dskip += dout * value
        loaded = coming
    tl.store(dstart + row * CHANNELS * N + at, dstate, mask=exists)
    tl.store(dA + row * CHANNELS * N + at, drates, mask=exists)
    tl.store(dD + row * CHANNELS + own, sum_over_tokens(dskip) if QUICK else dskip, mask=there)
    tl.store(dbias + row * CHANNELS + own, sum_over_tokens(doffset) if QUICK else doffset, mask=there)
