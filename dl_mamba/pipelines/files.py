"""Results appear whole or not at all: they are written beside their place and renamed into it at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dl_mamba.pipelines.errors import InputError

_unfinished: set[Path] = set()


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


@contextmanager
def published(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when the block ends well, and vanish when it does not.

    It lies inside `folder`, so that each move is one rename on one disk.

    Args:
        folder: where the files are to appear; it exists.

    Yields:
        The temporary folder.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.pipelines.files import published
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with published(folder) as staging:
    ...         _ = (staging / "a.txt").write_text("whole")
    ...     [path.name for path in pathlib.Path(folder).iterdir()]
    ['a.txt']
    """
    staging = Path(tempfile.mkdtemp(prefix=".dl-mamba-", dir=folder))
    _unfinished.add(staging)
    try:
        yield staging
        for file in sorted(staging.iterdir()):
            os.replace(file, Path(folder) / file.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _unfinished.discard(staging)


def discard_unfinished() -> None:
    """Take away what open `published` blocks have written, before the process is ended at once.

    Example:

    >>> from dl_mamba.pipelines.files import discard_unfinished
    >>> discard_unfinished()
    """
    for staging in tuple(_unfinished):
        shutil.rmtree(staging, ignore_errors=True)
