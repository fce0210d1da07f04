"""Lengths, padding and packing: which tokens are real, where documents begin, and how rows are left-aligned."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import keras
from keras import ops

Tensor = Any


def size_of(tensor: Tensor, axis: int) -> Any:
    """Size of an axis: an integer where it is known, a tensor where only the running program knows it."""
    size = tensor.shape[axis]
    return ops.shape(tensor)[axis] if size is None else size


def first(tensor: Tensor, length: Any) -> Tensor:
    """The first tokens of (batch, tokens, ...), in a form that exporters can follow where the length is not known."""
    if keras.backend.backend() == "torch":
        return tensor[:, :length]  # Keras reads the numbers of its slice out of tensors, which ends a trace
    shape = ops.shape(tensor)
    return ops.slice(tensor, [0] * len(shape), (shape[0], length, *shape[2:]))  # JAX: brackets compare sizes


def padded(tensor: Tensor, count: Any) -> Tensor:
    """(batch, tokens, ...) with `count` tokens of zeros behind the last one."""
    if isinstance(count, int) and count == 0:
        return tensor  # torch would copy it
    return ops.pad(tensor, [[0, 0], [0, count], *[[0, 0]] * (len(tensor.shape) - 2)])


def split_channels(x: Tensor, *sizes: int) -> list[Tensor]:
    """Slices of the last axis of these sizes, whose gradient is one concatenation."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.split(x, sizes, axis=-1)  # Keras would need to know every axis
    if keras.backend.backend() == "torch":
        return list(x.split(sizes, dim=-1))  # Keras reads the sizes out of a tensor, which ends a trace
    return ops.split(x, list(accumulate(sizes))[:-1], axis=-1)


def left_alignment(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Permutation that moves the real tokens of each row to its front, order kept, and its inverse.

    Args:
        mask: (batch, length) bool, True at real tokens.

    Returns:
        order, rank: (batch, length) int32; `aligned[i] = x[order[i]]` and `x[t] = aligned[rank[t]]`.
    """
    position = ops.cumsum(ops.ones_like(mask, dtype="int32"), axis=1) - 1
    length = ops.cast(ops.shape(mask)[1], "int32")
    key = ops.sort(ops.where(mask, position, position + length), axis=1)  # exports to ONNX, unlike argsort
    order = ops.where(key < length, key, key - length)
    real = ops.cumsum(ops.cast(mask, "int32"), axis=1)
    return order, ops.where(mask, real - 1, real[:, -1:] + position - real)


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Tokens of x (batch, length, ...) at index (batch, k) int -> (batch, k, ...)."""
    batch, length, *rest = ops.shape(x)
    row = ops.cumsum(ops.ones_like(index[:, :1]), axis=0) - 1
    taken = ops.take(ops.reshape(x, (batch * length, *rest)), row * length + index, axis=0)
    return ops.reshape(taken, (batch, ops.shape(index)[1], *rest))


def document_starts(segment_ids: Tensor, mask: Tensor | None) -> Tensor:
    """True where a real token has another segment id than the real token before it.

    The first real token of a row is no start: it continues the initial state.

    Args:
        segment_ids: (batch, length) int.
        mask: (batch, length) bool or None.

    Returns:
        (batch, length) bool.
    """
    if mask is None:
        return _changes(segment_ids)
    order, rank = left_alignment(mask)
    return ops.logical_and(take_tokens(_changes(take_tokens(segment_ids, order)), rank), mask)


def _changes(ids: Tensor) -> Tensor:
    first = ids[:, :1]
    before = ops.concatenate([first, ids], axis=1)
    after = ops.concatenate([ids, first], axis=1)
    return ops.not_equal(before, after)[:, :-1]


def on_accelerator(tensor: Tensor) -> bool:
    """Whether a tensor lies, or a program will run, on a GPU or TPU."""
    backend = keras.backend.backend()
    if backend == "torch":
        return tensor.device.type != "cpu"
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def compiled_on_a_cpu(tensor: Tensor) -> bool:
    """Whether XLA runs a program on a CPU: JAX or TensorFlow without an accelerator."""
    return keras.backend.backend() != "torch" and not on_accelerator(tensor)


def runs_in_place(tensor: Tensor) -> bool:
    """Whether torch runs operations on a CPU one by one, so that results may take the place of temporaries."""
    if keras.backend.backend() != "torch" or tensor.device.type != "cpu":
        return False
    import torch

    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())
