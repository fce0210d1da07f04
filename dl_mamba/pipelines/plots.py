"""Figures of a run as PNG files: the learning curve, and which class was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba import viz
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
    figure = _figure((4.5 * len(metrics), 3.5))
    for ax, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        label = None if "accuracy" in history else metric.replace("_", " ")  # only a classifier's loss has a known unit
        viz.plot_learning_curve(history, metric, ax, best_epoch, label)
    figure.savefig(path, dpi=120, format="png")


def draw_confusion_matrix(counts: np.ndarray, label_names: Sequence[str], path: Path, title: str = "") -> None:
    """A matrix of counts with named classes on both axes.

    Args:
        counts: what `viz.confusion_counts` returns.
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
    figure = _figure((side, side))
    viz.plot_confusion_matrix(counts, label_names, figure.subplots(), title)
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
    figure = _figure((4.2, 4.2))
    axis = figure.subplots()
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
    figure = _figure((4.2, 4.2))
    axis = figure.subplots()
    axis.plot([true.min(), true.max()], [true.min(), true.max()], color="grey", linestyle=":")
    axis.plot(true, predicted, marker=".", linestyle="")
    axis.set_xlabel("true value")
    axis.set_ylabel("predicted value")
    figure.savefig(path, dpi=120, format="png")


def _figure(size: tuple[float, float]) -> Any:
    """A figure that needs no display and leaves pyplot's state alone."""
    figure = require("matplotlib.figure", "drawing").Figure(figsize=size, layout="constrained")
    require("matplotlib.backends.backend_agg", "drawing").FigureCanvasAgg(figure)
    return figure
