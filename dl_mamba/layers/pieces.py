"""A long sequence through a mixer a piece at a time, with carried state, where no gradient is wanted.

What a mixer computes of a token takes tens of KB. Of a long sequence that is memory that the system has to clear page
by page at every call: on a CPU this takes as long as the computation, and a piece's is there again for the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from dl_mamba.ops.loops import loop
from dl_mamba.ops.sequence import on_accelerator, runs_in_place

PIECE = {"jax": 1024, "torch": 4096}  # tokens of all rows; TensorFlow keeps its memory, and no tape could pass a loop
SHORTEST = 64  # tokens of a row: a chunk of SSD
LARGE = 2**22  # numbers in the widest tensor of a mixer; less memory than that is at hand


def count(x: Any, width: int, training: bool | None) -> int:
    """In how many pieces x (batch, length, d_model) should pass a mixer whose widest tensor has `width` channels."""
    batch, length, _ = x.shape
    if training or not (isinstance(batch, int) and isinstance(length, int)) or batch * length * width < LARGE:
        return 1
    if keras.backend.standardize_dtype(x.dtype) == "float64" or not _keeps_nothing(x):
        return 1  # a state of float64 would not fit into the place of its float32 predecessor
    return max(1, min(batch * length // PIECE[keras.backend.backend()], length // SHORTEST))


def run(mix: Callable[[Any, tuple], tuple[Any, tuple]], x: Any, state: tuple, count: int) -> tuple[Any, tuple]:
    """`mix(x, state)` -> y, state, in so many equal pieces and a shorter one if need be."""
    batch, length, width = x.shape
    size = length // count

    def step(state, piece):
        y, state = mix(piece[0], state)
        return tuple(state), (y,)

    pieces = ops.moveaxis(ops.reshape(x[:, : count * size], (batch, count, size, width)), 1, 0)
    state, (y,) = loop(step, tuple(state), (pieces,))
    y = ops.reshape(ops.moveaxis(y, 0, 1), (batch, count * size, y.shape[-1]))
    if count * size == length:
        return y, state
    rest, state = mix(x[:, count * size :], state)
    return ops.concatenate([y, rest], axis=1), state


def _keeps_nothing(x: Any) -> bool:
    """Whether this is a program of JAX for a CPU, or torch on a CPU, and no gradient is being taken."""
    backend = keras.backend.backend()
    if backend == "jax":
        from jax.interpreters.partial_eval import DynamicJaxprTracer

        return isinstance(x, DynamicJaxprTracer) and not on_accelerator(x)  # gradients have others
    if backend == "torch":
        import torch

        return runs_in_place(x) and not torch.is_grad_enabled()
    return False
