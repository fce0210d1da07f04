"""Errors that a user can mend: one clear line each."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRAS = {
    "pandas": "data",
    "pyarrow": "data",
    "matplotlib": "plots",
    "sklearn": "eval",
    "nervaluate": "eval",
    "conllu": "eval",
    "rich": "cli",
    "typer": "cli",
}


class InputError(ValueError):
    """A file, column or option that does not fit; the message is one line that says what to do about it.

    Example:

    >>> from dl_mamba.pipelines.errors import InputError
    >>> str(InputError("films.csv is empty."))
    'films.csv is empty.'
    """


def require(module: str, purpose: str) -> ModuleType:
    """Import a module that belongs to an extra.

    Args:
        module: import name, such as `"pandas"` or `"matplotlib.pyplot"`.
        purpose: what it is needed for, as the start of the error's sentence.

    Returns:
        The module.

    Raises:
        InputError: the library is not installed; the message names the extra that brings it.

    Example:

    >>> from dl_mamba.pipelines.errors import require
    >>> require("json", "reading").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = (error.name or module).split(".")[0]
        if library not in EXTRAS:
            raise
        line = f'{purpose} needs {library}, which is not installed: pip install "dl-mamba[{EXTRAS[library]}]"'
        raise InputError(line) from error
