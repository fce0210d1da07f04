"""From a model file and raw inputs to labels and probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba.heads.sequence_classifier import SequenceClassifier
from dl_mamba.heads.task_model import TaskModel
from dl_mamba.heads.text_classifier import Classifier, TextClassifier
from dl_mamba.pipelines.answers import Answers, answer
from dl_mamba.pipelines.errors import InputError, require
from dl_mamba.pipelines.files import check_destination, load_model
from dl_mamba.pipelines.tables import Examples, read_examples
from dl_mamba.weights.publishing import published

KINDS = {"text": TextClassifier, "numbers": SequenceClassifier}
OUT_SUFFIXES = (".csv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Predictions:
    """Labels and probabilities of some inputs.

    Attributes:
        inputs: texts, or arrays of numbers.
        labels: the most probable label of each input.
        probabilities: (inputs, classes) float32, in the order of `label_names`.
        label_names: names of the classes.
        true_labels: labels that the file gave, or None.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.pipelines.prediction import Predictions
    >>> Predictions(["x", "y"], ["no", "no"], np.full((2, 2), 0.5), ["no", "yes"], ["no", "yes"]).accuracy
    0.5
    """

    inputs: list[Any]
    labels: list[str]
    probabilities: np.ndarray
    label_names: list[str]
    true_labels: list[str] | None = None

    @property
    def accuracy(self) -> float | None:
        """Share of labels that agree with the file's own, or None where it has none."""
        if self.true_labels is None:
            return None
        return float(np.mean([true == given for true, given in zip(self.true_labels, self.labels, strict=True)]))

    def lines(self) -> list[str]:
        """Label, its probability and the text, if it is one, of each input, divided by tabs."""
        rows = zip(self.labels, self.probabilities, self.inputs, strict=True)
        texts = [(label, row.max(), f"\t{given}" if isinstance(given, str) else "") for label, row, given in rows]
        return [f"{label}\t{most:.4f}{text}" for label, most, text in texts]


def load_trained(path: str | Path) -> Classifier | TaskModel:
    """A model from a file that `dl-mamba train` wrote.

    Args:
        path: a `.keras` file.

    Raises:
        InputError: the file is missing, damaged, or holds another kind of model.

    Example:

    >>> from dl_mamba.pipelines.prediction import load_trained
    >>> load_trained("nowhere.keras")
    Traceback (most recent call last):
        ...
    dl_mamba.pipelines.errors.InputError: nowhere.keras does not exist, or is no file.
    """
    kinds = (*KINDS.values(), TaskModel)
    return load_model(path, kinds, "a TextClassifier, SequenceClassifier or TaskModel, as `dl-mamba train` writes,")


def classifier_examples(
    model: Classifier, path: str | Path, data: str | Path, columns: Mapping[str, Any], labelled: bool
) -> Examples:
    """The examples of a file, of the kind that a classifier reads.

    Raises:
        InputError: the file cannot be read, or is of the other kind.
    """
    examples = read_examples(data, **columns, labelled=labelled)
    if not isinstance(model, KINDS[examples.kind]):
        wanted = "text" if isinstance(model, TextClassifier) else "sequences of numbers"
        raise InputError(f"{data} holds {examples.kind}; {path} reads {wanted}.")
    return examples


def predict(
    model: str | Path,
    texts: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
    max_new_tokens: int = 100,
    batch_size: int = 64,
) -> Predictions | Answers:
    """Labels and probabilities of texts, or of the rows of a file; answers of a model of other tasks.

    Args:
        model: a `.keras` file that `train` wrote.
        texts: raw strings, for a model of texts.
        data: a file to read instead; see `read_examples`. Its labels may be missing.
        out: a CSV, JSONL or Parquet file for the predictions and the probability of every class.
        text_column, label_column: names of columns in `data`.
        task: name of the task, for a model of several.
        max_new_tokens: of a task that continues texts.
        batch_size: inputs in a batch.

    Raises:
        InputError: the model, the inputs or the destination do not fit.

    Example:

    >>> from dl_mamba.pipelines.prediction import predict
    >>> predict("nowhere.keras", ["fine"])
    Traceback (most recent call last):
        ...
    dl_mamba.pipelines.errors.InputError: nowhere.keras does not exist, or is no file.
    """
    columns = {"text_column": text_column, "label_column": label_column}
    if out is not None:
        check_destination(out, OUT_SUFFIXES)
    if bool(texts) == (data is not None):
        raise InputError("give either texts or a data file, one of the two.")
    classifier = load_trained(model)
    if isinstance(classifier, TaskModel):
        return answer(classifier, texts, data, out, task, columns, max_new_tokens=max_new_tokens)
    if task is not None:
        raise InputError(f"{model} is a classifier with one task; leave task={task!r} out.")
    if data is None and not isinstance(classifier, TextClassifier):
        raise InputError(f"{model} reads sequences of numbers; give them as a file with --data.")
    inputs, true_labels = list(texts), None
    if data is not None:
        examples = classifier_examples(classifier, model, data, columns, label_column is not None)
        inputs, true_labels = examples.inputs, examples.labels
    labels, probabilities = classifier.classify(inputs, batch_size=batch_size)
    predictions = Predictions(inputs, labels, probabilities, list(classifier.label_names), true_labels)
    if out is not None:
        write_predictions(predictions, out)
    return predictions


def write_predictions(predictions: Predictions, out: str | Path) -> None:
    """One row an input: text if it is text, true label if known, predicted label, probability of each class.

    Args:
        predictions: what `predict` returns.
        out: a CSV, JSONL or Parquet file.

    Raises:
        InputError: pandas is not installed, or the destination does not fit.

    Example:

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from dl_mamba.pipelines.prediction import Predictions, write_predictions
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = pathlib.Path(folder, "out.csv")
    ...     write_predictions(Predictions(["x"], ["no"], np.array([[0.75, 0.25]]), ["no", "yes"]), out)
    ...     out.read_text().splitlines()
    ['text,prediction,probability_no,probability_yes', 'x,no,0.75,0.25']
    """
    out = check_destination(out, OUT_SUFFIXES)
    pandas = require("pandas", f"writing {out.name}")
    columns = {"text": predictions.inputs} if isinstance(predictions.inputs[0], str) else {}
    if predictions.true_labels is not None:
        columns["label"] = predictions.true_labels
    columns["prediction"] = predictions.labels
    for name, probability in zip(predictions.label_names, predictions.probabilities.T, strict=True):
        columns[f"probability_{name}"] = probability
    frame = pandas.DataFrame(columns)
    with published(out.parent) as staging:
        if out.suffix.lower() == ".csv":
            frame.to_csv(staging / out.name, index=False)
        elif out.suffix.lower() == ".jsonl":
            frame.to_json(staging / out.name, orient="records", lines=True, force_ascii=False, double_precision=15)
        else:
            require("pyarrow", f"writing {out.name}")
            frame.to_parquet(staging / out.name, index=False)
