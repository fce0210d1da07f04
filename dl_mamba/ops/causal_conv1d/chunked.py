"""Causal depthwise convolution as d_conv shifted products, which XLA fuses into one pass.

With a mask each row is first left-aligned, so that the window of a token holds the real tokens before it.
"""

from __future__ import annotations

from functools import partial

import keras
from keras import ops

from dl_mamba.ops.gradients import recomputed, with_gradient
from dl_mamba.ops.numerics import plus, plus_product, silu, sum_of_rows, upcast
from dl_mamba.ops.sequence import left_alignment, take_tokens


def run(x, weight, bias, activation, initial_state, starts, mask):
    weight, bias = upcast("float32", weight, bias)
    rank = None
    if mask is not None:
        order, rank = left_alignment(mask)
        x = take_tokens(x, order)
        starts = None if starts is None else take_tokens(starts, order)
    before = ops.cast(initial_state, x.dtype)
    documents = None if starts is None else _number_documents(starts, weight.shape[0] - 1)
    numbers = None if documents is None else ops.cast(documents, weight.dtype)
    y = recomputed(partial(_activated, activation))(x, before, weight, bias, numbers)
    if rank is not None:
        y = ops.where(mask[..., None], take_tokens(y, rank), 0.0)
    return y, _final_window(x, before, documents, mask)


def _number_documents(starts, history):
    """(batch, history + length): 0 for the initial state and the first document, then 1, 2, ..."""
    number = ops.cumsum(ops.cast(starts, "int32"), axis=1)
    before = ops.zeros_like(number[:, :1])
    return ops.concatenate([before] * history + [number], axis=1)


def _activated(activation, x, before, weight, bias, documents):
    y = _convolve(ops.concatenate([before, x], axis=1), weight, documents)
    y = y if bias is None else plus(y, bias)
    return y if activation is None else silu(y)


def _convolve(tokens, weight, documents):
    """(b, history + l, c), (history + 1, c) -> (b, l, c)."""
    tokens = ops.cast(tokens, weight.dtype)
    length = tokens.shape[1]  # a tensor where torch traces
    if keras.backend.backend() == "torch" and documents is None and isinstance(length, int) and length == len(weight):
        return ops.sum(tokens * weight, axis=1, keepdims=True)  # one token: two calls, where XLA wants no sum
    return _products(tokens, weight, documents)[0]


def _forward(tokens, weight, documents):
    history = weight.shape[0] - 1
    y = tokens[:, history:] * weight[history]
    for k in range(history):
        y = plus_product(y, _same_document(tokens[:, k : k - history], k, history, documents), weight[k])
    return (y,), (tokens, weight) if documents is None else (tokens, weight, documents)


def _backward(residuals, gradients):
    tokens, weight, *documents = residuals
    documents = documents[0] if documents else None
    (dy,) = gradients
    history = weight.shape[0] - 1
    dtokens = ops.pad(dy * weight[history], [[0, 0], [history, 0], [0, 0]])
    dweight = [_sum_over_tokens(tokens[:, history:] * dy)]
    for k in reversed(range(history)):
        tap_dy = _same_document(dy, k, history, documents)
        dtokens = _plus_shifted(dtokens, tap_dy, weight[k], k, history)
        dweight.append(_sum_over_tokens(tokens[:, k : k - history] * tap_dy))
    return dtokens, ops.stack(dweight[::-1]), None if documents is None else ops.zeros_like(documents)


_products = with_gradient(_forward, _backward)


def _same_document(x, k, history, documents):
    """x (b, l, c) where token and tap k belong to the same document, zeros elsewhere."""
    if documents is None:
        return x
    return ops.where(ops.equal(documents[:, k : k - history], documents[:, history:])[..., None], x, 0.0)


def _plus_shifted(total, x, w, k, history):
    """total[:, k : k + l] + x w, which torch does in place."""
    if keras.backend.backend() == "torch":
        total[:, k : k - history].addcmul_(x, w)
        return total
    return total + ops.pad(x * w, [[0, 0], [k, history - k], [0, 0]])


def _sum_over_tokens(x):
    return sum_of_rows(ops.reshape(x, (-1, x.shape[-1])))


def _final_window(x, before, documents, mask):
    """The last `history` real tokens of the last document of each row, zeros before them."""
    history = before.shape[1]
    if history == 0:
        return before
    if mask is None:
        window = ops.concatenate([before, x[:, -history:]], axis=1)[:, -history:]
        if documents is None:
            return window
        numbers, last = documents[:, -history:], documents[:, -1:]
    else:
        count = ops.sum(ops.cast(mask, "int32"), axis=1, keepdims=True)
        index = count + ops.arange(history, dtype="int32")
        window = take_tokens(ops.concatenate([before, x], axis=1), index)
        if documents is None:
            return window
        numbers = take_tokens(documents, index)
        last = take_tokens(documents, count + (history - 1))
    return ops.where(ops.equal(numbers, last)[..., None], window, 0.0)
