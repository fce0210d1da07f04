"""Causal depthwise convolution by the Triton kernels: bindings, and what they refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

from keras import ops

from dl_mamba.ops.kernels.availability import refusal_of
from dl_mamba.ops.sequence import left_alignment, take_tokens

WIDTHS = range(2, 9)  # taps; more would not fit into registers


def refusal(x: Any, weight: Any, *others: Any) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    width = weight.shape[0]
    if width not in WIDTHS:
        return f"d_conv={width}; the kernels hold windows of {WIDTHS[0]} to {WIDTHS[-1]} tokens"
    return refusal_of(x, weight, *others)


def run(x, weight, bias, activation, initial_state, starts, mask):
    """As `reference.run`."""
    from dl_mamba.ops.kernels import causal_conv1d as kernels
    from dl_mamba.ops.kernels.binding import bind

    order = documents = counts = None
    if mask is not None:
        order = ops.cast(left_alignment(mask)[0], "int32")
        counts = ops.cast(ops.sum(ops.cast(mask, "int32"), axis=1), "int32")
        starts = None if starts is None else take_tokens(starts, order)
    if starts is not None:
        documents = ops.cast(ops.cumsum(ops.cast(starts, "int32"), axis=1), "int32")
    silu = activation == "silu"
    op = bind(partial(kernels.forward, silu), partial(kernels.backward, silu), kernels.ROWS)
    return op(x, weight, bias, initial_state, order, documents, counts)
