"""The two halves of a Mamba-2 block around its state, and the logits, for one token of a few rows."""

from __future__ import annotations

from typing import Any

from keras.backend import standardize_dtype

from dl_mamba.ops.kernels.launch import launch, packed, token_stride
from dl_mamba.ops.kernels.normed_product import normed_product

ROWS = 8  # more are better served by the matrix products of the vendor
NUMBERS = 8192  # of the matrix that a program holds
WARPS = 8
DEEPEST = 8192  # rows of the matrix
Tensor = Any


def project(x: Tensor, scale: Tensor, matrix: Tensor, window: Tensor, taps: Tensor, bias: Tensor, first: int, **norm):
    """norm(x) matrix^T, whose columns from `first` on pass through the convolution with SiLU, and the new window.

    Args:
        x: (rows, 1, width).
        scale: (width,), of the norm.
        matrix: (columns, width).
        window: (rows, W - 1, channels), the tokens before.
        taps: (W, channels).
        bias: (channels,) or None.
        first: the first convolved column.
        norm: `epsilon`.
    """
    dtype, (width, channels) = standardize_dtype(matrix.dtype), taps.shape
    end = (tuple(window.shape), standardize_dtype(window.dtype))
    beside = [None, taps, bias, window]
    return _launch(x, None, scale, matrix, beside, [dtype, end], W=width, FIRST=first, CHANNELS=channels, **norm)


def finish(y: Tensor, gate: Tensor, scale: Tensor, matrix: Tensor, residual: Tensor, **norm: float) -> Tensor:
    """residual + norm(y SiLU(gate)) matrix^T, in the dtype of the residual."""
    dtype = standardize_dtype(residual.dtype)
    beside = [residual, None, None, None]
    return _launch(y, gate, scale, matrix, beside, [dtype, ((1,), dtype)], W=0, FIRST=0, CHANNELS=1, **norm)[0]


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x (rows, width) by matrix (columns, width) in float32."""
    beside = [None, None, None, None]
    y, _ = _launch(x[:, None], None, None, matrix, beside, ["float32", ((1,), "float32")], W=0, FIRST=0, CHANNELS=1)
    return y[:, 0]


def _launch(x, gate, scale, matrix, beside, outputs, epsilon=0.0, **constants):
    residual, _, bias, window = beside
    (x, x_row), (opens, gate_row) = token_stride(x), token_stride(x if gate is None else gate)
    (rows, _, depth), columns = x.shape, matrix.shape[0]
    normed, block = scale is not None, 1 << (depth - 1).bit_length()
    at_once = max(1, NUMBERS // block)
    scale, matrix = (matrix if scale is None else packed(scale)), packed(matrix)
    return launch(
        normed_product,
        (-(-columns // at_once),),
        [x, opens, scale, matrix, *(scale if v is None else packed(v) for v in beside)],
        [((rows, 1, columns), outputs[0]), outputs[1]],
        over={} if window is None else {7: 1},
        early=(2, 3, 5, 6, 7),
        X_ROW=x_row,
        GATE_ROW=gate_row,
        ROWS=rows,
        K=depth,
        N=columns,
        BN=at_once,
        BK=block,
        EPSILON=float(epsilon),
        NORMED=normed,
        HAS_GATE=gate is not None,
        HAS_RESIDUAL=residual is not None,
        HAS_BIAS=bias is not None,
        num_warps=WARPS,
        num_stages=1,
        **constants,
    )
