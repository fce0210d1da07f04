"""Causal depthwise convolution: y[t] = activation(sum_k weight[k] x[t - (d_conv - 1) + k] + bias).

The window slides over real tokens only and is emptied where a document starts.
"""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.loops import native_loop
from dl_mamba.ops.numerics import accumulation_dtype, upcast


def run(x, weight, bias, activation, initial_state, starts, mask):
    x, weight, bias, window = upcast(accumulation_dtype(x, weight), x, weight, bias, initial_state)
    starts = ops.zeros(ops.shape(x)[:2], dtype="bool") if starts is None else starts
    mask = ops.ones(ops.shape(x)[:2], dtype="bool") if mask is None else mask

    def token(carry, inputs):
        (window,), (x, start, real) = carry, inputs
        window = ops.where(start[:, None, None], 0.0, window)
        filled = ops.concatenate([window, x[:, None]], axis=1)
        y = ops.sum(filled * weight, axis=1)
        y = y if bias is None else y + bias
        y = y if activation is None else ops.silu(y)
        return (ops.where(real[:, None, None], filled[:, 1:], window),), (ops.where(real[:, None], y, 0.0),)

    (window,), (y,) = native_loop(token, (window,), tuple(ops.moveaxis(v, 1, 0) for v in (x, starts, mask)))
    return ops.moveaxis(y, 0, 1), window
