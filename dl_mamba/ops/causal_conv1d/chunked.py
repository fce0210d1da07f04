"""Causal depthwise convolution as d_conv shifted products, which XLA fuses into one pass.

With a mask each row is first left-aligned, so that the window of a token holds the real tokens before it.
"""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.numerics import plus, spread, upcast
from dl_mamba.ops.sequence import left_alignment, take_tokens


def run(x, weight, bias, activation, initial_state, starts, mask):
    weight, bias = upcast("float32", weight, bias)
    rank = None
    if mask is not None:
        order, rank = left_alignment(mask)
        x = take_tokens(x, order)
        starts = None if starts is None else take_tokens(starts, order)
    tokens = ops.concatenate([ops.cast(initial_state, x.dtype), x], axis=1)
    documents = None if starts is None else _number_documents(starts, weight.shape[0] - 1)
    y = _convolve(tokens, weight, documents)
    y = y if bias is None else plus(y, bias)
    y = y if activation is None else ops.silu(y)
    if rank is not None:
        y = ops.where(mask[..., None], take_tokens(y, rank), 0.0)
    return y, _final_window(tokens, documents, mask, weight.shape[0] - 1)


def _number_documents(starts, history):
    """(batch, history + length): 0 for the initial state and the first document, then 1, 2, ..."""
    number = ops.cumsum(ops.cast(starts, "int32"), axis=1)
    before = ops.zeros_like(number[:, :1])
    return ops.concatenate([before] * history + [number], axis=1)


def _convolve(tokens, weight, documents):
    history = weight.shape[0] - 1
    if documents is None and isinstance(tokens.shape[1], int) and tokens.shape[1] == history + 1:
        return ops.sum(ops.cast(tokens, weight.dtype) * weight, axis=1, keepdims=True)  # one token, one window
    now = ops.cast(tokens[:, history:], weight.dtype)
    y = now * spread(weight[history], now)
    for k in range(history):
        behind = slice(k, k - history)  # counted from the end, so that it needs no length
        tap = ops.cast(tokens[:, behind], weight.dtype)
        if documents is not None:
            tap = ops.where(ops.equal(documents[:, behind], documents[:, history:])[..., None], tap, 0.0)
        y = y + tap * spread(weight[k], tap)
    return y


def _final_window(tokens, documents, mask, history):
    """The last `history` real tokens of the last document of each row, zeros before them."""
    if history == 0:
        return tokens[:, :0]
    if mask is None:
        window = tokens[:, -history:]
        if documents is None:
            return window
        numbers, last = documents[:, -history:], documents[:, -1:]
    else:
        count = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
        index = count + ops.arange(history, dtype="int32")
        window = take_tokens(tokens, index)
        if documents is None:
            return window
        numbers = take_tokens(documents, index)
        last = take_tokens(documents, count + (history - 1))
    return ops.where(ops.equal(numbers, last)[..., None], window, 0.0)
