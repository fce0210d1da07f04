"""Scores of answers that are about whole texts: classes, several labels, numbers, choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba import viz
from dl_mamba.heads.raw import softmax
from dl_mamba.pipelines import plots
from dl_mamba.pipelines.errors import require

BINS = 15
MOST_CLASSES = 60  # in a picture of the confusion matrix


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        metrics: numbers by name, for the JSON file.
        table: one row a class, for the CSV file.
        figures: functions that draw into a file, by the file's name without ending.

    Example:

    >>> from dl_mamba.pipelines.scores import Scores
    >>> Scores({"accuracy": 0.5}).table
    []
    """

    metrics: dict[str, Any]
    table: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Callable[[Path], None]] = field(default_factory=dict)


def class_scores(names: Sequence[str], true: Any, logits: Any) -> Scores:
    """One class an item: accuracy, log loss, averages and a row for each class, confusion and calibration.

    Args:
        names: of the classes.
        true: (items,) class numbers.
        logits: (items, classes) float.

    Example:

    >>> from dl_mamba.pipelines.scores import class_scores
    >>> found = class_scores(["no", "yes"], [0, 1, 1], [[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    >>> round(found.metrics["accuracy"], 3), found.table[1]["recall"]
    (0.667, 0.5)
    """
    true, probabilities = np.asarray(true), softmax(logits)
    predicted = probabilities.argmax(axis=-1)
    found = label_scores(names, true, predicted)
    chosen = probabilities[np.arange(len(true)), true]
    confidence, right = probabilities.max(axis=-1), predicted == true
    metrics = {"log_loss": float(-np.log(np.maximum(chosen, 1e-300)).mean()), **calibration(confidence, right)}
    return Scores(
        {**found.metrics, **metrics}, found.table, {**found.figures, **_calibration_figure(confidence, right)}
    )


def label_scores(names: Sequence[str], true: Any, predicted: Any) -> Scores:
    """`class_scores` of class numbers alone, without probabilities."""
    true, predicted = np.asarray(true), np.asarray(predicted)
    table = _table(names, true, predicted)
    seen = [row["f1"] for row in table if row["support"] or row["predicted"]]
    metrics = {"accuracy": float((true == predicted).mean()), "macro_f1": float(np.mean(seen)), "examples": len(true)}
    figures = {}
    if len(names) <= MOST_CLASSES:
        counts = viz.confusion_counts(true, predicted, len(names))
        title = f"{len(true)} examples, {metrics['accuracy']:.1%} right"
        figures["confusion"] = partial(plots.draw_confusion_matrix, counts, names, title=title)
    return Scores(metrics, table, figures)


def multi_label_scores(names: Sequence[str], true: Any, logits: Any) -> Scores:
    """Any number of labels an item: F1 over all decisions and over labels, and the share of items that are all right.

    Args:
        names: of the labels.
        true: (items, labels) 0 or 1.
        logits: (items, labels) float.
    """
    true, logits = np.asarray(true), np.asarray(logits, "float64")
    predicted = (logits > 0).astype("int32")
    table = _table(names, true, predicted)
    right, given, wanted = (true * predicted).sum(), predicted.sum(), true.sum()
    chances = 1 / (1 + np.exp(-logits.ravel()))
    sure, correct = np.maximum(chances, 1 - chances), (predicted == true).ravel()
    metrics = {
        "exact_match": float((true == predicted).all(axis=-1).mean()),
        "micro_f1": float(2 * right / max(1, given + wanted)),
        "macro_f1": float(np.mean([row["f1"] for row in table])),
        **calibration(sure, correct),
        "examples": len(true),
    }
    return Scores(metrics, table, _calibration_figure(sure, correct))


