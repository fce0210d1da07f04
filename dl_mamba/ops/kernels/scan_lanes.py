"""What the lanes of a warp tell each other, for tiles (8, 16, 2) of channels e, states n and channels r of a thread.

Lane 4 e + n // 4 holds four states of two channels (`scan_tiles.saved_states`). Of two tokens lane 4 e + m owns one
number of one channel: that of channel (e, m // 2) and token m % 2. What a channel needs once for a token (its step
size, its gate) the owner computes and tells the three others; what is summed over states comes back to it.

Where several numbers of a lane are summed over the same lanes, an exchange sends one half of them and keeps the other:
the sums end up in different lanes, one in each, after 7 exchanges for 8 numbers where sums that every lane learns
take 24.
"""

import triton
import triton.language as tl


def _exchange(total: str, first: str, second: str, bit: int) -> str:
    """PTX: total = `second` of this lane and the one across the bit if this one has it, else `first` of both."""
    distance = 1 << bit
    return f"""
    selp.f32 send, {first}, {second}, p{bit};
    selp.f32 keep, {second}, {first}, p{bit};
    shfl.sync.bfly.b32 send, send, {distance}, 31, -1;
    add.f32 {total}, keep, send;"""


def _program(bits: range, *steps: str) -> str:
    """PTX: the steps, with the bits of the lane's number as predicates."""
    lane = "".join(f"\n    and.b32 bit, lane, {1 << bit};\n    setp.ne.u32 p{bit}, bit, 0;" for bit in bits)
    registers = ".reg .pred p<5>;\n    .reg .b32 lane, bit;\n    .reg .f32 send, keep, v<6>;"
    return f"{{\n    {registers}\n    mov.u32 lane, %laneid;{lane}{''.join(steps)}\n}}"


_OF_EIGHT = tl.constexpr(
    _program(
        range(2, 5),
        *(_exchange(f"v{i}", f"${1 + i}", f"${5 + i}", 4) for i in range(4)),
        *(_exchange(f"v{4 + i}", f"v{i}", f"v{2 + i}", 3) for i in range(2)),
        _exchange("$0", "v4", "v5", 2),
    )
)
_OF_FOUR = tl.constexpr(
    _program(
        range(2),
        *(_exchange(f"v{i}", f"${1 + i}", f"${3 + i}", 1) for i in range(2)),
        _exchange("$0", "v0", "v1", 0),
    )
)
_TOLD = tl.constexpr("".join(f"shfl.sync.idx.b32 ${lane}, $4, {lane}, 0x1c1f, -1;\n" for lane in range(4)))
_OF_PAIR = tl.constexpr("{.reg .f32 v;\nshfl.sync.bfly.b32 v, $1, 1, 31, -1;\nadd.f32 $0, $1, v;}")


@triton.jit
def owned(block):
    """(4, 8) channels that the lanes own, and which of two tokens."""
    e, m = tl.arange(0, 8)[None, :], tl.arange(0, 4)[:, None]
    return block * 16 + unordered(e * 2 + m // 2), tl.broadcast_to(m % 2, (4, 8))


@triton.jit
def told(own):
    """What the lanes own, (4, 8), to all that hold states of its channel: (8, 16, 2) for each of two tokens."""
    a, b, c, d = tl.inline_asm_elementwise(
        _TOLD, "=&f,=&f,=&f,=&f,f", [tl.trans(own)], dtype=(tl.float32,) * 4, is_pure=False, pack=1
    )
    return _for_four_states(a, c), _for_four_states(b, d)


@triton.jit
def _for_four_states(first, second):
    tile = tl.join(first, second)[:, :, None, :]
    return tl.reshape(tl.broadcast_to(tile, (8, 4, 4, 2)), (8, 16, 2))


@triton.jit
def sums_over_states(first, second):
    """The (8, 16, 2) tiles of two tokens summed over states, (4, 8), each sum in the lane that owns it."""
    a, b = tl.split(tl.sum(tl.reshape(first, (8, 4, 4, 2)), axis=2))
    c, d = tl.split(tl.sum(tl.reshape(second, (8, 4, 4, 2)), axis=2))
    return tl.trans(
        tl.inline_asm_elementwise(_OF_FOUR, "=f,f,f,f,f", [a, c, b, d], dtype=tl.float32, is_pure=False, pack=1)
    )


@triton.jit
def sum_over_tokens(own):
    """(4, 8): the sum of what two lanes own of a channel, in both."""
    return tl.trans(
        tl.inline_asm_elementwise(_OF_PAIR, "=f,f", [tl.trans(own)], dtype=tl.float32, is_pure=False, pack=1)
    )


@triton.jit
def sums_over_channels(first, second):
    """Two (8, 16) tiles summed over e, as (4, 8): [m, e] has that of state 4 m + e % 4, of the first tile if e < 4."""
    a, b, c, d = _four(first)
    e, f, g, h = _four(second)
    return tl.trans(
        tl.inline_asm_elementwise(
            _OF_EIGHT, "=f,f,f,f,f,f,f,f,f", [a, b, c, d, e, f, g, h], dtype=tl.float32, is_pure=False, pack=1
        )
    )


@triton.jit
def _four(tile):
    even, odd = tl.split(tl.reshape(tile, (8, 4, 2, 2)))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def unordered(offsets):
    """The offsets, of which Triton does not know that neighbours follow one another; it would move the sums for it."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [offsets], dtype=tl.int32, is_pure=True, pack=1)
