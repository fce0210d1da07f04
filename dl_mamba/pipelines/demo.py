"""The whole way on real data: handwritten digits as sequences of 64 pixels, learned, saved, reloaded, compared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dl_mamba import viz
from dl_mamba.pipelines import plots
from dl_mamba.pipelines.errors import InputError, require
from dl_mamba.pipelines.recipe import DIGITS
from dl_mamba.pipelines.splits import stratified_split
from dl_mamba.pipelines.training import train
from dl_mamba.weights.publishing import published

HELD_OUT = 0.25
TOLERANCE = 1e-5


@dataclass(frozen=True)
class DemoReport:
    """What the demo found.

    Attributes:
        accuracy: share of right answers on the held-out digits.
        examples: number of held-out digits.
        difference: largest gap between the probabilities of this process and of the one that loaded the file.
        metrics: what the metrics file holds.
        files: the files written.
    """

    accuracy: float
    examples: int
    difference: float
    metrics: dict[str, Any]
    files: dict[str, Path]

    @property
    def agrees(self) -> bool:
        """Whether the reloaded model gives the same probabilities to 1e-5."""
        return self.difference <= TOLERANCE


def run_demo(
    folder: str | Path = "demo", *, callbacks: Sequence[keras.callbacks.Callback] = (), **changes: Any
) -> DemoReport:
    """Train a Mamba-2 classifier on digits, save it, load it in a new process and compare the predictions.

    A quarter of the digits is held out and scored once, at the end; the best epoch is chosen on a tenth of the rest.

    Args:
        folder: where everything goes; created if missing.
        callbacks: further Keras callbacks.
        **changes: fields of the recipe `DIGITS` that differ.

    Returns:
        Accuracy, agreement and files.

    Raises:
        InputError: a library of the extra `demo` is missing, or the new process failed.

    Example:

    >>> from dl_mamba.pipelines.demo import DemoReport
    >>> DemoReport(0.97, 450, difference=2e-7, metrics={}, files={}).agrees
    True
    """
    folder = Path(folder)
    data = write_digits(folder)
    outcome = train(
        data["train"], test=data["held_out"], out=folder / "digits.keras", recipe=DIGITS, callbacks=callbacks, **changes
    )
    difference = _reload(outcome.files["model"], data["held_out"], folder / "predictions.csv", outcome.model)
    matrix = folder / "digits.confusion.png"
    pandas = require("pandas", "the demo")
    true = pandas.read_csv(data["held_out"])["label"].to_numpy()
    counts = viz.confusion_counts(true, outcome.predicted["test"], 10)
    score = outcome.metrics["test"]
    with published(folder) as staging:
        title = f"{score['examples']} held-out digits, {score['accuracy']:.1%} right"
        plots.draw_confusion_matrix(counts, outcome.model.label_names, staging / matrix.name, title)
    files = {**outcome.files, "confusion": matrix, "predictions": folder / "predictions.csv"}
    return DemoReport(score["accuracy"], score["examples"], difference, outcome.metrics, files)


def write_digits(folder: Path) -> dict[str, Path]:
    """scikit-learn's 1,797 digits as two CSV files, one row an image: 64 pixels from 0 to 16, and the label.

    Args:
        folder: where the files go; created if missing.

    Returns:
        Paths of `train` and `held_out`.

    Raises:
        InputError: scikit-learn or pandas is not installed.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.pipelines.demo import write_digits
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [len(path.read_text().splitlines()) - 1 for path in write_digits(pathlib.Path(folder)).values()]
    [1347, 450]
    """
    digits = require("sklearn.datasets", "the demo").load_digits()
    pandas = require("pandas", "the demo")
    require("matplotlib", "the demo")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {folder} cannot be created: {error}") from error
    frame = pandas.DataFrame(digits.data.astype("int64"), columns=[f"pixel_{i}" for i in range(64)])
    frame["label"] = digits.target
    files = {"train": folder / "train.csv", "held_out": folder / "held_out.csv"}
    for file, places in zip(files.values(), stratified_split(digits.target, HELD_OUT, seed=0), strict=True):
        frame.iloc[places].to_csv(file, index=False)
    return files


def _reload(model_file: Path, data: Path, out: Path, model: Any) -> float:
    """The largest gap between the probabilities of `model` and those of a new process that loads its file."""
    command = [sys.executable, "-m", "dl_mamba.cli", "predict", str(model_file), "--data", str(data), "--out", str(out)]
    environment = {**os.environ, "KERAS_BACKEND": keras.config.backend()}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise InputError(f"the new process failed: {' '.join(result.stderr.split())[-500:]}")
    pandas = require("pandas", "the demo")
    loaded = pandas.read_csv(out).filter(like="probability_").to_numpy()
    values = pandas.read_csv(data).drop(columns="label").to_numpy("float32")[:, :, None]
    return float(np.abs(loaded - model.classify(list(values), batch_size=64).probabilities).max())
