"""Which way of training the options of a run ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.task_specs import TaskSpec, read_specs
from dl_mamba.pipelines.task_training import is_plain_classification, train_tasks
from dl_mamba.pipelines.training import Outcome, train


def run(
    task: str | None, tasks: str | Path | None, files: Mapping[str, Any], *, baseline: bool = False, **options: Any
) -> Outcome:
    """Train what is asked for: the tasks of a file, one task, or without any name a classifier.

    Args:
        task: type of the task, or None.
        tasks: a file of tasks, which names their data as well, or None.
        files: `data`, `valid`, `test`, `text_column`, `label_column`, as far as they are given.
        baseline: also fit a bag-of-words logistic regression, for a classifier.
        **options: of `train_tasks` and of `train`.

    Raises:
        InputError: the options contradict each other, or the data do not fit.

    Example:

    >>> from dl_mamba.pipelines.runs import run
    >>> run("spam_detection", "tasks.toml", {})
    Traceback (most recent call last):
        ...
    dl_mamba.pipelines.errors.InputError: a file of tasks names their types and data; leave out: task.
    """
    given = {name: value for name, value in files.items() if value is not None}
    if tasks is not None:
        twice = [*(["task"] if task is not None else []), *given]
        if twice:
            raise InputError(f"a file of tasks names their types and data; leave out: {', '.join(twice)}.")
        specs = read_specs(tasks)
    elif "data" not in given:
        raise InputError("there is no data; name a training file with --data, or a file of tasks with --tasks.")
    elif task is None or is_plain_classification(task, given["data"]):
        named = {} if task is None else {"task": task}
        options["bidirectional"] = bool(options.get("bidirectional"))
        return train(given.pop("data"), **given, **named, baseline=baseline, **options)
    else:
        specs = [TaskSpec(task, **given)]
    if baseline:
        raise InputError("the bag-of-words baseline is for one class a text; leave out --baseline.")
    return train_tasks(specs, **options)
