"""Which backend Keras gets when the user names none. This file imports nothing that imports Keras."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

PREFERRED = ("jax", "torch", "tensorflow")


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


def _configured() -> str:
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        return json.loads((home / "keras.json").read_text(encoding="utf-8"))["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"
