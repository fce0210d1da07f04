"""Softmax of logits that lie in half precision: one read for the losses, one read and one write for the gradient."""

from __future__ import annotations

from typing import Any

import keras
import triton
import triton.language as tl
from keras.backend import standardize_dtype

from dl_mamba.ops.kernels.launch import launch
from dl_mamba.ops.linear_cross_entropy import chunked

BLOCK = 4096  # columns at a time
WARPS = 8


class Chunk:
    """As `chunked.Chunk`."""

    LOGITS = 2**27  # no float32 copy is made of them
    MULTIPLE = 128  # XLA cuts the sum over rows in parts, and would copy table and logits each time to make them even

    @staticmethod
    def losses(logits: Any, targets: Any, vocab_size: int) -> tuple[Any, Any]:
        tokens, rows = logits.shape
        outputs = [((tokens,), "float32"), ((tokens,), "float32")]
        return launch(_losses, (tokens,), (logits, targets), outputs, num_warps=WARPS, **_sizes(rows, vocab_size))

    @staticmethod
    def gradient(logits: Any, targets: Any, normalizer: Any, dlosses: Any, vocab_size: int) -> Any:
        tokens, rows = logits.shape
        inputs = (logits, targets, normalizer, dlosses)
        outputs = [((tokens, rows), standardize_dtype(logits.dtype))]
        return launch(_gradient, (tokens,), inputs, outputs, num_warps=WARPS, **_sizes(rows, vocab_size))[0]

    @staticmethod
    def add_product(total: Any, dlogits: Any, x: Any) -> Any:
        """As its name says, on torch in place and with one rounding, to float32; XLA is slower so."""
        if keras.backend.backend() != "torch":
            return chunked.Chunk.add_product(total, dlogits, x)
        import torch

        wide = {} if x.dtype == total.dtype else {"out_dtype": total.dtype}
        return torch.addmm(total, dlogits.T, x, **wide, out=total)


def _sizes(rows, vocab_size):
    return {"ROWS": rows, "V": vocab_size, "BLOCK": BLOCK}


@triton.jit
def _losses(logits, targets, losses, normalizers, ROWS: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    logits += token.to(tl.int64) * ROWS
    column = tl.arange(0, BLOCK)
    largest = tl.full((BLOCK,), -1e30, tl.float32)  # of every BLOCK-th column, and the sum of exponentials of those
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, V, BLOCK):
        x = tl.load(logits + first + column, mask=first + column < V, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, x)
        total = total * tl.exp(largest - larger) + tl.exp(x - larger)
        largest = larger
    top = tl.max(largest, axis=0)
    normalizer = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
    target = tl.load(targets + token)
    inside = (target >= 0) & (target < V)
    chosen = tl.load(logits + target, mask=inside, other=float("nan")).to(tl.float32)
    tl.store(losses + token, normalizer - chosen)
    tl.store(normalizers + token, normalizer)


@triton.jit
def _gradient(logits, targets, normalizers, dlosses, dlogits, ROWS: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    start = token.to(tl.int64) * ROWS
    normalizer, dloss = tl.load(normalizers + token), tl.load(dlosses + token)
    target = tl.load(targets + token)
    for first in range(0, ROWS, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(logits + start + column, mask=column < V, other=-float("inf")).to(tl.float32)
        p = tl.exp(x - normalizer)
        d = tl.where(column == target, p - 1.0, p) * dloss
        tl.store(dlogits + start + column, d.to(dlogits.dtype.element_ty), mask=column < ROWS)
