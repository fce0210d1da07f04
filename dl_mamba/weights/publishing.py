"""Results appear whole or not at all: they are written beside their place and renamed into it at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_unfinished: set[Path] = set()


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
    >>> from dl_mamba.weights.publishing import published
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

    >>> from dl_mamba.weights.publishing import discard_unfinished
    >>> discard_unfinished()
    """
    for staging in tuple(_unfinished):
        shutil.rmtree(staging, ignore_errors=True)
