"""Which head a task gets: the tasks of this package, and those that other packages add.

Another package adds a task by `register_head`, or by an entry point of the group `dl_mamba.heads`, whose name is the
task type and whose value is the class; it is loaded when the task is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from types import MappingProxyType
from typing import Any

import keras

GROUP = "dl_mamba.heads"


@dataclass(frozen=True)
class Task:
    """What a task type stands for.

    Args:
        head: the class of the head, a `TaskHead`.
        defaults: values of config fields that are left open, e.g. `{"problem_type": "regression"}`.

    Example:

    >>> from dl_mamba.heads import registry
    >>> registry.find("text_regression").defaults["problem_type"]
    'regression'
    """

    head: Any
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_tasks: dict[str, Task] = {}


def add(task_type: str, task: Task) -> None:
    """Enter a task; a name that stands for another head is an error."""
    known = _tasks.get(str(task_type))
    if known is not None and known.head is not task.head:
        raise ValueError(
            f"task_type={str(task_type)!r} belongs to {known.head.__name__}; give {task.head.__name__} another name."
        )
    _tasks[str(task_type)] = task


def register_head(task_type: str, **defaults: Any) -> Callable[[type], type]:
    """Class decorator: a head of your own for a task type of your own.

    Args:
        task_type: a name that no other head has.
        **defaults: values of `NLPTaskConfig` fields that are left open.

    Returns:
        A decorator of a `TaskHead` subclass. It also registers the class with Keras, under the name of its top-level
        package, unless that has been done.

    Raises:
        ValueError: there is no name, it belongs to another head, or the class is no `TaskHead`.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig, SequenceClassificationHead, create_nlp_head, register_head
    >>> @register_head("sarcasm_example", num_classes=2)
    ... class SarcasmHead(SequenceClassificationHead):
    ...     '''Yes or no.'''
    >>> type(create_nlp_head(NLPTaskConfig("irony", "sarcasm_example"))).__name__
    'SarcasmHead'
    """
    if not isinstance(task_type, str):
        raise ValueError(f"task_type={task_type!r}; a name is needed: @register_head('my_task').")

    def decorate(head: type) -> type:
        if not isinstance(head, type) or not hasattr(head, "make_loss"):
            raise ValueError(f"{head!r} is no TaskHead; derive the class from dl_mamba.heads.TaskHead.")
        add(task_type, Task(head, MappingProxyType(defaults)))
        if keras.saving.get_registered_name(head) == head.__name__:
            keras.saving.register_keras_serializable(package=head.__module__.split(".")[0])(head)
        return head

    return decorate


def find(task_type: str) -> Task:
    """The task of a name, from this package, from `register_head` or from an entry point.

    Raises:
        ValueError: nobody knows the name; the message lists those that are known.
    """
    name = str(task_type)
    if name not in _tasks:
        _load(name)
    if name not in _tasks:
        outside = metadata.entry_points(group=GROUP).names
        valid = ", ".join(repr(known) for known in [*_tasks, *sorted(outside - set(_tasks))])
        raise ValueError(f"task_type={task_type!r} is unknown; choose one of: {valid}.")
    return _tasks[name]


def _load(name: str) -> None:
    for entry in metadata.entry_points(group=GROUP, name=name):
        loaded = entry.load()
        if name not in _tasks:
            register_head(name)(loaded)
