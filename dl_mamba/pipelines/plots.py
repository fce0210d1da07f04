"""Figures of a run: the learning curve, and which class was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba.pipelines.errors import require


def draw_learning_curve(history: Mapping[str, Sequence[float]], path: Path, best_epoch: int | None = None) -> None:
    """Loss and the first other metric by epoch, for training and validation data, as a PNG.

    Args:
        history: `loss`, `accuracy`, `val_loss`, `val_accuracy` of each epoch, as Keras's `History` has them.
        path: the file to write.
        best_epoch: epoch whose weights were kept, from 1; marked by a line.

    Raises:
        InputError: matplotlib is not installed.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.pipelines.plots import draw_learning_curve
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_learning_curve({"loss": [1.0, 0.5], "accuracy": [0.5, 0.8]}, pathlib.Path(folder, "curve.png"))
    """
    others = [name for name in history if not name.startswith("val_") and not name.endswith("loss")]
    metrics = ["loss", *others[:1]]
    figure, axes = _figure(1, len(metrics), (4.5 * len(metrics), 3.5))
    for axis, metric in zip(np.atleast_1d(axes), metrics, strict=True):
        for name, label in ((metric, "training"), (f"val_{metric}", "validation")):
            if name in history:
                axis.plot(range(1, len(history[name]) + 1), history[name], marker=".", label=label)
        if best_epoch is not None:
            axis.axvline(best_epoch, color="grey", linestyle=":", label=f"kept: epoch {best_epoch}")
        axis.set_xlabel("epoch")
        axis.set_ylabel(metric.replace("_", " "))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120, format="png")


def confusion_counts(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each class was taken for each other.

    Args:
        true, predicted: (examples,) int, class numbers.
        num_classes: number of classes.

    Returns:
        (num_classes, num_classes) int; row: the true class, column: the predicted one.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.pipelines.plots import confusion_counts
    >>> confusion_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.zeros((num_classes, num_classes), "int64")
    np.add.at(counts, (true, predicted), 1)
    return counts


def draw_confusion_matrix(counts: np.ndarray, label_names: Sequence[str], path: Path, title: str = "") -> None:
    """A matrix of counts with named classes on both axes, as a PNG.

    Args:
        counts: what `confusion_counts` returns.
        label_names: one name a class.
        path: the file to write.
        title: line above the matrix.

    Raises:
        InputError: matplotlib is not installed.

    Example:

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from dl_mamba.pipelines.plots import draw_confusion_matrix
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_confusion_matrix(np.eye(2, dtype=int), ["no", "yes"], pathlib.Path(folder, "matrix.png"))
    """
    side = 2.5 + 0.4 * len(label_names)
    figure, axis = _figure(1, 1, (side, side))
    axis.imshow(np.log1p(counts), cmap="Blues")  # on this scale a single mistake is still seen
    ticks = range(len(label_names))
    axis.set_xticks(ticks, label_names, rotation=90 if max(map(len, label_names)) > 3 else 0)
    axis.set_yticks(ticks, label_names)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(title)
    dark = np.log1p(counts) > np.log1p(counts).max() / 2
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if dark[row, column] else "black"
            axis.text(column, row, str(count), ha="center", va="center", color=color)
    figure.savefig(path, dpi=120, format="png")


def draw_calibration(
    confidence: np.ndarray, right: np.ndarray, share: np.ndarray, path: Path, ece: float = 0.0
) -> None:
    """Share of right answers against confidence, as a PNG; a perfectly calibrated model lies on the diagonal.

    Args:
        confidence, right, share: (bins,) mean confidence, share of right answers, share of all items.
        path: the file to write.
        ece: expected calibration error, for the title.

    Raises:
        InputError: matplotlib is not installed.

    Example:

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from dl_mamba.pipelines.plots import draw_calibration
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_calibration(np.array([0.7]), np.array([0.6]), np.ones(1), pathlib.Path(folder, "calibration.png"))
    """
    figure, axis = _figure(1, 1, (4.2, 4.2))
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axis.bar(confidence, share, width=0.05, color="lightgrey", label="share of the answers")
    axis.plot(confidence, right, marker="o", label="right")
    axis.set_xlabel("confidence")
    axis.set_ylabel("share of right answers")
    axis.set_title(f"expected calibration error {ece:.3f}")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.legend()
    figure.savefig(path, dpi=120, format="png")


def draw_values(true: np.ndarray, predicted: np.ndarray, path: Path) -> None:
    """Predicted numbers against the true ones, as a PNG.

    Args:
        true, predicted: (items,) float.
        path: the file to write.

    Raises:
        InputError: matplotlib is not installed.

    Example:

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from dl_mamba.pipelines.plots import draw_values
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     draw_values(np.arange(3.0), np.ones(3), pathlib.Path(folder, "values.png"))
    """
    figure, axis = _figure(1, 1, (4.2, 4.2))
    axis.plot([true.min(), true.max()], [true.min(), true.max()], color="grey", linestyle=":")
    axis.plot(true, predicted, marker=".", linestyle="")
    axis.set_xlabel("true value")
    axis.set_ylabel("predicted value")
    figure.savefig(path, dpi=120, format="png")


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure that needs no display and leaves pyplot's state alone."""
    figure = require("matplotlib.figure", "drawing").Figure(figsize=size, layout="constrained")
    require("matplotlib.backends.backend_agg", "drawing").FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)
