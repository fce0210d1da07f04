"""From the files of one task or several to one model file, with its metrics and its learning curve beside it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from dl_mamba.heads.language import CausalLMHead
from dl_mamba.heads.raw import Row
from dl_mamba.heads.raw_texts import MaskedReader, TextReader
from dl_mamba.heads.raw_words import SpanReader, WordReader
from dl_mamba.heads.task_model import TaskModel, reader_class
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.pipelines import fitting, starts
from dl_mamba.pipelines.environment import versions
from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.files import check_destination
from dl_mamba.pipelines.recipe import TASK, Recipe
from dl_mamba.pipelines.records import Records
from dl_mamba.pipelines.tables import SUFFIXES, read_table
from dl_mamba.pipelines.task_specs import TaskSpec
from dl_mamba.pipelines.training import Outcome, write_model

MAX_LENGTH = 512  # of texts that may be cut
RIGHT_CONTEXT = (WordReader, SpanReader, MaskedReader)
Rows = dict[str, dict[str, list[Row]]]


def is_plain_classification(task: str, data: str | Path) -> bool:
    """Whether a task gives each text, or row of numbers, one class: `dl_mamba.pipelines.training` is for that.

    Example:

    >>> from dl_mamba.pipelines.task_training import is_plain_classification
    >>> is_plain_classification("text_regression", "scores.csv")
    False
    """
    spec = TaskSpec(task, data=data)
    if spec.reader is not TextReader or NLPTaskConfig("task", task, 2).problem_type == "regression":
        return False
    path = Path(data)
    known = path.suffix.lower() in SUFFIXES and path.is_file() and path.stat().st_size
    return not known or "labels" not in read_table(path)[0]


def train_tasks(
    specs: Sequence[TaskSpec],
    *,
    out: str | Path = "model.keras",
    init: str | Path | None = None,
    lora: int | None = None,
    lora_targets: Sequence[str] | None = None,
    bidirectional: bool | None = None,
    resume: bool = False,
    recipe: Recipe = TASK,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **changes: Any,
) -> Outcome:
    r"""Train one backbone on one task or several and write it as one `.keras` file, a `TaskModel`.

    The epoch with the smallest validation loss is kept; test data is scored once. Files appear at the end of a whole
    run, and none after a failed one.

    Args:
        specs: the tasks and their files, as `read_specs` gives them; docs/data_formats.md has the formats.
        out: the model file.
        init, lora, lora_targets, resume: see `dl_mamba.pipelines.training.train`.
        bidirectional: read in both directions; if None, where words, spans or hidden tokens are looked for and the
            weights are fresh.
        recipe: how to train.
        callbacks: further Keras callbacks.
        **changes: fields of the recipe that differ; None changes nothing.

    Returns:
        The model, its metrics and the files.

    Raises:
        InputError: data, options or destination do not fit; before anything is computed.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.pipelines.task_specs import TaskSpec
    >>> from dl_mamba.pipelines.task_training import train_tasks
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "names.conll")
    ...     _ = file.write_text("Anna B\nsings O\n\n" * 4)
    ...     spec = TaskSpec("named_entity_recognition", data=file)
    ...     outcome = train_tasks([spec], out=pathlib.Path(folder, "names.keras"), epochs=1)
    ...     outcome.model.answers(["Anna sings"])[0]["tokens"]
    ['Anna', 'sings']
    """
    started, out = time.monotonic(), check_destination(out)
    recipe = starts.recipe_of(recipe, init, lora, changes)
    records = {spec.name: spec.records() for spec in specs}
    given = {name: changes[name] for name in ("pooling", "dropout_rate") if changes.get(name) is not None}
    defaults = {"dropout_rate": recipe.dropout_rate, **given}
    configs = [spec.config(records[spec.name]["train"], **defaults) for spec in specs]
    directions = _directions(configs, bidirectional, init)
    keras.utils.set_random_seed(recipe.seed)
    start = starts.load(init)
    tokenizer = fitting.tokenizer_of(recipe, _texts(configs, records), start, _max_length(configs, recipe))
    rows = _split(_rows(configs, records, tokenizer), recipe)
    model = _model(recipe, configs, tokenizer, start, directions)
    share = starts.adapt(model, lora, lora_targets)
    state = out.with_suffix(".resume.npz") if resume else None
    about = {"data": _fingerprint(rows), "tasks": [c.to_dict() for c in configs]}
    about |= starts.named(init, lora, lora_targets)
    history = fitting.fit_tasks(model, rows["train"], rows["valid"], recipe, callbacks, state, about)
    starts.merge(model, lora)
    metrics = {
        "data": {spec.name: {part: found.source for part, found in records[spec.name].items()} for spec in specs},
        "tasks": [config.to_dict() for config in configs],
        "parameters": model.count_params(),
        **starts.described(init, share),
        **{part: _scores(model, found, recipe) for part, found in rows.items()},
        "best_epoch": int(np.argmin(history["val_loss"])) + 1,
        "history": history,
        "recipe": recipe.to_dict(),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    written, notes = write_model(model, metrics, out)
    if state is not None:
        state.unlink(missing_ok=True)
    return Outcome(model, metrics, written, {}, notes)


def _directions(configs: Sequence[NLPTaskConfig], wanted: bool | None, init: Any) -> bool:
    causal = any(issubclass(config.head_class, CausalLMHead) for config in configs)
    if wanted is not None:
        return wanted
    return init is None and not causal and any(issubclass(reader_class(c), RIGHT_CONTEXT) for c in configs)


def _max_length(configs: Sequence[NLPTaskConfig], recipe: Recipe) -> int | None:
    cuts = all(reader_class(config).cuts for config in configs)
    return recipe.max_length or (MAX_LENGTH if cuts else None)


def _texts(configs: Sequence[NLPTaskConfig], records: dict[str, dict[str, Records]]) -> list[str]:
    """The texts of the training files."""
    readers = {config.name: reader_class(config)(config, None) for config in configs}
    return [
        text for name, reader in readers.items() for item in records[name]["train"].items for text in reader.texts(item)
    ]


def _rows(configs: Sequence[NLPTaskConfig], records: dict[str, dict[str, Records]], tokenizer: Any) -> Rows:
    """Encoded records by part and task."""
    rows: Rows = {"train": {}, "valid": {}, "test": {}}
    for config in configs:
        reader = reader_class(config)(config, tokenizer)
        for part, found in records[config.name].items():
            rows[part][config.name] = found.rows(reader)
    return {part: found for part, found in rows.items() if found or part != "test"}


def _split(rows: Rows, recipe: Recipe) -> Rows:
    """Holds a part of the training rows out for each task that has no validation file."""
    rng = np.random.default_rng(recipe.seed)
    for name, found in rows["train"].items():
        if name in rows["valid"]:
            continue
        if len(found) < 2:
            raise InputError(f"the task {name!r} has one row and none to validate on; give a validation file.")
        order = rng.permutation(len(found))
        size = max(1, round(recipe.valid_fraction * len(found)))
        rows["valid"][name] = [found[place] for place in sorted(order[:size])]
        rows["train"][name] = [found[place] for place in sorted(order[size:])]
    return rows


def _model(recipe: Recipe, configs: list[NLPTaskConfig], tokenizer: Any, start: Any, bidirectional: bool) -> TaskModel:
    try:
        network = fitting.build_network(recipe, configs, tokenizer, start, bidirectional)
    except ValueError as error:
        raise InputError(str(error)) from error
    return TaskModel(network, tokenizer, configs)


def _scores(model: TaskModel, rows: dict[str, list[Row]], recipe: Recipe) -> dict[str, Any]:
    scores = model.evaluate(model.batches(rows, batch_size=recipe.batch_size), verbose=0, return_dict=True)
    return {**{name: float(value) for name, value in scores.items()}, "examples": sum(map(len, rows.values()))}


def _fingerprint(rows: Rows) -> str:
    """Tells data apart."""
    found = hashlib.sha256()
    for part in ("train", "valid"):
        for name, some in rows[part].items():
            for row in some:
                found.update(f"{part} {name} {len(row)} {sorted(row.inputs)}".encode())
                for ids in row.inputs.values():
                    found.update(np.concatenate(ids if isinstance(ids, list) else [ids]).tobytes())
                found.update(np.asarray(row.label).tobytes())
    return found.hexdigest()[:16]
