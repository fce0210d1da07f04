"""From a model file and raw inputs to labels and probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba.heads.sequence_classifier import SequenceClassifier
from dl_mamba.heads.text_classifier import Classifier, TextClassifier
from dl_mamba.pipelines.errors import InputError, require
from dl_mamba.pipelines.files import check_destination, load_model
from dl_mamba.pipelines.tables import read_examples
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


def load_classifier(path: str | Path) -> Classifier:
    """A classifier from a file that `train` wrote.

    Args:
        path: a `.keras` file.

    Raises:
        InputError: the file is missing, damaged, or holds another kind of model.

    Example:

    >>> from dl_mamba.pipelines.prediction import load_classifier
    >>> load_classifier("nowhere.keras")
    Traceback (most recent call last):
        ...
    dl_mamba.pipelines.errors.InputError: nowhere.keras does not exist, or is no file.
    """
    return load_model(
        path, tuple(KINDS.values()), "a TextClassifier or SequenceClassifier, as `dl-mamba train` writes,"
    )


def predict(
    model: str | Path,
    texts: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 64,
) -> Predictions:
    """Labels and probabilities of texts, or of the rows of a file.

    Args:
        model: a `.keras` file that `train` wrote.
        texts: raw strings, for a model of texts.
        data: a file to read instead; see `read_examples`. Its labels may be missing.
        out: a CSV, JSONL or Parquet file for the predictions and the probability of every class.
        text_column, label_column: names of columns in `data`.
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
    if out is not None:
        check_destination(out, OUT_SUFFIXES)
    if bool(texts) == (data is not None):
        raise InputError("give either texts or a data file, one of the two.")
    classifier = load_classifier(model)
    if data is None and not isinstance(classifier, TextClassifier):
        raise InputError(f"{model} reads sequences of numbers; give them as a file with --data.")
    inputs, true_labels = list(texts), None
    if data is not None:
        columns = {"text_column": text_column, "label_column": label_column}
        examples = read_examples(data, **columns, labelled=label_column is not None)
        if not isinstance(classifier, KINDS[examples.kind]):
            wanted = "text" if isinstance(classifier, TextClassifier) else "sequences of numbers"
            raise InputError(f"{data} holds {examples.kind}; {model} reads {wanted}.")
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
