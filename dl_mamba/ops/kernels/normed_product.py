"""One token of some rows: a matrix and what follows it in one pass, and the norm before it.

Bytes: those of the matrix. The squares that a norm needs are summed beside the products (a few rows), or by the kernel
before, and their root divides the products at the end.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dl_mamba.ops.kernels.norm import inverse_root
from dl_mamba.ops.kernels.tiles import sigmoid

LINE = tl.constexpr(128)  # bytes that a cache loads at once
SUMMED = tl.constexpr(32)  # of the squares of a row at a time


@triton.jit
def beside_columns(
    row,
    column,
    inside,
    residual,
    taps,
    bias,
    window,
    N: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """What `write_columns` needs beside a product: `known` is added to it, `tap` multiplies it, `before` precedes it.

    `row` and `column` are broadcast to the shape of `inside`. W is 0 for no convolution.
    """
    known = tl.zeros(inside.shape, tl.float32)
    tap, before = known, ()
    if HAS_RESIDUAL:
        known = tl.load(residual + row * N + column, mask=inside, other=0.0).to(tl.float32)
    if W > 0:
        channel = column - FIRST
        convolves = (channel >= 0) & (channel < CHANNELS)
        mine = inside & convolves
        place = window + row * (W - 1) * CHANNELS + channel
        if HAS_BIAS:
            known += tl.load(bias + channel, mask=convolves, other=0.0).to(tl.float32)
        for t in tl.static_range(W - 1):
            before = before + (tl.load(place + t * CHANNELS, mask=mine, other=0.0),)
            tap = tl.load(taps + t * CHANNELS + channel, mask=convolves, other=0.0).to(tl.float32)
            known += before[t].to(tl.float32) * tap
        tap = tl.load(taps + (W - 1) * CHANNELS + channel, mask=convolves, other=0.0).to(tl.float32)
    return known, tap, before


@triton.jit
def write_columns(
    out,
    beside,
    row,
    column,
    inside,
    y,
    end,
    N: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y = out + residual; or `out` with its columns from FIRST on convolved, and the end of their window.

    `end` (rows, W - 1, CHANNELS) may be the memory of the window.
    """
    known, tap, before = beside
    if W > 0:
        channel = column - FIRST
        mine = inside & (channel >= 0) & (channel < CHANNELS)
        token = out.to(y.dtype.element_ty)
        convolved = known + token.to(tl.float32) * tap
        out = tl.where(mine, convolved * sigmoid(convolved), token.to(tl.float32))
        place = end + row * (W - 1) * CHANNELS + channel
        for t in tl.static_range(W - 2):
            tl.store(place + t * CHANNELS, before[t + 1].to(end.dtype.element_ty), mask=mine)
        tl.store(place + (W - 2) * CHANNELS, token.to(end.dtype.element_ty), mask=mine)
    else:
        out += known
    tl.store(y + row * N + column, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def product_of_few(
    x,
    squares,
    scale,
    matrix,
    residual,
    taps,
    bias,
    window,
    y,
    end,
    X_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EPSILON: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PARTS: tl.constexpr,
    BPARTS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """norm(x) matrix^T (rows, N), written by `write_columns`.

    matrix is (N, K). The norm is one with a `scale`, or one of which `squares` (rows, PARTS) add up to a row's sum and
    x has its scale, or none. A program holds BN rows of the matrix in registers while those of x pass, and multiplies
    in float32.
    """
    if OVERLAP:
        gdc_launch_dependents()
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    valid = column < N
    part = tl.load(matrix + column[:, None] * K + k[None, :], mask=valid[:, None] & (k[None, :] < K), other=0.0)
    if HAS_SCALE:
        weight = tl.load(scale + k, mask=k < K, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()  # for what the kernels before write: x, squares, residual
    for row in tl.static_range(ROWS):
        beside = beside_columns(
            row, column, valid, residual, taps, bias, window, N, HAS_RESIDUAL, HAS_BIAS, W, FIRST, CHANNELS
        )
        if PARTS > 0:
            i = tl.arange(0, BPARTS)
            part_of_row = tl.load(squares + row * PARTS + i, mask=i < PARTS, other=0.0)
        # These loads are under way before x is waited for, and before a store: `end` may be `window`, of which a small
        # tile lies in several warps.
        if row == 0 or W > 0:
            tl.debug_barrier()
        value = tl.load(x + row * X_ROW + k, mask=k < K, other=0.0).to(tl.float32)
        if HAS_SCALE:
            total = tl.sum(value * value, axis=0)
            value *= weight
        if PARTS > 0:
            total = tl.sum(part_of_row, axis=0)
        out = tl.sum(part.to(tl.float32) * value[None, :], axis=1)
        if HAS_SCALE or PARTS > 0:
            out *= inverse_root(tl.zeros((BN,), tl.float32) + total / K + EPSILON)
        write_columns(out, beside, row, column, valid, y, end, N, W, FIRST, CHANNELS)


@triton.jit
def product_of_many(
    x,
    squares,
    matrix,
    residual,
    taps,
    bias,
    window,
    y,
    end,
    X_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EPSILON: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """x matrix^T (rows, N) by the matrix units, written by `write_columns`.

    x is (rows, K) and matrix (N, K), of one dtype; with PARTS > 0 x is normed as in `product_of_few`. A program owns
    BM rows and BN columns.
    """
    row = (tl.program_id(1) * BM + tl.arange(0, BM))[:, None]
    column = (tl.program_id(0) * BN + tl.arange(0, BN))[None, :]
    if OVERLAP:
        gdc_launch_dependents()
        each: tl.constexpr = LINE // (matrix.dtype.element_ty.primitive_bitwidth // 8)
        lines: tl.constexpr = triton.next_power_of_2(triton.cdiv(K, each))
        at = tl.minimum(column, N - 1) * K + tl.minimum(tl.arange(0, lines) * each, K - 1)[:, None]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [(matrix + at).to(tl.int64)], tl.int32, False, 1
        )
        gdc_wait()  # for what the kernels before write: x, squares, residual
    out = tl.zeros((BM, BN), tl.float32)
    for first in range(0, K, BK):
        k = first + tl.arange(0, BK)
        of_matrix, of_x = column < N, row < ROWS
        if K % BK != 0:
            of_matrix, of_x = of_matrix & (k[:, None] < K), of_x & (k[None, :] < K)
        part = tl.load(matrix + column * K + k[:, None], mask=of_matrix, other=0.0)
        value = tl.load(x + row * X_ROW + k[None, :], mask=of_x, other=0.0)
        out = tl.dot(value, part, out, input_precision=PRECISION)
    inside = (row < ROWS) & (column < N)
    if PARTS > 0:
        total = tl.zeros((BM, SUMMED), tl.float32)
        for first in tl.static_range(0, PARTS, SUMMED):
            i = first + tl.arange(0, SUMMED)[None, :]
            total += tl.load(squares + row * PARTS + i, mask=(row < ROWS) & (i < PARTS), other=0.0)
        out *= inverse_root(tl.sum(total, axis=1) / K + EPSILON)[:, None]
    beside = beside_columns(
        row, column, inside, residual, taps, bias, window, N, HAS_RESIDUAL, HAS_BIAS, W, FIRST, CHANNELS
    )
    if W > 0:
        tl.debug_barrier()  # as in `product_of_few`
    write_columns(out, beside, row, column, inside, y, end, N, W, FIRST, CHANNELS)
