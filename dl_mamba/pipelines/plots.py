"""Figures of a run as PNG files: the learning curve, and which class was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba import viz
from dl_mamba.pipelines.errors import require


def draw_learning_curve(history: Mapping[str, Sequence[float]], path: Path, best_epoch: int | None = None) -> None:
    """Loss and accuracy by epoch, for training and validation data.

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
    figure = _figure((9, 3.5))
    for ax, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        viz.plot_learning_curve(history, metric, ax, best_epoch)
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


def _figure(size: tuple[float, float]) -> Any:
    """A figure that needs no display and leaves pyplot's state alone."""
    figure = require("matplotlib.figure", "drawing").Figure(figsize=size, layout="constrained")
    require("matplotlib.backends.backend_agg", "drawing").FigureCanvasAgg(figure)
    return figure
