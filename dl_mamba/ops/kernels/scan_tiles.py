"""What both kernels of the selective scan load and compute for a channel and token, and rows of B and C.

Numbers of channels are "owned": of one token, each by all lanes that hold states of the channel, or if QUICK of two
tokens, each by one lane (`scan_lanes`).
"""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.scan_lanes import owned, sums_over_states, told
from dl_mamba.ops.kernels.tiles import sigmoid, softplus


@triton.jit
def channels_of(block, R: tl.constexpr, E: tl.constexpr):
    """The channels of a program, (E, R)."""
    return block * (R * E) + tl.arange(0, E)[:, None] * R + tl.arange(0, R)[None, :]


@triton.jit
def owners(block, R: tl.constexpr, E: tl.constexpr, QUICK: tl.constexpr):
    """The channels of the numbers that are owned, and how many tokens later theirs is."""
    return owned(block) if QUICK else (channels_of(block, R, E), 0)


@triton.jit
def for_states(own, QUICK: tl.constexpr):
    """What is owned, beside the states, (E, BN or 1, R), one after another for each token."""
    return told(own) if QUICK else (own[:, None, :],)


@triton.jit
def over_states(tiles, QUICK: tl.constexpr):
    """Sums over the states of tiles (E, BN, R), one for each token, owned."""
    return sums_over_states(tiles[0], tiles[1]) if QUICK else tl.sum(tiles[0], axis=1)


@triton.jit
def states_of(channels, N: tl.constexpr, BN: tl.constexpr, CHANNELS: tl.constexpr):
    """Offsets of the states of channels in a (channels, N) array, (E, BN, R), and which exist."""
    n = tl.arange(0, BN)[None, :, None]
    return channels[:, None, :] * N + n, (channels[:, None, :] < CHANNELS) & (n < N)


@triton.jit
def saved_states(R: tl.constexpr, BN: tl.constexpr, E: tl.constexpr):
    """Offsets of a program's states in an array of its own, (E, BN, R).

    Four states of a channel lie together, as in A, where Triton sees that a thread can load them at once. So it gives
    each thread N / 4 states of R channels, E channels to a warp, and every loop over tokens keeps that layout.
    """
    e, n, r = tl.arange(0, E)[:, None, None], tl.arange(0, BN)[None, :, None], tl.arange(0, R)[None, None, :]
    return ((n // 4 * R + r) * E + e) * 4 + n % 4


@triton.jit
def log2_quickly(x):
    """log2 to about 22 bits in one instruction."""
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def quick_softplus(x):
    """log(1 + exp(x)) to about 1e-4, in base 2."""
    return tl.maximum(x, 0.0) + 0.6931471805599453 * log2_quickly(1.0 + tl.exp2(-1.4426950408889634 * tl.abs(x)))


@triton.jit
def widened(x):
    """float32, two bfloat16 numbers of a register at a time."""
    if x.dtype == tl.bfloat16:
        wide = tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2
        )
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def gate_opening(x, QUICK: tl.constexpr):
    """1 / (1 + exp(-x)); if QUICK to about 22 bits, without a division."""
    if QUICK:
        w = 1.0 + tl.exp2(-1.4426950408889634 * x)
        opens = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [w], tl.float32, is_pure=True, pack=1)
    else:
        opens = sigmoid(x)
    return opens


@triton.jit
def step_size(raw, EXACT: tl.constexpr, SOFTPLUS: tl.constexpr):
    """softplus; to the last digits if EXACT."""
    size = raw
    if SOFTPLUS:
        size = softplus(raw) if EXACT else quick_softplus(raw)
    return size


@triton.jit
def step_slope(raw, size, EXACT: tl.constexpr):
    """Derivative of the softplus at raw, where it is size; without a division unless EXACT."""
    return sigmoid(raw) if EXACT else 1.0 - tl.exp2(-1.4426950408889634 * size)


@triton.jit
def load(address, inside, WHOLE: tl.constexpr):
    """What lies there; zeros outside."""
    return tl.load(address) if WHOLE else tl.load(address, mask=inside, other=0.0)


@triton.jit
def store(address, value, inside, WHOLE: tl.constexpr):
    """Write what is inside, in the dtype of the array."""
    value = value.to(address.dtype.element_ty)
    if WHOLE:
        tl.store(address, value)
    else:
        tl.store(address, value, mask=inside)


@triton.jit
def load_tokens(
    x,
    dt,
    z,
    dy,
    B,
    C,
    own,
    late,
    part,
    length,
    X_TOKEN: tl.constexpr,
    DT_TOKEN: tl.constexpr,
    Z_TOKEN: tl.constexpr,
    B_TOKEN: tl.constexpr,
    C_TOKEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    BN: tl.constexpr,
    K: tl.constexpr,
    HAS_Z: tl.constexpr,
    HAS_DY: tl.constexpr,
    WHOLE: tl.constexpr,
    QUICK: tl.constexpr,
):
    """K tokens: x, dt, z and dy as they are owned, B and C; dt again in place of z or dy, if there is none."""
    values, raws, gates, douts, writes, reads = (), (), (), (), (), ()
    n = tl.arange(0, BN)
    for k in tl.static_range(0, K, 2 if QUICK else 1):
        token = tl.cast(part, tl.int64) * K + k
        inside = (own < CHANNELS) & (token + late < length)
        values = values + (load(x + token * X_TOKEN + (late * X_TOKEN + own), inside, WHOLE),)
        raw = load(dt + token * DT_TOKEN + (late * DT_TOKEN + own), inside, WHOLE)
        raws = raws + (raw,)
        gates = gates + (load(z + token * Z_TOKEN + (late * Z_TOKEN + own), inside, WHOLE) if HAS_Z else raw,)
        douts = douts + (load(dy + token * CHANNELS + (late * CHANNELS + own), inside, WHOLE) if HAS_DY else raw,)
    for k in tl.static_range(K):
        token = tl.cast(part, tl.int64) * K + k
        of_row = (n < N) & (token < length)
        writes = writes + (load(B + token * B_TOKEN + n, of_row, WHOLE),)
        reads = reads + (load(C + token * C_TOKEN + n, of_row, WHOLE),)
    return values, raws, gates, douts, writes, reads
