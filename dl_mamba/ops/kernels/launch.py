"""Start a kernel on tensors of torch or JAX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

Tensor = Any
Output = tuple[tuple[int, ...], str]  # shape, dtype


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    inputs: Sequence[Tensor],
    outputs: Sequence[Output],
    *,
    num_warps: int = 4,
    num_stages: int = 2,
    **constants: Any,
) -> tuple[Tensor, ...]:
    """Run `kernel(*inputs, *outputs, **constants)` and return the outputs.

    Args:
        kernel: a function of `triton.jit`.
        grid: number of programs along each axis.
        inputs: tensors and integers.
        outputs: shapes and dtypes.
        num_warps: warps of a program.
        num_stages: iterations of a loop whose loads are under way at once.
        constants: what the kernel is compiled for.
    """
    start = _LAUNCH[keras.backend.backend()]
    return start(kernel, grid, inputs, outputs, {"num_warps": num_warps, "num_stages": num_stages, **constants})


def token_stride(tensor: Tensor) -> tuple[Tensor, int]:
    """A (batch, length, ...) tensor that a kernel can read, and the distance of its tokens.

    A slice of channels stays where it is; any other layout is copied.
    """
    inner = 1
    for size in tensor.shape[2:]:
        inner *= size
    if keras.backend.backend() != "torch":
        return tensor, inner
    wanted, stride = [], 1
    for size in reversed(tensor.shape[2:]):
        wanted.append(stride)
        stride *= size
    _, length, *_ = tensor.shape
    row, token, *rest = tensor.stride()
    if rest == wanted[::-1] and token >= inner and row == length * token and tensor.data_ptr() % 16 == 0:
        return tensor, token
    return tensor.clone(memory_format=_contiguous()), inner


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Distances of neighbours along each axis."""
    if keras.backend.backend() == "torch":
        return tensor.stride()
    return tuple(math.prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape)))


def packed(tensor: Tensor) -> Tensor:
    """The tensor with its elements in a row."""
    return tensor.contiguous() if keras.backend.backend() == "torch" else tensor


def _contiguous():
    import torch

    return torch.contiguous_format


def _launch_torch(kernel, grid, inputs, outputs, options):
    import torch

    device = inputs[0].device
    made = tuple(torch.empty(shape, dtype=getattr(torch, dtype), device=device) for shape, dtype in outputs)
    if device.type != "cuda":
        kernel[grid](*inputs, *made, **options)
        return made
    with torch.cuda.device(device):
        kernel[grid](*inputs, *made, **options)
    return made


def _launch_jax(kernel, grid, inputs, outputs, options):
    import jax
    import jax_triton

    shapes = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs)
    return tuple(jax_triton.triton_call(*inputs, kernel=kernel, out_shape=shapes, grid=grid, **options))


_LAUNCH = {"torch": _launch_torch, "jax": _launch_jax}
