"""The command `dl-mamba`: demo, train, predict, evaluate, generate, convert, inspect, variants, info."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command line; the entry point of the command `dl-mamba`.

    Example:

    >>> from dl_mamba.cli import main
    >>> callable(main)
    True
    """
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(f'dl-mamba needs {" and ".join(missing)}: pip install "dl-mamba[cli]"', file=sys.stderr)
        raise SystemExit(2)
    from dl_mamba.cli.app import app

    app(prog_name="dl-mamba")
