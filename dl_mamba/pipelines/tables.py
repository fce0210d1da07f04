"""Tables into examples: which column is text, which is the label, and what is a number."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba.pipelines.errors import InputError, require

TEXT_COLUMNS = ("text", "sentence")
LABEL_COLUMN = "label"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Examples:
    """Inputs and labels of one file.

    Attributes:
        source: name of the file, for messages.
        kind: `"text"` or `"numbers"`.
        inputs: one string, or one (length, 1) float32 array, an example.
        labels: one name an example, or None where the file has none.

    Example:

    >>> from dl_mamba.pipelines.tables import Examples
    >>> len(Examples("films.csv", "text", ["fine", "dull"], ["1", "0"]))
    2
    """

    source: str
    kind: str
    inputs: list[Any]
    labels: list[str] | None

    def __len__(self) -> int:
        return len(self.inputs)


def read_examples(
    path: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> Examples:
    r"""Examples of a CSV, TSV, JSONL or Parquet file.

    Text is the column `text_column`, or one called "text" or "sentence"; labels are the column `label_column`, or one
    called "label". A CSV or TSV file may come without a header: as text and label, or as numbers with the label last.
    Without a text column every other column has to be numbers, and each is one step of a sequence; an empty cell is a
    step that was not measured. TSV files are read without quoting.

    Args:
        path: the file, in UTF-8 if it is text.
        text_column, label_column: names of columns in the header.
        labelled: whether a label column has to be there.

    Returns:
        The examples.

    Raises:
        InputError: the file cannot be read, is empty, or lacks a column.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.pipelines.tables import read_examples
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "films.csv")
    ...     _ = file.write_text("text,label\nfine film,good\nno,bad\n")
    ...     examples = read_examples(file)
    >>> examples.inputs, examples.labels
    (['fine film', 'no'], ['good', 'bad'])
    """
    path = Path(path)
    frame = _named(_read(path), path.name, text_column, label_column, labelled)
    if not len(frame):
        raise InputError(f"{path} has a header and no rows.")
    columns = [str(name) for name in frame.columns]
    frame.columns = columns
    label = label_column or (LABEL_COLUMN if LABEL_COLUMN in columns or labelled else None)
    for option, name in (("label", label), ("text", text_column)):
        if name is not None and name not in columns:
            advice = f"name the {option} column with --{option}-column"
            raise InputError(f"{path} has no column {name!r}; {advice}. {_list(columns)}")
    text = text_column or next((name for name in TEXT_COLUMNS if name in columns), None)
    labels = None if label is None else _labels(frame[label], path)
    if text is not None:
        return Examples(path.name, "text", _texts(frame[text], path), labels)
    return Examples(path.name, "numbers", _sequences(frame.drop(columns=[label] if label else []), path), labels)


def _list(columns: list[str]) -> str:
    shown = columns if len(columns) <= 12 else [*columns[:12], f"and {len(columns) - 12} more"]
    return f"Its columns are: {', '.join(shown)}."


def check_source(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuse a file that is missing, empty, or of another ending.

    Raises:
        InputError: says which.
    """
    if path.suffix.lower() not in suffixes:
        ending = path.suffix or "nothing"
        raise InputError(f"{path} ends in {ending!r}; a file that ends in one of {', '.join(suffixes)} is needed.")
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is no file.")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty.")


def read_table(path: Path) -> list[dict[str, Any]]:
    r"""The rows of a table with a header (or of a JSONL or Parquet file); what a row does not have is left out.

    Raises:
        InputError: the file cannot be read, or is empty.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.pipelines.tables import read_table
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "pairs.csv")
    ...     _ = file.write_text("text_a,text_b\none,two\n")
    ...     read_table(file)
    [{'text_a': 'one', 'text_b': 'two'}]
    """
    frame = _read(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        frame = frame.iloc[1:].set_axis([str(cell).strip() for cell in frame.iloc[0]], axis=1)
    if not len(frame):
        raise InputError(f"{path} has a header and no rows.")
    return [
        {name: _plain(cell) for name, cell in row.items() if not _missing(cell)} for row in frame.to_dict("records")
    ]


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and cell != cell)