def _table(names: Sequence[str], true: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class."""
    score = require("sklearn.metrics", "evaluation").precision_recall_fscore_support
    columns = score(true, predicted, labels=range(len(names)), zero_division=0)
    counts = predicted.sum(axis=0) if predicted.ndim == 2 else np.bincount(predicted, minlength=len(names))
    keys = ("precision", "recall", "f1", "support", "predicted")
    return [
        {"class": name, **dict(zip(keys, (float(p), float(r), float(f), int(s), int(n)), strict=True))}
        for name, p, r, f, s, n in zip(names, *columns, counts, strict=True)
    ]


def calibration(confidence: Any, right: Any) -> dict[str, float]:
    """Expected calibration error: the mean gap of confidence and accuracy over 15 bins (Guo et al., 2017, eq. 3).

    Example:

    >>> from dl_mamba.pipelines.scores import calibration
    >>> calibration([0.75, 0.75, 0.75, 0.75], [1, 1, 1, 0])
    {'ece': 0.0}
    """
    return {"ece": float(sum(abs(c - r) * n for c, r, n in zip(*bins(confidence, right), strict=True)))}


def bins(confidence: Any, right: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, share of right answers, and share of all items, of each bin that has any."""
    confidence, right = np.asarray(confidence, "float64"), np.asarray(right, "float64")
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    counts = np.bincount(place, minlength=BINS)
    used = counts > 0
    sums = [np.bincount(place, weights=values, minlength=BINS)[used] for values in (confidence, right)]
    return sums[0] / counts[used], sums[1] / counts[used], counts[used] / len(confidence)


def _calibration_figure(confidence: np.ndarray, right: np.ndarray) -> dict[str, Callable[[Path], None]]:
    ece = calibration(confidence, right)["ece"]
    return {"calibration": partial(plots.draw_calibration, *bins(confidence, right), ece=ece)}


def regression_scores(true: Any, values: Any) -> Scores:
    """Numbers: Pearson's correlation, R2, mean absolute and root mean squared error.

    Args:
        true, values: (items, n) float.

    Example:

    >>> from dl_mamba.pipelines.scores import regression_scores
    >>> found = regression_scores([[0.0], [1.0], [2.0]], [[0.0], [1.0], [3.0]])
    >>> round(found.metrics["pearson"], 3), found.metrics["r2"]
    (0.982, 0.5)
    """
    true, values = (np.asarray(x, "float64").reshape(len(x), -1) for x in (true, values))
    rows = []
    for number, (wanted, given) in enumerate(zip(true.T, values.T, strict=True)):
        spread = ((wanted - wanted.mean()) ** 2).sum()
        varied = len(wanted) > 1 and spread > 0
        rows.append(
            {
                "value": number,
                "pearson": float(np.corrcoef(wanted, given)[0, 1]) if varied and np.ptp(given) > 0 else None,
                "r2": float(1 - ((given - wanted) ** 2).sum() / spread) if varied else None,
                "mean_absolute_error": float(np.abs(given - wanted).mean()),
                "root_mean_squared_error": float(np.sqrt(((given - wanted) ** 2).mean())),
            }
        )
    first = {name: value for name, value in rows[0].items() if name != "value"}
    figures = {"values": partial(plots.draw_values, true[:, 0], values[:, 0])}
    return Scores({**first, "examples": len(true)}, rows, figures)


def choice_scores(true: Sequence[int], scores: Sequence[np.ndarray]) -> Scores:
    """Choices of unlike numbers: accuracy, log loss and calibration."""
    chances = [softmax(row) for row in scores]
    confidence = np.array([row.max() for row in chances])
    right = np.array([row.argmax() == wanted for row, wanted in zip(chances, true, strict=True)])
    losses = [-np.log(max(row[wanted], 1e-300)) for row, wanted in zip(chances, true, strict=True)]
    metrics = {"accuracy": float(right.mean()), "log_loss": float(np.mean(losses)), **calibration(confidence, right)}
    return Scores({**metrics, "examples": len(losses)}, figures=_calibration_figure(confidence, right))


def ranking_scores(true: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> Scores:
    """Rankings: the mean reciprocal rank of the most relevant choice, and the normalized discounted cumulative gain."""
    gain = require("sklearn.metrics", "evaluation").ndcg_score
    ranks, gains = [], []
    for wanted, given in zip(true, scores, strict=True):
        known = np.isfinite(wanted)
        wanted, given = wanted[known], given[known]
        ranks.append(1 / (1 + (given > given[wanted.argmax()]).sum()))
        if len(wanted) > 1 and (wanted >= 0).all() and wanted.any():
            gains.append(gain([wanted], [given]))
    metrics = {"mean_reciprocal_rank": float(np.mean(ranks)), "examples": len(ranks)}
    return Scores({**metrics, "ndcg": float(np.mean(gains))} if gains else metrics)
