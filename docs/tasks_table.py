"""Write docs/tasks.md from the table of tasks and what was found by trying them: `python docs/tasks_table.py`.

With names of backends, e.g. `python docs/tasks_table.py jax torch`, every task is first built, fitted and saved there,
and its file read in a new process; with names of tasks as well, e.g. `jax ranking`, these alone. Other cells stay.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dl_mamba.heads import TASKS, NLPTaskConfig, compile_options

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tasks.md"
TEXT = """# Tasks

Every task type, the head that it gets, and what that head gives unless its config says otherwise. The output of a
model with one task is the tensor itself, that of a model with several a dictionary by the names of the tasks. Scores of
padding are -1e9. Class numbers below 0, such as -100, and NaN in place of a number mean that there is no label: loss
and metrics pass over them. "problem" is `problem_type`, behind it for pairs `similarity` and `encoding`. Written by
`python docs/tasks_table.py` from `dl_mamba.heads.TASKS`.

| task type | head | problem | loss | metrics | output | labels |
|---|---|---|---|---|---|---|
"""
TRIED = """
## Tried on each backend

`python docs/tasks_table.py jax tensorflow torch` builds a small Mamba-2 for each task, fits it once with the loss and
the metrics above (on TensorFlow with `run_eagerly=True`), sees to it that they are finite and that every weight has
changed (but for the bias of choices, which their softmax cancels), writes the `.keras` file, and reads it in a new
process that imports no more than dl_mamba. A cell has the largest difference between what the two processes compute, or
says what failed.

"""
BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
HEADER = f"| task type | {' | '.join(BACKENDS.values())} |\n|---|---|---|---|\n"


def example(task_type: str) -> NLPTaskConfig:
    """A config of a type with nothing set but what it needs."""
    task = TASKS[task_type]
    needs = "num_classes" in task.head.fields and task.defaults.get("problem_type") != "regression"
    return NLPTaskConfig("task", task_type, **({"num_classes": 2} if needs else {}))


def row(task_type: str) -> str:
    """One line of the table."""
    config = example(task_type)
    options = compile_options(config)
    metrics = ", ".join(metric.name for metric in options["weighted_metrics"])
    output, labels = config.head_class.axes(config)
    kinds = [config.problem_type, config.similarity, config.encoding]
    problem = ", ".join(kind for kind in kinds if kind) or "-"
    head = config.head_class.__name__
    return f"| `{task_type}` | `{head}` | {problem} | {options['loss'].kind} | {metrics} | {output} | {labels} |"


def page(found: dict[str, dict[str, str]]) -> str:
    """The whole page, from what each task gave on each backend."""
    lines = []
    for task_type in TASKS:
        cells = [found.get(task_type, {}).get(name, "not tried") for name in BACKENDS]
        lines.append(f"| `{task_type}` | {' | '.join(cells)} |")
    return TEXT + "\n".join(row(task_type) for task_type in TASKS) + "\n" + TRIED + HEADER + "\n".join(lines) + "\n"


def tried(text: str) -> dict[str, dict[str, str]]:
    """What a page has in its second table, by task and backend."""
    lines = text.partition(HEADER)[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): dict(zip(BACKENDS, cells, strict=True)) for name, *cells in rows}


def attempt(backend: str, tasks: list[str]) -> dict[str, str]:
    """The cell of each of these tasks on a backend: one process fits and writes, another one reads."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        environment |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        for step, tests in (("--fit", str(ROOT / "tests")), ("--read", "")):
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), tests)))
            command = [sys.executable, "-W", "ignore", __file__, step, folder, *tasks]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=True)
            cells |= dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    return cells


def fit(task_type: str, path: Path) -> None:
    """Build, fit and save one task, with inputs and outputs beside the file."""
    import keras
    import numpy as np
    from harness import BACKEND, numpy
    from head_harness import inputs_of, labels_of, task_of
    from model_harness import SMALL_MODEL, WITH_HEAD

    keras.utils.set_random_seed(0)
    task = task_of(task_type)
    model = WITH_HEAD["mamba2"]("tiny", task, **{**SMALL_MODEL["mamba2"], "num_layers": 1})
    inputs, before = inputs_of(task), [numpy(weight.value) for weight in model.trainable_variables]
    model.compile(keras.optimizers.Adam(0.01), **compile_options(task), run_eagerly=BACKEND == "tensorflow")
    history = model.fit(inputs, labels_of(task, inputs), verbose=0).history
    if len(history) < 2 or not all(np.isfinite(values).all() for values in history.values()):
        raise ValueError(f"the loss or a metric is missing or not finite: {history}")
    free = "task/logits/bias" if task.head_class.layout(task) == "choices" else ""
    for weight, value in zip(model.trainable_variables, before, strict=True):
        if np.array_equal(numpy(weight.value), value) and weight.path != free:
            raise ValueError(f"{weight.path} has not changed")
    model.save(path)
    np.savez(path.with_suffix(".npz"), output=numpy(model(tensors(inputs))), **inputs)


def read(task_type: str, path: Path) -> None:
    """Load one task and print its largest difference."""
    import keras
    import numpy as np

    inputs = dict(np.load(path.with_suffix(".npz")))
    wanted = inputs.pop("output")
    output = keras.ops.convert_to_numpy(keras.models.load_model(path)(tensors(inputs)))
    difference = float(np.abs(output - wanted).max())
    print(json.dumps([task_type, f"{difference:.0e}" if difference else "equal"]), flush=True)


def tensors(inputs: dict[str, Any]) -> dict[str, Any]:
    """Arrays as tensors of the backend."""
    import keras

    return {name: keras.ops.convert_to_tensor(value) for name, value in inputs.items()}


def child(step: str, folder: str, *tasks: str) -> None:
    """One step for each of these tasks; a failure is printed as its cell."""
    for task_type in tasks:
        path = Path(folder, f"{task_type}.keras")
        if step == "--read" and not path.exists():
            continue
        try:
            (fit if step == "--fit" else read)(task_type, path)
        except Exception as error:  # noqa: BLE001 - the table tells what happened
            text = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
            print(json.dumps([task_type, text]), flush=True)


def main(names: list[str]) -> None:
    """Try what has these names, and write the page."""
    found = tried(PAGE.read_text(encoding="utf-8"))
    tasks = [task_type for task_type in map(str, TASKS) if task_type in names] or list(map(str, TASKS))
    unknown = set(names) - {*BACKENDS, *map(str, TASKS)}
    if unknown:
        sys.exit(f"{sorted(unknown)} are no backends and no tasks; backends are {list(BACKENDS)}.")
    for name in filter(names.__contains__, BACKENDS):
        for task_type, cell in attempt(name, tasks).items():
            found.setdefault(task_type, {})[name] = cell
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    child(*sys.argv[1:]) if sys.argv[1:2] in (["--fit"], ["--read"]) else main(sys.argv[1:])
