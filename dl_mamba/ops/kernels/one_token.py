"""The two halves of a Mamba-2 block around its state, and the logits, for one token of some rows."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from keras import ops
from keras.backend import standardize_dtype

from dl_mamba.ops.kernels import gated_rms_norm, ssd
from dl_mamba.ops.kernels.launch import launch, packed, token_stride
from dl_mamba.ops.kernels.normed_product import product_of_few, product_of_many

FEW = 8  # rows, up to which each is multiplied by itself, in float32
ROWS = 256  # at most
WIDE = 16384  # columns, from which on programs of 64 of them are enough
NUMBERS = 4096  # of the matrix that a program holds for a few rows
DEEPEST = 8192  # rows of the matrix
Tensor = Any


def project(
    x: Tensor, scale: Tensor, matrix: Tensor, window: Tensor, taps: Tensor, bias: Tensor, first: int, epsilon: float
):
    """norm(x) matrix^T, whose columns from `first` on pass through the convolution with SiLU, and the new window.

    Args:
        x: (rows, 1, width).
        scale: (width,), of the norm.
        matrix: (columns, width).
        window: (rows, W - 1, channels), the tokens before.
        taps: (W, channels).
        bias: (channels,) or None.
        first: the first convolved column.
        epsilon: of the norm.
    """
    dtype, (width, channels) = standardize_dtype(matrix.dtype), taps.shape
    outputs = [dtype, (tuple(window.shape), standardize_dtype(window.dtype))]
    beside = [None, taps, bias, window]
    return _product(x, None, scale, matrix, beside, outputs, epsilon, W=width, FIRST=first, CHANNELS=channels)


def advance(
    projected: Tensor,
    state: Tensor,
    A_log: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    scale: Tensor,
    dt_limit: tuple[float, float],
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """y SiLU(z) scale, the next state, and sums (rows, n) that add up to the squares of a row of y SiLU(z).

    Args:
        projected: (rows, 1, columns), z, x, B, C and dt of one group.
        state: (rows, nheads, headdim, d_state).
        A_log, D, dt_bias: as `Mamba2Layer` has them.
        scale: (width,), of the norm that follows.
        dt_limit: smallest and largest step size.
        width: channels of z, and of x.
    """
    rows, nheads, headdim, d_state = state.shape
    dtype = standardize_dtype(projected.dtype)
    shape = ssd.Shape(rows, 1, nheads, headdim, 1, d_state, dtype)
    sizes = {"Z": width, "X": width, "B": d_state, "C": d_state, "DT": nheads}
    first = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
    y, state, squares = ssd.gated_step(
        ssd.Options(True, tuple(dt_limit), dtype), shape, packed(projected), first, A_log, D, dt_bias, state, scale
    )
    return y.reshape(rows, 1, width), state, squares


def finish(y: Tensor, squares: Tensor, matrix: Tensor, residual: Tensor, epsilon: float) -> Tensor:
    """residual + norm(y) matrix^T, in the dtype of the residual, from what `advance` returned."""
    dtype = standardize_dtype(residual.dtype)
    beside = [residual, None, None, None]
    return _product(y, squares, None, matrix, beside, [dtype, ((1,), dtype)], epsilon)[0]


def product(x: Tensor, matrix: Tensor, columns: int) -> Tensor:
    """x (rows, width) by the first `columns` rows of matrix (n, width) in float32."""
    outputs = ["float32", ((1,), "float32")]
    return _product(x[:, None], None, None, matrix, [None] * 4, outputs, columns=columns)[0][:, 0]


def _product(x, squares, scale, matrix, beside, outputs, epsilon=0.0, columns=None, W=0, FIRST=0, CHANNELS=1):
    (rows, _, depth), columns, matrix = x.shape, columns or matrix.shape[0], packed(matrix)
    residual, _, bias, window = beside
    sizes = {"ROWS": rows, "K": depth, "N": columns, "W": W, "FIRST": FIRST, "CHANNELS": CHANNELS}
    beside = [matrix if v is None else packed(v) for v in beside]
    outputs = [((rows, 1, columns), outputs[0]), outputs[1]]
    given = {"HAS_RESIDUAL": residual is not None, "HAS_BIAS": bias is not None, **sizes}
    given |= {"PARTS": 0 if squares is None else squares.shape[1], "EPSILON": float(epsilon)}
    squares = matrix if squares is None else squares
    run = _of_few if rows <= FEW else _of_many
    return run(x, squares, scale, matrix, beside, outputs, window is not None, given)


def _of_few(x, squares, scale, matrix, beside, outputs, moves, given):
    block = 1 << (given["K"] - 1).bit_length()
    at_once = max(1, NUMBERS // block)
    x, x_row = token_stride(x)
    return launch(
        product_of_few,
        (-(-given["N"] // at_once),),
        [x, squares, matrix if scale is None else packed(scale), matrix, *beside],
        outputs,
        over={7: 1} if moves else {},
        early=(2, 3, 5, 6, 7),
        X_ROW=x_row,
        BN=at_once,
        BK=block,
        HAS_SCALE=scale is not None,
        BPARTS=1 << max(given["PARTS"] - 1, 0).bit_length(),
        num_warps=4,
        num_stages=1,
        **given,
    )


def _of_many(x, squares, scale, matrix, beside, outputs, moves, given):
    dtype = standardize_dtype(matrix.dtype)
    if scale is not None:
        x = gated_rms_norm.of_one_token(gated_rms_norm.Options(given["EPSILON"], 1, False, dtype), x, scale)
    x, x_row = token_stride(ops.cast(x, dtype))
    down, across, depth, warps, stages = _tile(given["N"], dtype)
    return launch(
        product_of_many,
        (-(-given["N"] // across), -(-given["ROWS"] // down)),
        [x, squares, matrix, *beside],
        outputs,
        over={6: 1} if moves else {},
        early=(2, 4, 5, 6),
        X_ROW=x_row,
        BM=down,
        BN=across,
        BK=depth,
        PRECISION="tf32x3" if dtype == "float32" else "tf32",
        num_warps=warps,
        num_stages=stages,
        **given,
    )


def _tile(columns, dtype):
    """Rows and columns of a program, depth at a time, warps, stages: found on an H200 with 64 rows.

    Rows are 64, because Hopper multiplies so many at once; columns not 32, which Triton 3.6 has miscompiled.
    """
    depth = 64 if dtype == "float32" else 128
    return (64, 64, depth, 4, 3) if columns > WIDE else (64, 16, depth, 4, 4)
