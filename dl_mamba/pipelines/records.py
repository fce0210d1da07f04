"""Data files of the tasks into records: every format is checked, and what does not fit is named by row and field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl_mamba.heads.raw import Reader, Row
from dl_mamba.heads.raw_texts import ChoiceReader, LanguageReader, MaskedReader, PairReader, TextReader
from dl_mamba.heads.raw_words import ArcReader, RelationReader, SpanReader, TagReader
from dl_mamba.pipelines.errors import InputError, require
from dl_mamba.pipelines.tables import SUFFIXES, check_source, read_table

ALIASES = {
    "text": ("text", "sentence"),
    "text_a": ("text_a", "sentence1", "premise", "question1", "query"),
    "text_b": ("text_b", "sentence2", "hypothesis", "question2", "document"),
    "prompt": ("prompt", "source", "document"),
    "completion": ("completion", "target", "summary", "translation", "response"),
    "context": ("context", "text"),
}
FIELDS: dict[type[Reader], tuple[str, ...]] = {
    TextReader: ("text",),
    PairReader: ("text_a", "text_b"),
    ChoiceReader: ("choices",),
    TagReader: ("tokens",),
    ArcReader: ("tokens",),
    RelationReader: ("tokens",),
    SpanReader: ("context",),
}
LABELS: dict[type[Reader], tuple[str, ...]] = {
    TextReader: ("label", "labels"),
    PairReader: ("label",),
    ChoiceReader: ("label", "labels"),
    TagReader: ("tags",),
    ArcReader: ("heads",),
    RelationReader: ("relations",),
    SpanReader: ("answers",),
}
LISTS = ("tokens", "tags", "heads", "relations", "choices", "answers")
COLUMN_FILES = (".conll", ".bio", ".iob", ".txt", ".tsv")


@dataclass(frozen=True)
class Records:
    """The records of one file.

    Attributes:
        source: name of the file, for messages.
        items: the records.
        where: what each is called in messages, such as "row 3".

    Example:

    >>> from dl_mamba.pipelines.records import Records
    >>> len(Records("a.csv", [{"text": "fine"}], ["row 1"]))
    1
    """

    source: str
    items: list[dict[str, Any]]
    where: list[str]

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, reader: Reader) -> list[Row]:
        """The records as a reader encodes them.

        Raises:
            InputError: a label is unknown or lies outside the text; the record is named.
        """
        rows = []
        for item, where in zip(self.items, self.where, strict=True):
            try:
                rows += reader.rows(item)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{where} of {self.source}: {_said(error)}") from error
        return rows


def read_records(
    path: str | Path,
    reader: type[Reader],
    *,
    labelled: bool = True,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Records:
    r"""The records of a data file, for tasks that a reader encodes; docs/data_formats.md has the formats.

    Args:
        path: the file, in UTF-8 if it is text.
        reader: what the task reads.
        labelled: every record needs a label; else labels are left out.
        text_column, label_column: names of columns of a table that are not called "text" and "label".

    Raises:
        InputError: the file cannot be read, or a record lacks a field; the row or line is named.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.heads.raw_words import TagReader
    >>> from dl_mamba.pipelines.records import read_records
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "names.conll")
    ...     _ = file.write_text("Anna B-PER\nsings O\n\nSo O\n")
    ...     read_records(file, TagReader).items[0]
    {'tokens': ['Anna', 'sings'], 'tags': ['B-PER', 'O']}
    """
    path = Path(path)
    source = _source_of(path, reader)
    check_source(path, (*source[0], *SUFFIXES))
    if path.suffix.lower() in source[0]:
        found = list(_checked_text(path, source[1]))
    else:
        renamed = {text_column: "text", label_column: "label"}
        found = [
            (f"row {number}", {renamed.get(name, name): cell for name, cell in row.items()})
            for number, row in enumerate(read_table(path), 1)
        ]
    if not found:
        raise InputError(f"{path} has no records.")
    items = []
    for where, record in found:
        try:
            items.append(_record(record, reader, labelled))
        except ValueError as error:
            raise InputError(f"{where} of {path.name} {error}") from error
    return Records(path.name, items, [where for where, _ in found])


def _source_of(path: Path, reader: type[Reader]) -> tuple[tuple[str, ...], Callable[[str], Iterator]]:
    """Endings of files that are no tables, and how they are read."""
    if reader is TagReader:
        treebank = path.suffix.lower() == ".conllu"
        return (*COLUMN_FILES, ".conllu"), _treebank if treebank else _tag_columns
    if reader is ArcReader:
        return (".conllu",), _treebank
    if reader is SpanReader:
        return (".json",), _squad
    if issubclass(reader, LanguageReader):
        return (".txt",), lambda text: iter([("the text", {"text": text})])
    return (), iter


def _checked_text(path: Path, parse: Callable[[str], Iterator]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        yield from parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {_said(error)}") from error


def _tag_columns(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of a token and, as the last column, its tag; an empty line ends a sentence."""
    tokens, tags, first = [], [], 1
    for number, line in enumerate([*text.split("\n"), ""], 1):
        cells = line.split()
        if cells and cells[0] != "-DOCSTART-":
            if len(cells) < 2:
                raise ValueError(
                    f"line {number} has {line.strip()!r}; a token and its tag are needed, or an empty line."
                )
            first = first if tokens else number
            tokens.append(cells[0])
            tags.append(cells[-1])
        elif tokens:
            yield f"the sentence of line {first}", {"tokens": tokens, "tags": tags}
            tokens, tags = [], []


