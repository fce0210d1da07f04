"""What both kernels of the selective scan load: channels, step sizes, rows of B and C."""

import triton
import triton.language as tl

from dl_mamba.ops.kernels.tiles import sigmoid, softplus


@triton.jit
def channels_of(block, R: tl.constexpr, E: tl.constexpr):
    """The channels of a program, (E, R)."""
    return block * (R * E) + tl.arange(0, R)[None, :] * E + tl.arange(0, E)[:, None]


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
def load_row(pointer, token, real, TOKEN: tl.constexpr, N: tl.constexpr, BN: tl.constexpr):
    """A token's row of B or C, (BN,); zeros behind the last token."""
    n = tl.arange(0, BN)
    return tl.load(pointer + token * TOKEN + n, mask=(n < N) & real, other=0.0)


@triton.jit
def load_tokens(
    x,
    dt,
    z,
    dy,
    B,
    C,
    channels,
    valid,
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
):
    """K tokens of x, dt, z, dy, B and C; dt again in place of z or dy, if there is none."""
    values, raws, gates, douts, writes, reads = (), (), (), (), (), ()
    for k in tl.static_range(K):
        token = tl.cast(part, tl.int64) * K + k
        real = (token < length) & (part >= 0)
        values = values + (tl.load(x + token * X_TOKEN + channels, mask=valid & real, other=0.0),)
        raws = raws + (tl.load(dt + token * DT_TOKEN + channels, mask=valid & real, other=0.0),)
        gates = gates + (tl.load(z + token * Z_TOKEN + channels, mask=valid & real, other=0.0) if HAS_Z else raws[k],)
        douts = douts + (
            tl.load(dy + token * CHANNELS + channels, mask=valid & real, other=0.0) if HAS_DY else raws[k],
        )
        writes = writes + (load_row(B, token, real, B_TOKEN, N, BN),)
        reads = reads + (load_row(C, token, real, C_TOKEN, N, BN),)
    return values, raws, gates, douts, writes, reads
