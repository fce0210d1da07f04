"""What this installation runs on: versions, backend, devices, implementations."""

from __future__ import annotations

import importlib
import platform
from typing import Any

import keras

from dl_mamba import variants
from dl_mamba.ops.kernels.availability import rejections, unavailable, version_of
from dl_mamba.pipelines.errors import InputError

OPS = ("selective_scan", "ssd", "causal_conv1d", "gated_rms_norm")


def versions() -> dict[str, str]:
    """Versions of Python, this package, Keras, NumPy and the library behind the backend.

    Example:

    >>> from dl_mamba.pipelines.environment import versions
    >>> sorted(versions())[:2]
    ['backend', 'dl-mamba']
    """
    backend = keras.config.backend()
    found = {name: version_of(name) for name in ("dl-mamba", "keras", "numpy")}
    library = getattr(importlib.import_module(backend), "__version__", "unknown")
    return {"python": platform.python_version(), **found, "backend": f"{backend} {library}"}


def devices() -> list[str]:
    """Names of the devices that the backend sees.

    Example:

    >>> from dl_mamba.pipelines.environment import devices
    >>> len(devices()) >= 1
    True
    """
    backend = keras.config.backend()
    library = importlib.import_module(backend)
    if backend == "jax":
        return [str(device) for device in library.devices()]
    if backend == "tensorflow":
        return [device.name for device in library.config.list_physical_devices()]
    return [*(library.cuda.get_device_name(i) for i in range(library.cuda.device_count())), "cpu"]


def implementations() -> dict[str, list[str]]:
    """The implementations that each op has; `kernels()` says whether `"triton"` can run here.

    Example:

    >>> from dl_mamba.pipelines.environment import implementations
    >>> implementations()["ssd"][:2]
    ['reference', 'chunked']
    """
    return {op: list(importlib.import_module(f"dl_mamba.ops.{op}").IMPLEMENTATIONS) for op in OPS}


def kernels() -> str:
    """`"available"`, those among them that failed `check_kernels`, or why the Triton kernels cannot run here.

    Example:

    >>> from dl_mamba.pipelines.environment import kernels
    >>> isinstance(kernels(), str)
    True
    """
    wrong = "".join(f"; {op} is not used: {reason}" for op, reason in rejections().items())
    return unavailable() or f"available{wrong}"


def check_kernels() -> dict[str, str]:
    """Compare the Triton kernels with the portable program on this GPU; ops whose kernels are wrong do not take them.

    Returns:
        what is wrong, by op; nothing if all is right.

    Raises:
        InputError: no kernel can run here.

    Example:

    >>> from dl_mamba.pipelines.environment import check_kernels
    >>> callable(check_kernels)
    True
    """
    reason = unavailable()
    if reason:
        raise InputError(f"there are no kernels to check: {reason}.")
    from dl_mamba.ops.kernels import self_check

    return self_check.check_kernels()


def describe() -> dict[str, Any]:
    """All of this at once: `versions`, `devices`, `kernels`, `implementations`.

    Example:

    >>> from dl_mamba.pipelines.environment import describe
    >>> list(describe())
    ['versions', 'devices', 'kernels', 'implementations']
    """
    return {
        "versions": versions(),
        "devices": devices(),
        "kernels": kernels(),
        "implementations": implementations(),
    }


def variant_rows(family: str | None = None) -> list[dict[str, Any]]:
    """The presets as the rows of a table.

    Args:
        family: `"mamba"`, `"mamba2"`, or None for both.

    Raises:
        InputError: the family is unknown.

    Example:

    >>> from dl_mamba.pipelines.environment import variant_rows
    >>> variant_rows("mamba")[1]["layers"]
    24
    """
    try:
        names = variants.names(family)
    except ValueError as error:
        raise InputError(str(error)) from error
    configs = {name: variants.load(name) for name in names}
    return [
        {
            "variant": name,
            "layers": config.num_layers,
            "d_model": config.d_model,
            "d_state": config.d_state,
            "vocabulary": config.vocab_size,
            "parameters": config.num_parameters,
        }
        for name, config in configs.items()
    ]
