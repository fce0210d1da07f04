"""A model file and labelled data into metrics, a table of classes, and figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba.heads.raw import Reader, Row
from dl_mamba.heads.raw_texts import ChoiceReader, LanguageReader, MaskedReader, TextReader
from dl_mamba.heads.raw_words import ArcReader, RelationReader, SpanReader, TagReader
from dl_mamba.heads.task_model import TaskModel
from dl_mamba.heads.text_classifier import Classifier
from dl_mamba.pipelines import place_scores, scores
from dl_mamba.pipelines.environment import versions
from dl_mamba.pipelines.errors import InputError, require
from dl_mamba.pipelines.prediction import classifier_examples, load_trained
from dl_mamba.pipelines.records import read_records
from dl_mamba.pipelines.scores import Scores
from dl_mamba.pipelines.splits import class_numbers
from dl_mamba.weights.publishing import published


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        metrics: what the metrics file holds under `scores`.
        files: the files written, by what they are.
        notes: lines for the user about what was left out.

    Example:

    >>> from dl_mamba.pipelines.evaluation import Evaluation
    >>> Evaluation({"accuracy": 1.0}, {}).notes
    ()
    """

    metrics: dict[str, Any]
    files: dict[str, Path]
    notes: tuple[str, ...] = ()


def evaluate(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 32,
) -> Evaluation:
    """Score a model on labelled data and write `metrics.json`, `classes.csv` and figures into a folder.

    Args:
        model: a `.keras` file that `dl-mamba train` wrote.
        data: a file in the format of the task; docs/data_formats.md.
        out: a folder, made if needed; files of these names in it are replaced, all at the end.
        task: name of the task, for a model of several.
        text_column, label_column: names of columns of a table.
        batch_size: rows in a batch.

    Raises:
        InputError: the model, the data or the folder do not fit; before anything is computed.

    Example:

    >>> from dl_mamba.pipelines.evaluation import evaluate
    >>> evaluate("nowhere.keras", "test.csv", "report")
    Traceback (most recent call last):
        ...
    dl_mamba.pipelines.errors.InputError: nowhere.keras does not exist, or is no file.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; choose a folder for the report.")
    require("sklearn.metrics", "evaluation")
    found = load_trained(model)
    columns = {"text_column": text_column, "label_column": label_column}
    about = {"model": str(model), "data": str(data)}
    if isinstance(found, TaskModel):
        name = named(found, task)
        result = _of_task(found, name, data, columns, batch_size)
        about["task"] = name
    else:
        result = _of_classifier(found, model, data, columns, batch_size)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {out} cannot be created: {error}") from error
    return _write(result, about, out)


def named(model: TaskModel, task: str | None) -> str:
    """The name of a task of a model.

    Raises:
        InputError: it has none of that name, or several and no name is given.
    """
    try:
        return model.task_named(task).name
    except ValueError as error:
        raise InputError(str(error)) from error


def _of_classifier(model: Classifier, path: Any, data: Any, columns: dict[str, Any], batch_size: int) -> Scores:
    examples = classifier_examples(model, path, data, columns, labelled=True)
    true = class_numbers(examples, model.label_names)
    logits = model.predict(examples.inputs, batch_size=batch_size, verbose=0)
    return scores.class_scores(model.label_names, true, logits)


def _of_task(model: TaskModel, name: str, data: Any, columns: dict[str, Any], batch_size: int) -> Scores:
    reader = model.readers[name]
    records = read_records(data, type(reader), **columns)
    rows = records.rows(reader)
    outputs = model.outputs(rows, name, batch_size)
    if isinstance(reader, LanguageReader):
        return _language(reader, rows, outputs)
    found = dict(outputs)
    ordered = [found[place] for place in range(len(rows))]
    return next(score for kind, score in SCORES.items() if isinstance(reader, kind))(
        model.heads[name], reader, rows, ordered
    )


def _texts(head: Any, reader: Reader, rows: Sequence[Row], outputs: Sequence[np.ndarray]) -> Scores:
    true, problem = [row.label for row in rows], reader.task.problem_type
    if problem == "regression":
        return scores.regression_scores(true, outputs)
    score = scores.multi_label_scores if problem == "multi_label" else scores.class_scores
    return score(reader.task.label_names, true, outputs)


def _choices(head: Any, reader: Reader, rows: Sequence[Row], outputs: Sequence[np.ndarray]) -> Scores:
    real = [output[: len(row.record["choices"])] for output, row in zip(outputs, rows, strict=True)]
    ranks = reader.task.problem_type == "regression"
    return (scores.ranking_scores if ranks else scores.choice_scores)([row.label for row in rows], real)


def _tags(head: Any, reader: Reader, rows: Sequence[Row], outputs: Sequence[np.ndarray]) -> Scores:
    answers = _answers(head, reader, rows, outputs)
    apart = None if reader.task.use_crf else [out[row.places] for out, row in zip(outputs, rows, strict=True)]
    return place_scores.tag_scores(reader.task.label_names, [row.record for row in rows], answers, apart)


def _answered(score: Callable) -> Callable:
    return lambda head, reader, rows, outputs: score(
        [row.record for row in rows], _answers(head, reader, rows, outputs)
    )


def _answers(head: Any, reader: Reader, rows: Sequence[Row], outputs: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    return [reader.answer(head, output, row) for output, row in zip(outputs, rows, strict=True)]


def _language(reader: Reader, rows: Sequence[Row], outputs: Iterator[tuple[int, np.ndarray]]) -> Scores:
    """Row by row: the logits of a whole file do not fit into memory."""
    masked = isinstance(reader, MaskedReader)
    labels = [row.label if masked else row.label[1:] for row in rows]
    cut = lambda output, place: output[: len(rows[place])] if masked else output[: len(rows[place]) - 1]  # noqa: E731
    pairs = ((labels[place], cut(output, place)) for place, output in outputs)
    return place_scores.language_scores(pairs)


SCORES: dict[type[Reader], Callable] = {
    TextReader: _texts,
    ChoiceReader: _choices,
    TagReader: _tags,
    ArcReader: _answered(place_scores.arc_scores),
    RelationReader: _answered(place_scores.relation_scores),
    SpanReader: _answered(place_scores.span_scores),
}


def _write(found: Scores, about: dict[str, Any], out: Path) -> Evaluation:
    files, notes = {"metrics": out / "metrics.json"}, []
    with published(out) as staging:
        content = {**about, "scores": found.metrics, "versions": versions()}
        (staging / "metrics.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if found.table:
            files["classes"] = out / "classes.csv"
            with (staging / "classes.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, found.table[0])
                writer.writeheader()
                writer.writerows(found.table)
        for name, draw in found.figures.items():
            try:
                draw(path=staging / f"{name}.png")
                files[name] = out / f"{name}.png"
            except InputError as error:  # the numbers are worth more than their picture
                notes.append(f"no {name} figure: {error}")
    return Evaluation(found.metrics, files, tuple(notes))
