"""One token of a few rows: a norm, the matrix behind it, and what follows it, in one pass over the matrix.

A program owns BN columns of the matrix, which lie in a row in its transpose, and holds them in registers while the rows
pass. It sums the squares that the norm needs beside the products, which their root divides at the end. Bytes: those of
the matrix. Work: 2 operations for each of its numbers and each row, in float32.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dl_mamba.ops.kernels.norm import inverse_root
from dl_mamba.ops.kernels.tiles import sigmoid


@triton.jit
def normed_product(
    x,
    gate,
    scale,
    matrix,
    residual,
    taps,
    bias,
    window,
    y,
    end,
    X_ROW: tl.constexpr,
    GATE_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    EPSILON: tl.constexpr,
    NORMED: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,
    CHANNELS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y (rows, N) = residual + norm(x SiLU(gate)) matrix^T; or its columns from FIRST on convolved, and their window.

    matrix is (N, K). Without NORMED there is neither norm nor scale. W is 0 for no convolution. `window` and `end`
    (rows, W - 1, CHANNELS) may be the same memory.
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
        gdc_wait()  # for what the kernels before write: x, gate, residual
    for row in tl.static_range(ROWS):
        value = tl.load(x + row * X_ROW + k, mask=k < K, other=0.0).to(tl.float32)
        if HAS_GATE:
            opens = tl.load(gate + row * GATE_ROW + k, mask=k < K, other=0.0).to(tl.float32)
            value *= opens * sigmoid(opens)
        if NORMED:
            root = inverse_root(tl.zeros((BN,), tl.float32) + tl.sum(value * value, axis=0) / K + EPSILON)
            out = tl.sum(part.to(tl.float32) * (value * weight)[None, :], axis=1) * root
        else:
            out = tl.sum(part.to(tl.float32) * value[None, :], axis=1)
        at = row * N + column
        if HAS_RESIDUAL:
            out += tl.load(residual + at, mask=valid, other=0.0).to(tl.float32)
        if W > 0:
            channel = column - FIRST
            mine = (channel >= 0) & (channel < CHANNELS)
            place = row * (W - 1) * CHANNELS + channel
            token = out.to(y.dtype.element_ty)
            convolved = tl.zeros((BN,), tl.float32)
            if HAS_BIAS:
                convolved += tl.load(bias + channel, mask=mine, other=0.0).to(tl.float32)
            before = ()
            for t in tl.static_range(W - 1):
                before = before + (tl.load(window + place + t * CHANNELS, mask=mine, other=0.0),)
                tap = tl.load(taps + t * CHANNELS + channel, mask=mine, other=0.0).to(tl.float32)
                convolved += before[t].to(tl.float32) * tap
            tap = tl.load(taps + (W - 1) * CHANNELS + channel, mask=mine, other=0.0).to(tl.float32)
            convolved += token.to(tl.float32) * tap
            out = tl.where(mine, convolved * sigmoid(convolved), token.to(tl.float32))
            tl.debug_barrier()  # a small tile lies in several warps, and `end` may be `window`
            for t in tl.static_range(W - 2):
                tl.store(end + place + t * CHANNELS, before[t + 1].to(end.dtype.element_ty), mask=mine)
            tl.store(end + place + (W - 2) * CHANNELS, token.to(end.dtype.element_ty), mask=mine)
        tl.store(y + at, out.to(y.dtype.element_ty), mask=valid)
