"""Selective scan forward: one pass over the tokens, with the states of R x E channels in the registers of one warp.

For a token and channel it reads x, dt (and z) and writes y; B and C are read once for R E channels. Work: one exp2,
four multiplications or additions for each state. A thread holds N / 4 states of R channels, so that sums over states
take two exchanges. The inputs of K tokens are loaded before the first is used. If STORE, the state before every EVERY
tokens is written for the backward pass, and nothing else. QUICK, for bfloat16 and 16 states: two tokens at a time, of
which every lane computes one channel's step size, gate and output once (`scan_lanes`).
"""

import triton
import triton.language as tl

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
    store,
    widened,
)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def scan_forward(
    x,
    dt,
    A,
    B,
    C,
    D,
    z,
    bias,
    start,
    flags,
    length,
    y,
    end,
    saved,
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
    EVERY: tl.constexpr,
    EXACT: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_D: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_START: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    STORE: tl.constexpr,
    WHOLE: tl.constexpr,
    QUICK: tl.constexpr,
):
    """y (b, l, d) and the last state (b, d, n) float32; or the states before every EVERY tokens."""
    blocks: tl.constexpr = (CHANNELS + R * E - 1) // (R * E)
    PAIR: tl.constexpr = 2 if QUICK else 1
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    own, late = owners(block, R, E, QUICK)
    group = block * (R * E) // (CHANNELS // G)
    at, exists = states_of(channels_of(block, R, E), N, BN, CHANNELS)
    rates = tl.load(A + at, mask=exists, other=0.0) * LOG2E
    state = tl.zeros((E, BN, R), tl.float32)
    if HAS_START:
        state = tl.load(start + row * CHANNELS * N + at, mask=exists, other=0.0).to(tl.float32)
    offset = tl.zeros(own.shape, tl.float32)
    if HAS_BIAS:
        offset = tl.load(bias + own, mask=own < CHANNELS, other=0.0)
    skip = tl.zeros(own.shape, tl.float32)
    if HAS_D:
        skip = tl.load(D + own, mask=own < CHANNELS, other=0.0)
    first = row * length
    x += first * X_TOKEN
    dt += first * DT_TOKEN
    z += first * Z_TOKEN
    y += first * CHANNELS
    B += first * B_TOKEN + group * N
    C += first * C_TOKEN + group * N
    tile = saved_states(R, BN, E)
    parts = tl.cdiv(length, K)
    loaded = load_tokens(
        x,
        dt,
        z,
        x,
        B,
        C,
        own,
        late,
        0,
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
        False,
        WHOLE,
        QUICK,
    )
    for part in range(parts):
        coming = load_tokens(
            x,
            dt,
            z,
            x,
            B,
            C,
            own,
            late,
            tl.minimum(part + 1, parts - 1),
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
            False,
            WHOLE,
            QUICK,
        )
        if part * K < length:  # always: a block of its own, so that the loads before it stay before it
            values, raws, gates, _, writes, reads = loaded
            for i in tl.static_range(K // PAIR):
                token = tl.cast(part, tl.int64) * K + i * PAIR
                real = token + late < length
                value = values[i].to(tl.float32)
                size = step_size(raws[i].to(tl.float32) + offset, EXACT, SOFTPLUS)
                if not WHOLE:
                    size = tl.where(real, size, 0.0)
                if HAS_FLAGS:
                    flag = tl.load(flags + first + token + late, mask=real, other=2.0)
                    size = tl.where(flag < 2.0, size, 0.0)
                sizes, added, outs = for_states(size, QUICK), for_states(size * value, QUICK), ()
                for j in tl.static_range(PAIR):
                    if STORE and (i * PAIR + j) % EVERY == 0:
                        place = ((row * tl.cdiv(length, EVERY) + token // EVERY) * blocks + block) * (R * BN * E)
                        store(saved + place + tile, state, token < length, WHOLE)
                    decay = tl.exp2(sizes[j] * rates)
                    if HAS_FLAGS:
                        flag = tl.load(flags + first + token + j, mask=token + j < length, other=2.0)
                        decay = tl.where(flag < 1.0, decay, tl.where(flag < 2.0, 0.0, 1.0))
                    state = decay * state + added[j] * widened(writes[i * PAIR + j])[None, :, None]
                    outs = outs + (state * widened(reads[i * PAIR + j])[None, :, None],)
                if not STORE:
                    out = over_states(outs, QUICK) + skip * value
                    if HAS_Z:
                        gate = gates[i].to(tl.float32)
                        out *= gate * gate_opening(gate, QUICK)
                    store(y + token * CHANNELS + (late * CHANNELS + own), out, (own < CHANNELS) & real, WHOLE)
        loaded = coming
    if not STORE:
        tl.store(end + row * CHANNELS * N + at, state, mask=exists)
