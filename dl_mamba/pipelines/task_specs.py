"""What a run is to learn: one task named on the command line, or several from a TOML or JSON file, with their data."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dl_mamba.heads import registry
from dl_mamba.heads.base import TaskHead
from dl_mamba.heads.raw import Reader
from dl_mamba.heads.raw_texts import PairReader, TextReader
from dl_mamba.heads.raw_words import ArcReader, RelationReader, SpanReader, TagReader
from dl_mamba.heads.task_model import reader_class
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.records import Records, read_records
from dl_mamba.pipelines.splits import in_order

PARTS = ("data", "valid", "test")
COLUMNS = ("text_column", "label_column")


@dataclass(frozen=True)
class TaskSpec:
    """One task of a run, and the files that it learns from.

    Attributes:
        task_type: a task of docs/tasks.md.
        name: of the task in the model; the type if not given.
        data, valid, test: files; what is validated on is a part of `data` if `valid` is None.
        text_column, label_column: names of columns in them.
        options: fields of `NLPTaskConfig`.

    Example:

    >>> from dl_mamba.pipelines.task_specs import TaskSpec
    >>> TaskSpec("named_entity_recognition", data="names.conll").reader.__name__
    'TagReader'
    """

    task_type: str
    name: str = ""
    data: Path | str | None = None
    valid: Path | str | None = None
    test: Path | str | None = None
    text_column: str | None = None
    label_column: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            head = registry.find(self.task_type).head
        except ValueError as error:
            raise InputError(str(error)) from error
        object.__setattr__(self, "name", self.name or str(self.task_type))
        if self.data is None:
            raise InputError(f"the task {self.name!r} has no data; name its training file as data.")
        unknown = sorted(set(self.options) - {field.name for field in fields(NLPTaskConfig)})
        if unknown:
            raise InputError(f"the task {self.name!r} has the field {unknown[0]!r}, which no task has.")
        self._find_reader(head)

    @property
    def reader(self) -> type[Reader]:
        """What reads the records of this task."""
        return self._find_reader(registry.find(self.task_type).head)

    def records(self) -> dict[str, Records]:
        """The records of each file, by part: `train`, `valid`, `test`."""
        found = {}
        for part in PARTS:
            if (path := getattr(self, part)) is not None:
                columns = {name: getattr(self, name) for name in COLUMNS}
                found["train" if part == "data" else part] = read_records(path, self.reader, **columns)
        return found

    def config(self, train: Records, **defaults: Any) -> NLPTaskConfig:
        """The config of the task: what its training records show, where the options do not say it.

        Raises:
            InputError: the options do not fit the task or the data.
        """
        head = registry.find(self.task_type).head
        used = {name: value for name, value in defaults.items() if name in (*head.fields, "dropout_rate")}
        options = {**used, **self._shown_by(train), **self.options}
        try:
            return NLPTaskConfig(self.name, self.task_type, **options)
        except (ValueError, TypeError) as error:
            raise InputError(f"the task {self.name!r}: {error}") from error

    def _find_reader(self, head: type[TaskHead]) -> type[Reader]:
        problem = {"problem_type": self.options["problem_type"]} if "problem_type" in self.options else {}
        sizes = {"num_classes": 2} if "num_classes" in head.fields and self._has_classes(head) else {}
        sizes |= {"vocab_size": 1} if "vocab_size" in head.fields else {}
        try:
            return reader_class(NLPTaskConfig(self.name, self.task_type, **sizes, **problem))
        except ValueError as error:
            raise InputError(f"the task {self.name!r}: {error}") from error

    def _has_classes(self, head: type[TaskHead]) -> bool:
        default = {**head.defaults, **registry.find(self.task_type).defaults}.get("problem_type")
        return self.options.get("problem_type", default) != "regression"

    def _shown_by(self, train: Records) -> dict[str, Any]:
        """Names of the labels, whether there are several, and whether a text may have no answer."""
        if self.reader is SpanReader:
            return {"unanswerable": not all(item["answers"] for item in train.items)}
        regression = not self._has_classes(registry.find(self.task_type).head)
        several = self.reader is TextReader and "labels" in train.items[0]
        if several and regression:
            return {"num_classes": len(train.items[0]["labels"])}
        names = set() if regression or "label_names" in self.options else set(self._names(train.items))
        if not names:
            return {"problem_type": "multi_label"} if several else {}
        if len(names) == 1 and self.reader in (TextReader, PairReader, TagReader) and not several:
            raise InputError(f"{train.source} has one label only, {names.pop()!r}; two or more are needed to train.")
        return {"label_names": tuple(in_order(names)), **({"problem_type": "multi_label"} if several else {})}

    def _names(self, items: Sequence[Mapping[str, Any]]) -> list[str]:
        if self.reader in (TextReader, PairReader):
            return [str(name) for item in items for name in item.get("labels", [item.get("label")])]
        if self.reader is TagReader:
            return [str(tag) for item in items for tag in item["tags"]]
        if self.reader is ArcReader:
            return [str(name) for item in items for name in item.get("relations", [])]
        if self.reader is RelationReader:
            return [str(relation.get("label")) for item in items for relation in item["relations"]]
        return []


def read_specs(path: str | Path) -> list[TaskSpec]:
    r"""The tasks of a file: `[[task]]` tables of TOML, or `{"task": [...]}` of JSON; paths are relative to it.

    Raises:
        InputError: the file cannot be read, or a task lacks its type or its data.

    Example:

    >>> import pathlib, tempfile
    >>> from dl_mamba.pipelines.task_specs import read_specs
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "tasks.toml")
    ...     _ = file.write_text('[[task]]\ntask_type = "spam_detection"\ndata = "mails.csv"\nloss_weight = 0.5')
    ...     [(spec.name, dict(spec.options)) for spec in read_specs(file)]
    [('spam_detection', {'loss_weight': 0.5})]
    """
    path = Path(path)
    load = {".toml": tomllib.loads, ".json": json.loads}.get(path.suffix.lower())
    if load is None:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'!r}; a .toml or .json file of tasks is needed.")
    try:
        found = load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    tasks = found.get("task") if isinstance(found, dict) else None
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise InputError(f'{path} has no tasks; [[task]] tables are needed, or {{"task": [...]}} in JSON.')
    specs = [_spec(task, number, path) for number, task in enumerate(tasks, 1)]
    names = [spec.name for spec in specs]
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise InputError(f"{path} has two tasks with the name {double[0]!r}; give each its own name.")
    return specs


def _spec(task: dict[str, Any], number: int, path: Path) -> TaskSpec:
    if "task_type" not in task:
        raise InputError(f"task {number} of {path} has no task_type; docs/tasks.md lists them.")
    own = {name: task[name] for name in ("task_type", "name", *COLUMNS) if name in task}
    files = {name: path.parent / task[name] for name in PARTS if name in task}
    options = {name: value for name, value in task.items() if name not in {*own, *files}}
    return TaskSpec(**own, **files, options=options)
