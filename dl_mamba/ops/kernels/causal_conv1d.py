"""Causal depthwise convolution from its kernels, on tensors of torch or JAX."""

from __future__ import annotations

from typing import Any

from keras import ops
from keras.backend import standardize_dtype

from dl_mamba.ops.kernels.binding import over_rows
from dl_mamba.ops.kernels.conv import conv_backward, conv_forward
from dl_mamba.ops.kernels.launch import launch, packed, same, token_stride

COLUMNS = 128  # channels of a program, which is one warp: eight bytes of bfloat16 a thread
TOGETHER = 4  # tokens that are loaded at once
STAGES = 2  # groups of them that are under way at once backward
SPAN = 64  # tokens of a program forward
SPANS = {True: 128, False: 32}  # outputs that a program needs backward, by whether there are tokens enough for many
MANY = 2**13
ROWS = (True, False, False, True, True, True, True)  # the tensors that go over the batch
Tensor = Any


def forward(silu: bool, *tensors: Tensor):
    """(y, final state), and what `backward` needs. Tensors: x, weight, bias, start, order, documents, counts."""
    inputs, constants = _prepared(silu, tensors)
    batch, length, channels = tensors[0].shape
    together = min(TOGETHER, 1 << (length - 1).bit_length())
    span = min(SPAN, -(-length // together) * together)
    dtype = standardize_dtype(tensors[0].dtype)
    end, start = ((batch, constants["W"] - 1, channels), dtype), tensors[3]
    outputs = launch(
        conv_forward,
        (batch * -(-length // span), -(-channels // COLUMNS)),
        [*inputs, length],
        [((batch, length, channels), dtype), end],
        over={3: 1} if length == 1 and start is not None and same(start, end) else {},  # one program reads and writes
        SPAN=span,
        K=together,
        **constants,
    )
    return outputs, tensors


def backward(silu: bool, copies: int | None, tensors, gradients):
    """Gradients of the tensors of `forward`; None for what was not given and for numbers of tokens."""
    inputs, constants = _prepared(silu, tensors)
    x, weight, bias, start, *_ = tensors
    (batch, length, channels), dtype, width = x.shape, standardize_dtype(x.dtype), constants["W"]
    span = SPANS[batch * length >= MANY]
    programs = batch * -(-length // (span - width + 1))
    dx, dstart, dweight, dbias = launch(
        conv_backward,
        (programs, -(-channels // COLUMNS)),
        [*inputs, *(packed(ops.cast(g, dtype)) for g in gradients), length],
        [
            (tuple(x.shape), dtype),
            ((batch, width - 1, channels), dtype if start is None else standardize_dtype(start.dtype)),
            ((programs, width, channels), "float32"),
            ((programs, channels), "float32"),
        ],
        SPAN=span,
        K=TOGETHER,
        STAGES=STAGES,
        **constants,
    )
    dweight = ops.cast(over_rows(dweight, copies), weight.dtype)
    dbias = None if bias is None else ops.cast(over_rows(dbias, copies), bias.dtype)
    return dx, dweight, dbias, None if start is None else dstart, None, None, None


def _prepared(silu, tensors):
    """The tensors as the kernels read them, with a stand-in for those that are not given, and constants."""
    x, weight, bias, start, order, documents, counts = tensors
    x, token = token_stride(x)
    weight = packed(weight)
    given = [weight if v is None else packed(v) for v in (bias, start, order, documents, counts)]
    return [x, weight, *given], {
        "X_TOKEN": token,
        "CHANNELS": x.shape[2],
        "W": weight.shape[0],
        "BC": COLUMNS,
        "SILU": silu,
        "HAS_BIAS": bias is not None,
        "HAS_START": start is not None,
        "HAS_ORDER": order is not None,
        "HAS_DOCUMENTS": documents is not None,
        "num_warps": 1,
        "num_stages": 1,
    }