def _treebank(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sentences of CoNLL-U: words, their heads and relations, and their universal part of speech as the tag."""
    conllu = require("conllu", "reading CoNLL-U")
    try:
        sentences = conllu.parse(text)
    except (conllu.exceptions.ParseException, ValueError) as error:
        raise ValueError(f"it is no CoNLL-U: {error}") from error
    for number, sentence in enumerate(sentences, 1):
        words = [word for word in sentence if isinstance(word["id"], int)]  # neither 3-4 nor 8.1
        where = f"sentence {sentence.metadata.get('sent_id', number)}"
        record = {"tokens": [word["form"] for word in words]}
        for name, column in (("heads", "head"), ("relations", "deprel"), ("tags", "upos")):
            if any(word.get(column) is not None for word in words):
                record[name] = [word.get(column) for word in words]
        yield where, record


def _squad(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a file of SQuAD 1.1 or 2.0."""
    try:
        articles = json.loads(text)["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [{"text": a["text"], "start": a["answer_start"]} for a in question.get("answers", [])]
                    record = {"question": question["question"], "context": paragraph["context"], "answers": answers}
                    yield f"question {question.get('id', question['question'])!r}", record
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"it is no SQuAD file: {_said(error)}; its form is data/paragraphs/qas.") from error


def _record(given: dict[str, Any], reader: type[Reader], labelled: bool) -> dict[str, Any]:
    """A record with the fields that its reader knows, or a ValueError that says what is wrong with it."""
    record = {**given, **_renamed(given, reader)}
    if reader is SpanReader:
        _one_form_of_answers(record)
    needed = FIELDS.get(reader) or (("text",) if "text" in record or reader is MaskedReader else ("prompt",))
    if reader is LanguageReader and "prompt" in record and labelled:
        needed = ("prompt", "completion")
    for name in needed:
        value = record.get(name)
        if name in LISTS:
            _check_list(name, value, least=1)
        elif not isinstance(value, str) or not value.strip():
            shown = ", ".join(ALIASES.get(name, (name,)))
            raise ValueError(f"has {value!r} as its {name}; a text is needed, in a field called one of: {shown}.")
    labels = [name for name in LABELS.get(reader, ()) if labelled and name in record]
    if labelled and reader in LABELS and not labels:
        raise ValueError(
            f"has no label; the field {' or '.join(LABELS[reader])} is needed, it has: {', '.join(given)}."
        )
    for name in labels:
        record[name] = _label(name, record[name])
    kept = {*needed, *labels, "question", *(("relations", "completion") if labelled else ())}
    return {name: value for name, value in record.items() if name in kept}


def _renamed(given: dict[str, Any], reader: type[Reader]) -> dict[str, Any]:
    """Fields under our names that have another one in the file."""
    wanted = FIELDS.get(reader, ("text",) if reader is MaskedReader else ("prompt", "completion", "text"))
    found = {}
    for name in wanted:
        other = next((alias for alias in ALIASES.get(name, ()) if alias in given), None)
        if other is not None:
            found[name] = given[other]
    return found


def _one_form_of_answers(record: dict[str, Any]) -> None:
    """Answers as a list, from the form of the `datasets` library or from fields of the row itself."""
    answers = record.get("answers")
    if isinstance(answers, dict):
        starts, texts = answers.get("answer_start", []), answers.get("text", [])
        record["answers"] = [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]
    elif answers is None and "answer" in record:
        if record["answer"] and "answer_start" not in record:
            raise ValueError("has an answer and no answer_start, the number of its first letter in the context.")
        one = {"text": record["answer"], "start": int(record.get("answer_start") or 0)}
        record["answers"] = [one] if record["answer"] else []


def _label(name: str, value: Any) -> Any:
    if name == "labels" and isinstance(value, str):
        return [part.strip() for part in value.split("|") if part.strip()]
    if name in (*LISTS, "labels"):
        _check_list(name, value, least=0)
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not str(value).strip():
        raise ValueError("has an empty label.")
    return value.strip() if isinstance(value, str) else value


def _check_list(name: str, value: Any, least: int) -> None:
    if not isinstance(value, list) or len(value) < least:
        raise ValueError(f"has {value!r} as its {name}; a list is needed, in a JSONL or Parquet file.")
    empty = [place for place, entry in enumerate(value, 1) if entry is None or entry == ""]
    if empty:
        raise ValueError(f"has an empty entry {empty[0]} in its {name}.")


def _said(error: Exception) -> str:
    text = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
    return " ".join(text.split())
