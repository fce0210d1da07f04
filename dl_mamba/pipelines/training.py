"""From a file to a trained model file, with its metrics and its learning curve beside it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from dl_mamba.heads.text_classifier import Classifier
from dl_mamba.pipelines import fitting, plots, starts
from dl_mamba.pipelines.baseline import bag_of_words_accuracy
from dl_mamba.pipelines.environment import versions
from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.files import check_destination
from dl_mamba.pipelines.recipe import NUMBERS, TEXT, Recipe
from dl_mamba.pipelines.splits import class_names, class_numbers, stratified_split
from dl_mamba.pipelines.tables import Examples, read_examples
from dl_mamba.weights.publishing import published

RECIPES = {"text": TEXT, "numbers": NUMBERS}


class Part(NamedTuple):
    """Inputs of one split, and the class number of each."""

    inputs: list[Any]
    classes: np.ndarray


@dataclass(frozen=True)
class Outcome:
    """What a training run leaves.

    Attributes:
        model: the classifier with the weights of its best epoch.
        metrics: what the metrics file holds.
        files: the files written, by what they are: `model`, `metrics`, `curve`.
        predicted: class numbers that the model gave to each scored split.
        notes: lines for the user about what was left out.
    """

    model: Classifier
    metrics: dict[str, Any]
    files: dict[str, Path]
    predicted: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()


def train(
    data: str | Path,
    *,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    out: str | Path = "model.keras",
    text_column: str | None = None,
    label_column: str | None = None,
    baseline: bool = False,
    resume: bool = False,
    task: str = "sequence_classification",
    init: str | Path | None = None,
    lora: int | None = None,
    lora_targets: Sequence[str] | None = None,
    bidirectional: bool = False,
    recipe: Recipe | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **changes: Any,
) -> Outcome:
    r"""Train a classifier of texts or of sequences of numbers and write it as one `.keras` file.

    Metrics (`.metrics.json`) and learning curve (`.curve.png`) appear beside it. All files appear at the end of a whole
    run, and none after a failed one. The best epoch is chosen on the validation data; the test data is scored once.

    Args:
        data: training file; see `read_examples`.
        valid: validation file; without it a part of every class is held out from `data`.
        test: file to score the finished model on.
        out: the model file.
        text_column, label_column: names of columns.
        resume: write the state of the run after each epoch (`.resume.npz` beside `out`), and go on from it if it is
            there; it is removed at the end. A run that was killed then ends as if it had not been.
        task: the type of the task; it goes into the model's config. Of text alone, as the next three.
        init: a pretrained checkpoint (folder or hub repository) or a language model's .keras file to start from.
        lora: rank of adapters that are trained in place of the backbone; they are merged at the end.
        lora_targets: what they adapt, as in `dl_mamba.training.enable_lora`; the projections if None.
        bidirectional: read in both directions.
        baseline: also fit a bag-of-words logistic regression on the same training examples, for text.
        recipe: how to train; by default `TEXT` or `NUMBERS` of `dl_mamba.pipelines.recipe`.
        callbacks: further Keras callbacks.
        **changes: fields of the recipe that differ, such as `epochs` or `seed`; None changes nothing.

    Returns:
        The model, its metrics and the files.

    Raises:
        InputError: data, options or destination do not fit.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.pipelines.training import train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "moods.csv")
    ...     _ = file.write_text("text,label" + "".join(f"\nfine {i},good\nbad {i},poor" for i in range(4)))
    ...     outcome = train(file, out=pathlib.Path(folder, "moods.keras"), epochs=1)
    ...     sorted(path.name for path in pathlib.Path(folder).iterdir())
    ['moods.csv', 'moods.curve.png', 'moods.keras', 'moods.metrics.json']
    """
    started, out = time.monotonic(), check_destination(out)
    columns = {"text_column": text_column, "label_column": label_column}
    files = {"train": data, "valid": valid, "test": test}
    examples = {name: read_examples(file, **columns) for name, file in files.items() if file is not None}
    recipe = starts.recipe_of(recipe or RECIPES[examples["train"].kind], init, lora, changes)
    if examples["train"].kind != "text" and (init is not None or lora is not None or bidirectional):
        raise InputError(f"{data} holds numbers; a pretrained start, adapters and two directions are for text.")
    names, parts = _parts(examples, recipe)
    state = out.with_suffix(".resume.npz") if resume else None
    options = {"task_type": task, "bidirectional": bidirectional, "start": starts.load(init)}
    model = _built(examples["train"].kind, parts, names, recipe, options)
    share = starts.adapt(model, lora, lora_targets)
    about = {name: _fingerprint(parts[name]) for name in ("train", "valid")}
    about |= starts.named(init, lora, lora_targets)
    history = fitting.fit(model, parts["train"], parts["valid"], recipe, callbacks, state, about)
    starts.merge(model, lora)
    scores = {name: fitting.score(model, *part, recipe.batch_size) for name, part in parts.items()}
    predicted = {name: result.pop("predicted") for name, result in scores.items()}
    held = "test" if test is not None else "valid"
    metrics = {
        "data": {name: str(file) for name, file in files.items() if file is not None},
        "kind": examples["train"].kind,
        "classes": names,
        "parameters": model.count_params(),
        **starts.described(init, share),
        **scores,
        "best_epoch": int(np.argmax(history["val_accuracy"])) + 1,
        "history": history,
        "recipe": recipe.to_dict(),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    if baseline:
        metrics["baseline"] = {"scored_on": held, "accuracy": _baseline(examples["train"], parts, held)}
    written, notes = write_model(model, metrics, out)
    if state is not None:
        state.unlink(missing_ok=True)
    return Outcome(model, metrics, written, predicted, notes)


def _parts(examples: dict[str, Examples], recipe: Recipe) -> tuple[list[str], dict[str, Part]]:
    kind = examples["train"].kind
    for found in examples.values():
        if found.kind != kind:
            raise InputError(f"{found.source} holds {found.kind} and the training data {kind}; one kind is needed.")
    names = class_names(examples["train"])
    parts = {name: Part(found.inputs, class_numbers(found, names)) for name, found in examples.items()}
    if "valid" not in parts:
        inputs, classes = parts["train"]
        for name, places in zip(("train", "valid"), _split(classes, recipe, examples["train"].source), strict=True):
            parts[name] = Part([inputs[place] for place in places], classes[places])
    return names, parts


def _split(classes: np.ndarray, recipe: Recipe, source: str) -> tuple[np.ndarray, np.ndarray]:
    large, small = stratified_split(classes, recipe.valid_fraction, recipe.seed)
    if not len(small):
        raise InputError(f"{source} has one example of each class and none to validate on; give a validation file.")
    return large, small


def _built(kind: str, parts: dict[str, Part], names: list[str], recipe: Recipe, options: dict[str, Any]) -> Classifier:
    keras.utils.set_random_seed(recipe.seed)
    if kind == "text":
        return fitting.build_text_classifier(recipe, parts["train"].inputs, names, **options)
    return fitting.build_number_classifier(recipe, parts["train"].inputs, names)


def _fingerprint(part: Part) -> str:
    """Tells data apart."""
    found = hashlib.sha256(np.asarray(part.classes).tobytes())
    for row in part.inputs:
        found.update(row.encode() if isinstance(row, str) else np.ascontiguousarray(row).tobytes())
        found.update(b"\n")
    return found.hexdigest()[:16]


def _baseline(examples: Examples, parts: dict[str, Part], held: str) -> float:
    if examples.kind != "text":
        raise InputError(f"{examples.source} holds numbers; the bag-of-words baseline is for text.")
    return bag_of_words_accuracy(parts["train"], parts[held])


def write_model(model: Any, metrics: dict[str, Any], out: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The model's file, its metrics and its learning curve, all at once; and lines about what was left out."""
    files = {"model": out, "metrics": out.with_suffix(".metrics.json"), "curve": out.with_suffix(".curve.png")}
    notes = ()
    with published(out.parent) as staging:
        model.bare().save(staging / out.name)
        (staging / files["metrics"].name).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        try:
            plots.draw_learning_curve(metrics["history"], staging / files["curve"].name, metrics["best_epoch"])
        except InputError as error:  # the model is worth more than its picture
            notes = (f"no learning curve: {error}",)
            del files["curve"]
    return files, notes