def _plain(cell: Any) -> Any:
    """Lists and numbers of Python, where Parquet gives arrays and NumPy's own."""
    return cell.tolist() if isinstance(cell, np.ndarray | np.generic) else cell


def _read(path: Path) -> Any:
    """The file as a pandas frame; its columns are numbers where a header is still to be found."""
    check_source(path, SUFFIXES)
    pandas = require("pandas", f"reading {path.name}")
    try:
        return READERS[path.suffix.lower()](pandas, path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except pandas.errors.EmptyDataError as error:
        raise InputError(f"{path} is empty.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {_one_line(error)}") from error
    except (pandas.errors.ParserError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is no readable {path.suffix[1:].upper()}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_delimited(pandas: Any, path: Path) -> Any:
    tabs = path.suffix.lower() == ".tsv"
    layout = {"sep": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"sep": ","}
    # Every cell as it stands: a review that reads "null" is text, and 007 is a label.
    frame = pandas.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", **layout)
    return frame.fillna("")


def _read_jsonl(pandas: Any, path: Path) -> Any:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object with named fields")
        rows.append(row)
    if not rows:
        raise pandas.errors.EmptyDataError
    return pandas.DataFrame(rows, dtype=object)


def _read_parquet(pandas: Any, path: Path) -> Any:
    require("pyarrow", f"reading {path.name}")
    return pandas.read_parquet(path, engine="pyarrow")


READERS = {".csv": _read_delimited, ".tsv": _read_delimited, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _named(frame: Any, source: str, text_column: str | None, label_column: str | None, labelled: bool) -> Any:
    """A delimited table with names: those of its first row, or ours where that row is data already."""
    if source.lower().endswith((".jsonl", ".parquet")):
        return frame
    first = [str(cell).strip() for cell in frame.iloc[0]]
    named = text_column or label_column or {LABEL_COLUMN, *TEXT_COLUMNS} & set(first)
    names = None if named else _headerless(frame, first, labelled)
    if names is None:
        if len(set(first)) != len(first):
            raise InputError(f"{source} names a column twice in its header: {', '.join(first)}.")
        return frame.iloc[1:].set_axis(first, axis=1)
    return frame.set_axis(names, axis=1)


def _headerless(frame: Any, first: list[str], labelled: bool) -> list[str] | None:
    """Names for a table whose first row is an example, or None if that row looks like a header."""
    width = len(first)
    if all(map(_is_number, first[:-1])) and (_is_number(first[-1]) if not labelled else width > 1):
        steps = [str(step) for step in range(width)]
        return [*steps[:-1], LABEL_COLUMN] if labelled else steps
    if width == 2 and first[1] in {str(cell).strip() for cell in frame.iloc[1:, 1]}:
        return [TEXT_COLUMNS[0], LABEL_COLUMN]
    return [TEXT_COLUMNS[0]] if width == 1 and not labelled else None


def _is_number(cell: Any) -> bool:
    try:
        float(cell or "nan")
    except (TypeError, ValueError):
        return False
    return True


def _labels(column: Any, path: Path) -> list[str]:
    labels = []
    for row, value in enumerate(column, 1):
        missing = value is None or value != value
        name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        if missing or not name:
            raise InputError(f"row {row} of {path} has no label.")
        labels.append(name)
    return labels


def _texts(column: Any, path: Path) -> list[str]:
    for row, value in enumerate(column, 1):
        if not isinstance(value, str):
            raise InputError(f"row {row} of {path} has {value!r} where text is needed.")
    return list(column)


def _sequences(frame: Any, path: Path) -> list[np.ndarray]:
    if not len(frame.columns):
        raise InputError(f"{path} has a label column and nothing else; a text column or columns of numbers are needed.")
    for name in frame.columns:
        wrong = [(row, cell) for row, cell in enumerate(frame[name], 1) if not _is_number(cell)]
        if wrong:
            row, cell = wrong[0]
            raise InputError(
                f"{path} has no column {' or '.join(map(repr, TEXT_COLUMNS))}, and its column {name!r} is not numbers "
                f"({cell!r} in row {row}); name the text column with --text-column. {_list(list(frame.columns))}"
            )
    values = frame.map(lambda cell: float("nan") if cell in ("", None) else float(cell)).to_numpy("float32")
    return list(values[:, :, None])
