"""What holds for a whole process: Keras's backend when the user names none, and what becomes of freed memory.

This file imports nothing that imports Keras.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path

PREFERRED = ("jax", "torch", "tensorflow")
# options of mallopt in glibc's malloc.h: one pool for all threads, arrays of any size from it, nothing given back
KEEPING = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def choose_backend() -> tuple[str, str]:
    """Let Keras take the backend that it is set to, or an installed one where that is missing.

    Runs when `dl_mamba` is imported. It changes nothing if KERAS_BACKEND is set, if Keras is there already, or if the
    backend of `keras.json` (TensorFlow where there is no such file) is installed.

    Returns:
        The backend, and why it is this one.

    Raises:
        ModuleNotFoundError: no backend is installed.

    Example:

    >>> from dl_mamba.backend import choose_backend
    >>> choose_backend()[0] in ("jax", "torch", "tensorflow")
    True
    """
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend(), "as Keras is set"
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"], "KERAS_BACKEND names it"
    installed = [name for name in PREFERRED if importlib.util.find_spec(name) is not None]
    if not installed:
        raise ModuleNotFoundError('no backend is installed: pip install "dl-mamba[jax]", or [torch], or [tensorflow]')
    configured = _configured()
    if configured in installed:
        return configured, "as Keras is set"
    os.environ["KERAS_BACKEND"] = installed[0]
    return installed[0], f"{configured}, which Keras is set to, is not installed"


def keep_freed_memory() -> bool:
    """Let this process keep what it frees: gradients of long sequences on a CPU take less time.

    The C library of Linux, glibc, gives large arrays back to the system, which hands out new pages and clears them at
    the next call. JAX, and torch less so, take and free hundreds of MiB at each call of a long sequence, and on some
    machines a good part of its time goes there; `docs/performance.md` has figures. Call this once, early. The process
    then stays as large as it has been, and a little larger than it would be at its largest.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html.

    Returns:
        Whether glibc does so now. Elsewhere (macOS, Windows, musl) nothing is changed and the answer is False.

    Example:

    >>> import dl_mamba
    >>> dl_mamba.keep_freed_memory() in (True, False)
    True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(option, value) for option, value in KEEPING.values())


def _configured() -> str:
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        return json.loads((home / "keras.json").read_text(encoding="utf-8"))["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"
