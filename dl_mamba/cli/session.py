"""What every command shares: a mistake becomes one line, a signal leaves nothing half-written, lines become a table."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from dl_mamba import BACKEND, REASON


@contextmanager
def session(say: bool = True) -> Iterator[None]:
    """Says which backend runs; a user's mistake becomes one line and exit code 2."""
    if BACKEND != "tensorflow":  # Keras imports it in `fit` wherever it is installed, and it would write into our lines
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    signal.signal(signal.SIGTERM, _terminate)
    if say:
        print(f"backend: {BACKEND} ({REASON})", file=sys.stderr)
    from dl_mamba.pipelines.errors import InputError
    from dl_mamba.weights import CheckpointError

    try:
        yield
    except (InputError, CheckpointError) as error:
        _fail(error)


def _terminate(number: int, frame: Any) -> None:
    """End at once, and leave nothing half-written: an exception would be lost where Python code runs in a callback."""
    from dl_mamba.weights.publishing import discard_unfinished

    discard_unfinished()
    Console(stderr=True).show_cursor()
    os._exit(128 + number)


def _fail(error: Exception) -> None:
    print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
    raise typer.Exit(2) from error


def show(lines: dict[str, str]) -> None:
    """Names and values as two columns."""
    table = Table(show_header=False, box=None)
    for name, value in lines.items():
        table.add_row(f"[bold]{name}[/bold]", value)
    Console(soft_wrap=True).print(table)
