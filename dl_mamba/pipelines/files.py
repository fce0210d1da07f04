"""Model files that are read, and where a command may write its result."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import keras

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


def load_model(path: str | Path, kinds: tuple[type, ...], wanted: str) -> keras.Model:
    """A model from a .keras file.

    Args:
        path: the file.
        kinds: classes, one of which it must be.
        wanted: what they are, in words.

    Raises:
        InputError: the file is missing, damaged, or holds another kind of model.

    Example:

    >>> from dl_mamba.pipelines.files import load_model
    >>> load_model("nowhere.keras", (), "")
    Traceback (most recent call last):
        ...
    dl_mamba.pipelines.errors.InputError: nowhere.keras does not exist, or is no file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is no file.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} is no .keras file.")
    try:
        model = keras.saving.load_model(path, compile=False)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    if not isinstance(model, kinds):
        raise InputError(f"{path} holds a {type(model).__name__}; {wanted} is needed.")
    return model
