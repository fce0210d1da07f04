"""Answers of a `TaskModel` to texts or to the records of a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl_mamba.heads.task_model import TaskModel
from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.files import check_destination
from dl_mamba.pipelines.records import read_records
from dl_mamba.weights.publishing import published


@dataclass(frozen=True)
class Answers:
    """What a model said.

    Attributes:
        task: name of the task.
        items: one dictionary a record; docs/data_formats.md lists their fields.

    Example:

    >>> from dl_mamba.pipelines.answers import Answers
    >>> Answers("score", [{"value": 0.5}]).lines()
    ['{"value": 0.5}']
    """

    task: str
    items: list[dict[str, Any]]

    def lines(self) -> list[str]:
        """The answers as lines of JSON."""
        return [json.dumps(item, ensure_ascii=False) for item in self.items]


def answer(
    model: TaskModel,
    texts: Sequence[str],
    data: str | Path | None,
    out: str | Path | None,
    task: str | None,
    columns: Mapping[str, str | None],
    **options: Any,
) -> Answers:
    """Answers to texts, or to the records of a file.

    Args:
        model: the model.
        texts: plain texts, for tasks that read one.
        data: a file instead; its labels may be missing.
        out: a JSONL file for the answers, or None.
        task: name of the task, for a model of several.
        columns: `text_column` and `label_column` of a table.
        **options: of `TaskModel.answers`.

    Raises:
        InputError: the inputs or the destination do not fit.
    """
    if out is not None:
        check_destination(out, (".jsonl",))
    try:
        name = model.task_named(task).name
        reader = model.readers[name]
        if data is not None:
            records = read_records(data, type(reader), labelled=False, **columns)
            records.rows(reader)  # says which record does not fit
            texts = records.items
        found = Answers(name, model.answers(texts, name, **options))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
    if out is not None:
        out = Path(out)
        with published(out.parent) as staging:
            (staging / out.name).write_text("\n".join(found.lines()) + "\n", encoding="utf-8")
    return found
