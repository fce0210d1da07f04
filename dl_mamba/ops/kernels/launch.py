"""Start a kernel on tensors of torch or JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
from keras.backend import standardize_dtype

Tensor = Any
Output = tuple[tuple[int, ...], str]  # shape, dtype
NONE: Mapping[int, int] = MappingProxyType({})
OVERLAPS_FROM = (9, 0)  # compute capability


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    inputs: Sequence[Tensor],
    outputs: Sequence[Output],
    *,
    over: Mapping[int, int] = NONE,
    early: Sequence[int] | None = None,
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
        over: outputs that may lie over an input of the same shape and dtype, from the number of the input to that of
            the output. On JAX they do where the input is not needed any more, on torch in a graph of the decode loop.
        early: inputs that the kernel, which then takes OVERLAP, can read before the kernel ahead of it has ended. On
            torch one that reads none begins before that and waits; one that reads some does so in a graph of the
            decode loop where they are weights or arguments of the graph. On JAX XLA launches those itself.
        num_warps: warps of a program.
        num_stages: iterations of a loop whose loads are under way at once.
        constants: what the kernel is compiled for.
    """
    start = _LAUNCH[keras.backend.backend()]
    options = {"num_warps": num_warps, "num_stages": num_stages, **constants}
    if early is not None:
        options["OVERLAP"] = False
    return start(kernel, grid, inputs, outputs, options, over, early)


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
    batch, length, *_ = tensor.shape
    row, token, *rest = tensor.stride()
    if length == 1 < batch:
        token = row  # torch leaves the stride of an axis of one open
    if rest == wanted[::-1] and token >= inner and row == length * token and tensor.data_ptr() % 16 == 0:
        return tensor, token
    return tensor.clone(memory_format=_contiguous()), inner


def packed(tensor: Tensor) -> Tensor:
    """The tensor with its elements in a row."""
    return tensor.contiguous() if keras.backend.backend() == "torch" else tensor


def aligned(tensor: Tensor) -> Tensor:
    """`packed`, from an address that is a multiple of 16, which Triton chooses the layout of a tile by."""
    tensor = packed(tensor)
    if keras.backend.backend() == "torch" and tensor.data_ptr() % 16:
        return tensor.clone()
    return tensor


def _contiguous():
    import torch

    return torch.contiguous_format


def _launch_torch(kernel, grid, inputs, outputs, options, over, early, reuse=False, overlap=False):
    import torch

    device = inputs[0].device
    overlap = overlap or (early is not None and not early)
    if overlap and device.type == "cuda" and torch.cuda.get_device_capability(device) >= OVERLAPS_FROM:
        options = {**options, "OVERLAP": True, "launch_pdl": True}
    taken = {output: inputs[i] for i, output in over.items()} if reuse else {}
    made = tuple(
        taken[i] if i in taken else torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        for i, (shape, dtype) in enumerate(outputs)
    )
    if device.type != "cuda":
        kernel[grid](*inputs, *made, **options)
        return made
    with torch.cuda.device(device):
        kernel[grid](*inputs, *made, **options)
    return made


def _launch_jax(kernel, grid, inputs, outputs, options, over, early):
    import jax

    from dl_mamba.ops.kernels import xla_call

    shapes = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in outputs)
    tensors = [i for i, value in enumerate(inputs) if hasattr(value, "shape")]  # aliases do not count the others
    aliases = {tensors.index(i): output for i, output in over.items()}
    if early and xla_call.supported():
        return xla_call.call(kernel, grid, inputs, shapes, options, aliases)
    import jax_triton

    options |= {"input_output_aliases": aliases}
    return tuple(jax_triton.triton_call(*inputs, kernel=kernel, out_shape=shapes, grid=grid, **options))


def same(tensor: Tensor, output: Output) -> bool:
    """Whether an output can lie over a tensor."""
    return (tuple(tensor.shape), standardize_dtype(tensor.dtype)) == output


_LAUNCH = {"torch": _launch_torch, "jax": _launch_jax}
