"""Whether the kernels can run in this process, or the reason why not."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

import keras

MINIMUM = (8, 0)  # compute capability; bfloat16 matrix products begin there


@cache
def unavailable() -> str | None:
    """Why no kernel can run in this process; None if kernels can."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return "the Triton kernels run from torch and JAX, not from TensorFlow"
    missing = [name for name in ("triton", *_bridge(backend)) if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return _torch_device() if backend == "torch" else _jax_device()


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
