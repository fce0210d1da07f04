"""One token of some rows: a matrix and what follows it in one pass, for a few rows also the norm before it.

Bytes: those of the matrix. The squares that the norm needs are summed beside the products, or by the kernel before, and
their root divides the products at the end.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dl_mamba.ops.kernels.norm import inverse_root
from dl_mamba.ops.kernels.tiles import sigmoid

LINE = tl.constexpr(128)  # bytes that a cache loads at once


@triton.jit
def write_columns(
    out,
    row,
    column,
    inside,
    residual,
    taps,
    bias,
    window,
    y,
    end,
    N: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y = residual + out; or `out` with its columns from FIRST on convolved, and their window.

    `row` and `column` are broadcast to the shape of `out`. W is 0 for no convolution. `window` and `end`
    (rows, W - 1, CHANNELS) may be the same memory.
    """
    at = row * N + column
    if HAS_RESIDUAL:
        out += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if W > 0:
        channel = column - FIRST
        convolves = (channel >= 0) & (channel < CHANNELS)
        mine = inside & convolves
        place = row * (W - 1) * CHANNELS + channel
        token = out.to(y.dtype.element_ty)
        convolved = tl.zeros(out.shape, tl.float32)
        if HAS_BIAS:
            convolved += tl.load(bias + channel, mask=convolves, other=0.0).to(tl.float32)
        before = ()
        for t in tl.static_range(W - 1):
            before = before + (tl.load(window + place + t * CHANNELS, mask=mine, other=0.0),)
            tap = tl.load(taps + t * CHANNELS + channel, mask=convolves, other=0.0).to(tl.float32)
            convolved += before[t].to(tl.float32) * tap
        tap = tl.load(taps + (W - 1) * CHANNELS + channel, mask=convolves, other=0.0).to(tl.float32)
        convolved += token.to(tl.float32) * tap
        out = tl.where(mine, convolved * sigmoid(convolved), token.to(tl.float32))
        tl.debug_barrier()  # a small tile lies in several warps, and `end` may be `window`
        for t in tl.static_range(W - 2):
            tl.store(end + place + t * CHANNELS, before[t + 1].to(end.dtype.element_ty), mask=mine)
        tl.store(end + place + (W - 2) * CHANNELS, token.to(end.dtype.element_ty), mask=mine)
    tl.store(y + at, out.to(y.dtype.element_ty), mask=inside)


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
    NORMED: tl.constexpr,
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

    matrix is (N, K). Without NORMED there is neither norm nor scale. `squares` (rows, PARTS) are sums of squares of x
    that make up those of a row; where PARTS is 0 they are summed here. A program holds BN rows of the matrix in
    registers while those of x pass, and multiplies in float32.
    """
    if OVERLAP:
        gdc_launch_dependents()
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    valid = column < N
    part = tl.load(matrix + column[:, None] * K + k[None, :], mask=valid[:, None] & (k[None, :] < K), other=0.0)
    if NORMED:
        weight = tl.load(scale + k, mask=k < K, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()  # for what the kernels before write: x, squares, residual
    for row in tl.static_range(ROWS):
        value = tl.load(x + row * X_ROW + k, mask=k < K, other=0.0).to(tl.float32)
        if NORMED:
            if PARTS > 0:
                i = tl.arange(0, BPARTS)
                total = tl.sum(tl.load(squares + row * PARTS + i, mask=i < PARTS, other=0.0), axis=0)
            else:
                total = tl.sum(value * value, axis=0)
            root = inverse_root(tl.zeros((BN,), tl.float32) + total / K + EPSILON)
            out = tl.sum(part.to(tl.float32) * (value * weight)[None, :], axis=1) * root
        else:
            out = tl.sum(part.to(tl.float32) * value[None, :], axis=1)
        write_columns(
            out, row, column, valid, residual, taps, bias, window, y, end, N, HAS_RESIDUAL, HAS_BIAS, W, FIRST, CHANNELS
        )


@triton.jit
def product_of_many(
    x,
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
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """x matrix^T (rows, N) by the matrix units, written by `write_columns`.

    x is (rows, K) and matrix (N, K), of one dtype. A program owns BM rows and BN columns.
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
        gdc_wait()  # for what the kernels before write: x, residual
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
    write_columns(
        out, row, column, inside, residual, taps, bias, window, y, end, N, HAS_RESIDUAL, HAS_BIAS, W, FIRST, CHANNELS
    )
