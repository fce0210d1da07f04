"""Whether the kernels can run in this process, or the reason why not."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from typing import Any

import keras
from keras.backend import standardize_dtype

from dl_mamba.ops.sequence import on_accelerator

MINIMUM = (8, 0)  # compute capability; bfloat16 matrix products begin there


def unavailable() -> str | None:
    """Why no kernel can run in this process; None if kernels can."""
    return _found()


if keras.backend.backend() == "torch":
    import torch

    torch.compiler.assume_constant_result(unavailable)  # it looks for libraries and devices, which cannot be traced


@cache
def _found() -> str | None:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return "the Triton kernels run from torch and JAX, not from TensorFlow"
    missing = [name for name in ("triton", *_bridge(backend)) if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return _torch_device() if backend == "torch" else _jax_device()


def refusal_of(x: Any, *others: Any) -> str | None:
    """Why no kernel can take these tensors; None if some kernel can. Any but x may be None."""
    reason = unavailable()
    if reason:
        return reason
    if not (on_accelerator(x) or interpreted()):
        return "x is not on the GPU"
    given = [x, *(v for v in others if v is not None)]
    sizes = [size for v in given for size in v.shape]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return f"sizes must be known and positive; x has shape {tuple(x.shape)}"
    if any(standardize_dtype(v.dtype) == "float64" for v in given):
        return "an input is float64; the kernels compute in float32"
    return None


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1" and keras.backend.backend() == "torch"


def _bridge(backend: str) -> tuple[str, ...]:
    return ("jax_triton",) if backend == "jax" else ()


def _torch_device() -> str | None:
    import torch

    if interpreted():
        return None
    if not torch.cuda.is_available() or torch.version.hip:
        return "no NVIDIA GPU"
    return _too_old(torch.cuda.get_device_capability())


def _jax_device() -> str | None:
    import jax

    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda") or not hasattr(device, "compute_capability"):
        return "no NVIDIA GPU"
    return _too_old(tuple(int(part) for part in str(device.compute_capability).split(".")))


def _too_old(capability: tuple[int, ...]) -> str | None:
    if capability >= MINIMUM:
        return None
    came, wanted = (".".join(map(str, version)) for version in (capability, MINIMUM))
    return f"the GPU has compute capability {came}; {wanted} is needed"
