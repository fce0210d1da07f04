"""Selective scan forward: one pass over the tokens, with the states of R x E channels in the registers of one warp.

For a token and channel it reads x, dt (and z) and writes y; B and C are read once for R E channels. Work: one exp2,
four multiplications or additions for each state. A thread holds N / 4 states of R channels, so that sums over states
take two exchanges. The inputs of K tokens are loaded before the first is used. If EVERY is not 0, the state before each
EVERY tokens is written. If SEGMENT is not 0, a program walks over so many tokens from a state that was written so, and
writes nothing but more states, for the backward pass. QUICK, for bfloat16 and 16 states: two tokens at a time, of
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
    SEGMENT: tl.constexpr,
    WHOLE: tl.constexpr,
    QUICK: tl.constexpr,
):
    """y (b, l, d), the last state (b, d, n) float32, and states; of a segment the states alone."""
    blocks: tl.constexpr = (CHANNELS + R * E - 1) // (R * E)
    PAIR: tl.constexpr = 2 if QUICK else 1
    segments = tl.cdiv(length, SEGMENT) if SEGMENT else 1
    walk = (tl.program_id(0) // blocks).to(tl.int64)
    row = walk // segments
    block = tl.program_id(0) % blocks
    own, late = owners(block, R, E, QUICK)
    group = block * (R * E) // (CHANNELS // G)
    at, exists = states_of(channels_of(block, R, E), N, BN, CHANNELS)
    rates = tl.load(A + at, mask=exists, other=0.0) * LOG2E
    state = tl.zeros((E, BN, R), tl.float32)
    tile = saved_states(R, BN, E)
    if SEGMENT:
        state = tl.load(start + (walk * blocks + block) * (R * BN * E) + tile)
    elif HAS_START:
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
    begin, parts = 0, tl.cdiv(length, K)
    if SEGMENT:
        begin = (walk % segments).to(tl.int32) * (SEGMENT // K)
        parts = tl.minimum(begin + SEGMENT // K, parts)
    loaded = load_tokens(
        x,
        dt,
        z,
        x,
        B,
        C,
        own,
        late,
        begin,
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
    for part in range(begin, parts):
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
                    if EVERY and (i * PAIR + j) % EVERY == 0:
                        place = ((row * tl.cdiv(length, EVERY) + token // EVERY) * blocks + block) * (R * BN * E)
                        if EVERY <= K:
                            store(saved + place + tile, state, token < length, WHOLE)
                        elif part % (EVERY // K) == 0:
                            tl.store(saved + place + tile, state)
                    decay = tl.exp2(sizes[j] * rates)
                    if HAS_FLAGS:
                        flag = tl.load(flags + first + token + j, mask=token + j < length, other=2.0)
                        decay = tl.where(flag < 1.0, decay, tl.where(flag < 2.0, 0.0, 1.0))
                    state = decay * state + added[j] * widened(writes[i * PAIR + j])[None, :, None]
                    outs = outs + (state * widened(reads[i * PAIR + j])[None, :, None],)
                if not SEGMENT:
                    out = over_states(outs, QUICK) + skip * value
                    if HAS_Z:
                        gate = gates[i].to(tl.float32)
                        out *= gate * gate_opening(gate, QUICK)
                    store(y + token * CHANNELS + (late * CHANNELS + own), out, (own < CHANNELS) & real, WHOLE)
        loaded = coming
    if not SEGMENT:
        tl.store(end + row * CHANNELS * N + at, state, mask=exists)
