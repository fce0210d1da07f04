"""Cross entropy from all logits at once: -log softmax(x weight^T)[target]."""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.numerics import accumulation_dtype, upcast


def run(x, weight, targets, vocab_size):
    x, weight = upcast(accumulation_dtype(x, weight), x, weight[:vocab_size])
    logits = ops.sum(x[:, :, None] * weight, axis=-1)
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    normalizer = ops.log(ops.sum(ops.exp(logits), axis=-1))
    return normalizer - ops.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
