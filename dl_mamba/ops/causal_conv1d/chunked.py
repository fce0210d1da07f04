"""Causal depthwise convolution as d_conv shifted products, which XLA fuses into one pass; torch on a CPU: `in_place`.

With a mask each row is first left-aligned, so that the window of a token holds the real tokens before it.
"""

from __future__ import annotations

from functools import cache, partial

import keras
from keras import ops

from dl_mamba.ops.gradients import recomputed, with_gradient
from dl_mamba.ops.loops import loop
from dl_mamba.ops.numerics import plus_product, silu, upcast
from dl_mamba.ops.sequence import compiled_on_a_cpu, left_alignment, padded, runs_in_place, size_of, take_tokens

SUMMED = 16  # tokens in a pass of a sum; 8 take twice as long, and 32 half as long again


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
    y = _convolution(x, before, weight, bias, numbers, activation)
    if rank is not None:
        y = ops.where(mask[..., None], take_tokens(y, rank), 0.0)
    return y, final_window(x, before, documents, mask)


def _convolution(x, before, weight, bias, documents, activation):
    if runs_in_place(x) and x.shape[1] > 1:
        from dl_mamba.ops.causal_conv1d import in_place

        return in_place.convolution(activation)(x, before, weight, bias, documents)[0]
    return _recomputed(activation)(x, before, weight, bias, documents)


@cache
def _recomputed(activation):
    return recomputed(partial(activated, activation))


def _number_documents(starts, history):
    """(batch, history + length): 0 for the initial state and the first document, then 1, 2, ..."""
    number = ops.cumsum(ops.cast(starts, "int32"), axis=1)
    before = ops.zeros_like(number[:, :1])
    return ops.concatenate([before] * history + [number], axis=1)


def activated(activation, x, before, weight, bias, documents):
    """The convolution of x (b, l, c) behind the tokens `before` (b, history, c), in the dtype of the weight."""
    y = _convolve(ops.concatenate([before, x], axis=1), weight, bias, documents)
    return y if activation is None else silu(y)


def _convolve(tokens, weight, bias, documents):
    """(b, history + l, c), (history + 1, c), (c,) -> (b, l, c)."""
    tokens = ops.cast(tokens, weight.dtype)
    length = tokens.shape[1]  # a tensor where torch traces
    if keras.backend.backend() == "torch" and documents is None and isinstance(length, int) and length == len(weight):
        y = ops.sum(tokens * weight, axis=1, keepdims=True)  # one token: two calls, where XLA wants no sum
        return y if bias is None else y + bias
    return _products(tokens, weight, bias, documents)[0]


def _forward(tokens, weight, bias, documents):
    history = weight.shape[0] - 1
    y = tokens[:, history:] * weight[history]
    for k in range(history):
        y = plus_product(y, _same_document(tokens[:, k : k - history], k, history, documents), weight[k])
    return (y if bias is None else y + bias,), (tokens, weight, bias, documents)


def _backward(residuals, gradients):
    tokens, weight, bias, documents = residuals
    (dy,) = gradients
    history = weight.shape[0] - 1
    dtokens = ops.pad(dy * weight[history], [[0, 0], [history, 0], [0, 0]])
    for k in reversed(range(history)):
        dtokens = _plus_shifted(dtokens, _same_document(dy, k, history, documents), weight[k], k, history)
    sums = _sums_over_tokens(tokens, dy, history, documents)
    dbias = None if bias is None else sums[history + 1]
    return dtokens, sums[: history + 1], dbias, None if documents is None else ops.zeros_like(documents)


_products = with_gradient(_forward, _backward)


def _sums_over_tokens(tokens, dy, history, documents):
    """Sums of dy times what each tap saw, and of dy alone: (history + 2, c)."""
    if not compiled_on_a_cpu(dy):
        return ops.stack([ops.sum(product, axis=(0, 1)) for product in _seen(tokens, dy, history, documents)])
    return _sums_by_block(tokens, dy, history, documents)


def _seen(tokens, dy, history, documents):
    """dy times what each tap saw, and dy alone, each (b, l, c)."""
    taps = [tokens[:, k : k - history] * _same_document(dy, k, history, documents) for k in range(history)]
    return [*taps, tokens[:, history:] * dy, dy]


def _sums_by_block(tokens, dy, history, documents):
    """Some tokens at a time, written out: XLA's CPU compiler makes one pass of that, of a sum over an axis many."""
    batch, _, channels = ops.shape(dy)
    blocks = (size_of(dy, 1) + SUMMED - 1) // SUMMED
    behind = blocks * SUMMED - size_of(dy, 1)
    tokens, dy, documents = (None if v is None else padded(v, behind) for v in (tokens, dy, documents))

    def step(carry, item):
        def cut(tensor, size):
            start = (0, item[0] * SUMMED, *[0] * (len(tensor.shape) - 2))
            return ops.slice(tensor, start, (batch, size, *tensor.shape[2:]))

        block = cut(tokens, SUMMED + history), cut(dy, SUMMED)
        seen = _seen(*block, history, None if documents is None else cut(documents, SUMMED + history))
        return (carry[0] + ops.stack([sum(v[:, i] for i in range(SUMMED)) for v in seen]),), ()

    start = ops.zeros((history + 2, batch, channels), dtype=dy.dtype)
    (sums,), _ = loop(step, (start,), (ops.arange(blocks, dtype="int32"),))
    return ops.sum(sums, axis=1)


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


def final_window(x, before, documents, mask):
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
