"""Sums across the lanes of a warp, for tiles (8, 16, 2) of channels e, states n and channels r of a thread.

Lane 4 e + n // 4 holds four states of two channels (`scan_tiles.saved_states`). Where several numbers of a lane are
summed over the same lanes, an exchange sends one half of them and keeps the other: the sums end up in different lanes,
one in each, after 7 exchanges for 8 numbers where sums that every lane learns take 24.
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
_OF_TWO = tl.constexpr(_program(range(2), _exchange("v0", "$1", "$2", 1), _exchange("$0", "v0", "v0", 0)))


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
def sums_over_states(first, second):
    """Two (8, 4, 2) tiles summed over n, as (4, 8): [m, e] has that of channel (e, m // 2), of the first for even m."""
    a, b = tl.split(first)
    c, d = tl.split(second)
    return tl.trans(
        tl.inline_asm_elementwise(_OF_FOUR, "=f,f,f,f,f", [a, c, b, d], dtype=tl.float32, is_pure=False, pack=1)
    )


@triton.jit
def sum_over_states(tile):
    """An (8, 4, 2) tile summed over states, as (4, 8): [m, e] has the sum of channel (e, m // 2)."""
    a, b = tl.split(tile)
    return tl.trans(tl.inline_asm_elementwise(_OF_TWO, "=f,f,f", [a, b], dtype=tl.float32, is_pure=False, pack=1))


@triton.jit
def over_four_states(tile):
    """(8, 16, 2) -> (8, 4, 2): sums of the four states of a lane."""
    return tl.sum(tl.reshape(tile, (8, 4, 4, 2)), axis=2)


@triton.jit
def for_four_states(values):
    """(8, 2) -> (8, 4, 2), by a way that leaves the values in the layout that they have in a tile of states."""
    tile = tl.broadcast_to(values[:, None, :], (8, 16, 2))
    return tl.max(tl.reshape(tile, (8, 4, 4, 2)), axis=2)


@triton.jit
def unordered(offsets):
    """The offsets, of which Triton does not know that neighbours follow one another; it would move the sums for it."""
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [offsets], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def plus_product(total, first, second, beside):
    """(8, 4, 2) total + first * second, in the layout of `beside`, which is not read."""
    return tl.inline_asm_elementwise(
        "fma.rn.f32 $0, $1, $2, $3;",
        "=f,f,f,f,f",
        [for_four_states(first), for_four_states(second), total, beside],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )
