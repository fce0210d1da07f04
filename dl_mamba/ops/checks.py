"""Shapes and dtypes, checked before any compute."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def to_tensor(name: str, value: Any) -> Tensor | None:
    """A floating-point tensor, or an error that names the argument."""
    if value is None:
        return None
    if isinstance(value, (int, float)):
        raise ValueError(f"{name}={value!r} is a number; pass an array of floats.")
    value = ops.convert_to_tensor(value)
    dtype = keras.backend.standardize_dtype(value.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"{name} has dtype {dtype}; a floating-point dtype is needed, e.g. ops.cast({name}, 'float32')."
        )
    return value


def to_mask(mask: Any, batch: int | None, length: int | None) -> Tensor | None:
    """A (batch, length) bool tensor from a bool, integer or float mask; None stays None."""
    if mask is None:
        return None
    mask = ops.convert_to_tensor(mask)
    expect_shape("mask", mask, batch=batch, length=length)
    return ops.cast(mask, "bool")


def to_segment_ids(segment_ids: Any, batch: int | None, length: int | None) -> Tensor | None:
    """A (batch, length) integer tensor; None stays None."""
    if segment_ids is None:
        return None
    segment_ids = ops.convert_to_tensor(segment_ids)
    dtype = keras.backend.standardize_dtype(segment_ids.dtype)
    if "int" not in dtype:
        raise ValueError(f"segment_ids has dtype {dtype}; integer document numbers are needed.")
    expect_shape("segment_ids", segment_ids, batch=batch, length=length)
    return segment_ids


def expect_rank(name: str, tensor: Tensor, axes: str) -> tuple[int | None, ...]:
    """The static shape of a tensor whose axes are named, e.g. `"(batch, length, channels)"`."""
    if len(tensor.shape) != axes.count(",") + 1:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {axes} is needed.")
    return tuple(tensor.shape)


def expect_shape(name: str, tensor: Tensor | None, **axes: int | None) -> None:
    """Compare a shape with named sizes; None in either agrees with everything."""
    if tensor is None:
        return
    came, wanted = tuple(tensor.shape), tuple(axes.values())
    agree = len(came) == len(wanted) and all(
        not (isinstance(a, int) and isinstance(b, int)) or a == b for a, b in zip(came, wanted, strict=True)
    )
    if not agree:
        words = ", ".join(axis if size is None else f"{axis}={size}" for axis, size in axes.items())
        raise ValueError(f"{name} has shape {came}; ({words}) is needed.")


def expect_groups(ngroups: int, of: str, count: int) -> None:
    """Groups must divide the channels or heads that share them."""
    if isinstance(count, int) and isinstance(ngroups, int) and count % ngroups:
        divisors = [g for g in range(1, count + 1) if count % g == 0]
        raise ValueError(f"ngroups={ngroups} does not divide {of}={count}; choose one of {divisors}.")
