"""Whether the kernels can run in this process, or the reason why not."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
from keras.backend import standardize_dtype

from dl_mamba.ops.sequence import on_accelerator

MINIMUM = (8, 0)  # compute capability; bfloat16 matrix products begin there


def unavailable() -> str | None:
    """Why no kernel can run in this process; None if kernels can."""
    return _found()


def rejected(op: str) -> str | None:
    """Why the kernels of an op are not used though they can run: `check_kernels` found them wrong on this machine."""
    return rejections().get(op)


if keras.backend.backend() == "torch":
    import torch

    for question in (unavailable, rejected):  # they look for libraries, devices and files, which cannot be traced
        torch.compiler.assume_constant_result(question)


@cache
def rejections() -> dict[str, str]:
    """What `check_kernels` found wrong, by op, with this GPU and these versions of the libraries."""
    known = {} if unavailable() else _all_rejections()
    return known.get(installation(), {}) if known else {}


def reject(found: dict[str, str]) -> None:
    """Keep what `check_kernels` found wrong, in Keras's folder."""
    path, text = _file(), json.dumps(_all_rejections() | {installation(): found}, indent=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)
    rejections.cache_clear()


def _all_rejections() -> dict[str, dict[str, str]]:
    try:
        return json.loads(_file().read_text())
    except OSError:  # none is there, or none that this user can read
        return {}
    except ValueError:
        logging.getLogger("dl_mamba").warning("%s is no JSON: nothing is known of kernels that are wrong", _file())
        return {}


def _file() -> Path:
    return Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))) / "dl_mamba_kernels.json"


def installation() -> str:
    """The GPU and the versions of what makes a kernel."""
    backend = keras.backend.backend()
    packages = ("dl-mamba", "triton", backend, *_bridge(backend))
    device = _torch_name() if backend == "torch" else _jax_name()
    return ", ".join([device, *(f"{name} {version_of(name)}" for name in packages)])


def version_of(distribution: str) -> str:
    """The version of an installed package."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


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


def _torch_name() -> str:
    import torch

    return "interpreter" if interpreted() else torch.cuda.get_device_name()


def _jax_name() -> str:
    import jax

    return jax.devices()[0].device_kind


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
