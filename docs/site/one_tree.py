"""Lays `heads/` and `variants/` into `dl_mamba`, as the wheel has them, for the reader of docstrings.

It reads files and imports nothing, so that a site is built without Keras or a backend.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "api" / "dl_mamba"


def on_startup(**_: Any) -> None:
    """Called by MkDocs first of all: the reader of docstrings passes over folders that are not there when it starts."""
    TREE.mkdir(parents=True, exist_ok=True)


def on_pre_build(**_: Any) -> None:
    """Called by MkDocs before it reads the pages."""
    shutil.rmtree(TREE, ignore_errors=True)
    shutil.copytree(ROOT / "dl_mamba", TREE, ignore=shutil.ignore_patterns("heads", "variants", "__pycache__"))
    for name in ("heads", "variants"):
        shutil.copytree(ROOT / name, TREE / name, ignore=shutil.ignore_patterns("__pycache__"))
