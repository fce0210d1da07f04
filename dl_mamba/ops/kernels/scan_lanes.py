"""Sums across the lanes of a warp, for tiles (8, 16, 2) of channels e, states n and channels r of a thread.

Lane 4 e + n // 4 holds four states of two channels (`scan_tiles.saved_states`). Where several numbers of a lane are
summed over the same lanes, an exchange sends one half of them and keeps the other: the sums end up in different lanes,
one in each, after 7 exchanges for 8 numbers where sums that every lane learns take 24.
"""

import triton
import triton.language as tl

_OF_EIGHT = tl.constexpr("""{
    .reg .pred p<3>;
    .reg .b32 lane, bit;
    .reg .f32 send, keep, v<6>;
    mov.u32 lane, %laneid;
    and.b32 bit, lane, 4;
    setp.ne.u32 p0, bit, 0;
    and.b32 bit, lane, 8;
    setp.ne.u32 p1, bit, 0;
    and.b32 bit, lane, 16;
    setp.ne.u32 p2, bit, 0;
    selp.f32 send, $1, $5, p2;
    selp.f32 keep, $5, $1, p2;
    shfl.sync.bfly.b32 send, send, 16, 31, -1;
    add.f32 v0, keep, send;
    selp.f32 send, $2, $6, p2;
    selp.f32 keep, $6, $2, p2;
    shfl.sync.bfly.b32 send, send, 16, 31, -1;
    add.f32 v1, keep, send;
    selp.f32 send, $3, $7, p2;
    selp.f32 keep, $7, $3, p2;
    shfl.sync.bfly.b32 send, send, 16, 31, -1;
    add.f32 v2, keep, send;
    selp.f32 send, $4, $8, p2;
    selp.f32 keep, $8, $4, p2;
    shfl.sync.bfly.b32 send, send, 16, 31, -1;
    add.f32 v3, keep, send;
    selp.f32 send, v0, v2, p1;
    selp.f32 keep, v2, v0, p1;
    shfl.sync.bfly.b32 send, send, 8, 31, -1;
    add.f32 v4, keep, send;
    selp.f32 send, v1, v3, p1;
    selp.f32 keep, v3, v1, p1;
    shfl.sync.bfly.b32 send, send, 8, 31, -1;
    add.f32 v5, keep, send;
    selp.f32 send, v4, v5, p0;
    selp.f32 keep, v5, v4, p0;
    shfl.sync.bfly.b32 send, send, 4, 31, -1;
    add.f32 $0, keep, send;
}""")

_OF_FOUR = tl.constexpr("""{
    .reg .pred p<2>;
    .reg .b32 lane, bit;
    .reg .f32 send, keep, v<2>;
    mov.u32 lane, %laneid;
    and.b32 bit, lane, 1;
    setp.ne.u32 p0, bit, 0;
    and.b32 bit, lane, 2;
    setp.ne.u32 p1, bit, 0;
    selp.f32 send, $1, $3, p1;
    selp.f32 keep, $3, $1, p1;
    shfl.sync.bfly.b32 send, send, 2, 31, -1;
    add.f32 v0, keep, send;
    selp.f32 send, $2, $4, p1;
    selp.f32 keep, $4, $2, p1;
    shfl.sync.bfly.b32 send, send, 2, 31, -1;
    add.f32 v1, keep, send;
    selp.f32 send, v0, v1, p0;
    selp.f32 keep, v1, v0, p0;
    shfl.sync.bfly.b32 send, send, 1, 31, -1;
    add.f32 $0, keep, send;
}""")


_OF_TWO = tl.constexpr("""{
    .reg .pred p;
    .reg .b32 lane, bit;
    .reg .f32 send, keep;
    mov.u32 lane, %laneid;
    and.b32 bit, lane, 2;
    setp.ne.u32 p, bit, 0;
    selp.f32 send, $1, $2, p;
    selp.f32 keep, $2, $1, p;
    shfl.sync.bfly.b32 send, send, 2, 31, -1;
    add.f32 keep, keep, send;
    shfl.sync.bfly.b32 send, keep, 1, 31, -1;
    add.f32 $0, keep, send;
}""")


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
