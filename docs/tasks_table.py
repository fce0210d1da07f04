"""Write docs/tasks.md from the table of tasks: `python docs/tasks_table.py`."""

from __future__ import annotations

from pathlib import Path

from dl_mamba.heads import TASKS, NLPTaskConfig, compile_options

PAGE = Path(__file__).resolve().with_name("tasks.md")
TEXT = """# Tasks

Every task type, the head that it gets, and what that head gives unless its config says otherwise. The output of a
model with one task is the tensor itself, that of a model with several a dictionary by the names of the tasks. Scores of
padding are -1e9. Class numbers below 0, such as -100, and NaN in place of a number mean that there is no label: loss
and metrics pass over them. "problem" is `problem_type`, behind it for pairs `similarity` and `encoding`. Written by
`python docs/tasks_table.py` from `dl_mamba.heads.TASKS`.

| task type | head | problem | loss | metrics | output | labels |
|---|---|---|---|---|---|---|
"""


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


def page() -> str:
    """The whole page."""
    return TEXT + "\n".join(row(task_type) for task_type in TASKS) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
