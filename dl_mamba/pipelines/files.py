"""Where a command may write its result."""

from __future__ import annotations

import os
from pathlib import Path

from dl_mamba.pipelines.errors import InputError


def check_destination(path: str | Path, suffixes: tuple[str, ...] = (".keras",)) -> Path:
    """The path of a file to be written, checked before any work is done for it.

    Args:
        path: where the file is to appear.
        suffixes: endings that are allowed.

    Returns:
        The path.

    Raises:
        InputError: another ending, or the folder is missing or cannot be written.

    Example:

    >>> from dl_mamba.pipelines.files import check_destination
    >>> check_destination("model.keras").name
    'model.keras'
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        ending, wanted = path.suffix or "nothing", " or ".join(suffixes)
        raise InputError(f"{path} ends in {ending!r}; choose a name that ends in {wanted}.")
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it, or choose another for {path.name}.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; choose another name.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"the folder {path.parent} cannot be written; choose another place for {path.name}.")
    return path
