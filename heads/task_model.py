"""Models that are whole, for any task or several: records in, answers out, everything between in one `.keras` file."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from dl_mamba.heads.arc import ArcHead
from dl_mamba.heads.base import TaskHead
from dl_mamba.heads.batches import LengthBatches
from dl_mamba.heads.choice import MultipleChoiceHead
from dl_mamba.heads.language import CausalLMHead, MaskedLMHead, to_causal_lm
from dl_mamba.heads.pair import PairHead
from dl_mamba.heads.raw import Reader, Record, Row, end_of_text
from dl_mamba.heads.raw_texts import ChoiceReader, LanguageReader, MaskedReader, PairReader, TextReader
from dl_mamba.heads.raw_words import ArcReader, RelationReader, SpanReader, TagReader
from dl_mamba.heads.sequence import SequenceClassificationHead
from dl_mamba.heads.span import SpanHead
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.heads.tokens import TokenClassificationHead
from dl_mamba.models.causal_lm import CausalLM
from dl_mamba.models.optimizer_first import OptimizerFirst

READERS: dict[type[TaskHead], type[Reader]] = {
    SequenceClassificationHead: TextReader,
    PairHead: PairReader,
    MultipleChoiceHead: ChoiceReader,
    TokenClassificationHead: TagReader,
    ArcHead: ArcReader,
    SpanHead: SpanReader,
    MaskedLMHead: MaskedReader,
    CausalLMHead: LanguageReader,
}


def reader_class(task: NLPTaskConfig) -> type[Reader]:
    """The reader of a task, by its head.

    Raises:
        ValueError: the head is none of this package, and no subclass of one.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig
    >>> from dl_mamba.heads.task_model import reader_class
    >>> reader_class(NLPTaskConfig("answer", "question_answering")).__name__
    'SpanReader'
    """
    if issubclass(task.head_class, ArcHead) and task.problem_type == "multi_label":
        return RelationReader
    for head, reader in READERS.items():
        if issubclass(task.head_class, head):
            return reader
    raise ValueError(f"{task.head_class.__name__} of the task {task.name!r} has no format for raw records; use fit.")


@keras.saving.register_keras_serializable(package="dl_mamba")
class TaskModel(OptimizerFirst, keras.Model):
    """Records in, answers out: a network with task heads, its tokenizer and its tasks in one `.keras` file.

    Args:
        network: what `create_mamba_with_head` makes of a list of tasks.
        tokenizer: text into ids.
        tasks: the configs of the tasks, or their fields as dicts; classes need `label_names`.
        **kwargs: `name`, `dtype`, `trainable` of a Keras model.

    Call arguments:
        inputs: those of the network.

    Returns:
        The dictionary of the heads' outputs.

    Raises:
        ValueError: the tasks are not those of the network.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig, TaskModel, create_mamba2_with_head
    >>> from dl_mamba.tokenizers import ByteTokenizer
    >>> tasks = [NLPTaskConfig("names", "named_entity_recognition", label_names=("O", "B", "I"))]
    >>> model = TaskModel(create_mamba2_with_head("tiny", tasks), ByteTokenizer(), tasks)
    >>> model.answers(["Anna sings."])[0]["tokens"]
    ['Anna', 'sings', '.']
    """

    def __init__(self, network: keras.Model, tokenizer: Any, tasks: Sequence[Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        tasks = [task if isinstance(task, NLPTaskConfig) else NLPTaskConfig(**task) for task in tasks]
        heads = {layer.config.name: layer for layer in network._flatten_layers() if isinstance(layer, TaskHead)}
        if {task.name for task in tasks} != set(heads):
            raise ValueError(f"tasks are {[task.name for task in tasks]}, and the heads of the network {list(heads)}.")
        self.network = network
        self.tokenizer = tokenizer
        self.tasks = {task.name: task for task in tasks}
        self.heads = heads
        self.readers = {task.name: reader_class(task)(task, tokenizer) for task in tasks}
        self.build()

    def build(self, input_shape: Any = None) -> None:
        self.built = True  # the network came with its weights

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.network(inputs, training=training)

    def task_named(self, name: str | None = None) -> NLPTaskConfig:
        """A task by its name; the only one if None.

        Raises:
            ValueError: there is none of that name, or several and no name.
        """
        if name is None and len(self.tasks) == 1:
            return next(iter(self.tasks.values()))
        if name not in self.tasks:
            raise ValueError(f"task={name!r}; one of this model's tasks is needed: {', '.join(self.tasks)}.")
        return self.tasks[name]

    def batches(
        self, rows: Mapping[str, Sequence[Row]], *, batch_size: int | None = None, shuffle: bool = False
    ) -> TaskBatches:
        """Rows of the tasks, by name, as a dataset for `fit` and `evaluate`; a batch may hold rows of several tasks."""
        return TaskBatches(self, rows, batch_size=batch_size or 32, shuffle=shuffle)

    def outputs(
        self, rows: Sequence[Row], task: str | None = None, batch_size: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The output of a task's head for each row, with the row's number, in the order of the batches."""
        name = self.task_named(task).name
        data = self.batches({name: rows}, batch_size=batch_size)
        order = iter(data.order)
        for i in range(len(data)):
            found = np.asarray(keras.ops.convert_to_numpy(self.predict_on_batch(data[i][0])[name]))
            yield from ((place, output) for output, place in zip(found, order, strict=False))

    def answers(
        self,
        records: Sequence[Record | str],
        task: str | None = None,
        batch_size: int | None = None,
        max_new_tokens: int = 100,
    ) -> list[dict[str, Any]]:
        """What the model says about each record.

        Args:
            records: records of the task without labels, or plain strings where the task reads one text.
            task: its name; the only one if None.
            batch_size: rows in a batch; None for 32.
            max_new_tokens: of a task that continues texts.

        Returns:
            One dictionary a record: docs/data_formats.md lists them.

        Raises:
            ValueError: a record lacks a field, or there are several tasks and no name.
        """
        config = self.task_named(task)
        records = [self._record(config.name, record) for record in records]
        if issubclass(config.head_class, CausalLMHead):
            return self._continuations(config.name, records, max_new_tokens)
        reader, head = self.readers[config.name], self.heads[config.name]
        rows = [row for record in records for row in reader.rows(record)]
        found = {
            place: reader.answer(head, output, rows[place]) for place, output in self.outputs(rows, task, batch_size)
        }
        return [found[place] for place in range(len(rows))]

    def to_causal_lm(self, task: str | None = None) -> CausalLM:
        """The language model of a task that continues texts, for `generate`; see `dl_mamba.heads.to_causal_lm`."""
        return to_causal_lm(self.network, task, self.tokenizer)

    def bare(self) -> TaskModel:
        """This model without optimizer and losses, on the same weights: a finished model to save."""
        return type(self)(self.network, self.tokenizer, list(self.tasks.values()))

    def get_config(self) -> dict[str, Any]:
        parts = {part: keras.saving.serialize_keras_object(getattr(self, part)) for part in ("network", "tokenizer")}
        return {**super().get_config(), **parts, "tasks": [task.to_dict() for task in self.tasks.values()]}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> TaskModel:
        parts = {
            part: keras.saving.deserialize_keras_object(config[part], custom_objects)
            for part in ("network", "tokenizer")
        }
        return cls(**{**config, **parts})

    def _record(self, name: str, record: Record | str) -> Record:
        reader = self.readers[name]
        if isinstance(record, str):
            if reader.from_text is None:
                raise ValueError(f"{record!r} is a string; the task {name!r} needs the fields {list(reader.fields)}.")
            return {reader.from_text: record}
        return record

    def _continuations(self, name: str, records: Sequence[Record], max_new_tokens: int) -> list[dict[str, Any]]:
        reader = self.readers[name]
        prompts = [reader.beginning(record) for record in records]
        end = end_of_text(self.tokenizer)
        texts = self.to_causal_lm(name).generate(prompts, max_new_tokens, eos_token_id=end)
        return [{"text": text[len(prompt) :]} for text, prompt in zip(texts, prompts, strict=True)]


class TaskBatches(LengthBatches):
    """Batches of rows of one task or several: inputs, and for each task labels, which are missing in rows of others.

    Args:
        model: whose inputs and tasks are meant.
        rows: those of each task, by name.
        batch_size, shuffle: see `LengthBatches`; with `shuffle` masked language models hide other tokens each time.
    """

    def __init__(self, model: TaskModel, rows: Mapping[str, Sequence[Row]], *, batch_size: int, shuffle: bool) -> None:
        self.readers = model.readers
        self.inputs = {name: len(model.network.input[name].shape) for name in model.network.input}
        self.choices = max((len(row.inputs["input_ids"]) for found in rows.values() for row in found), default=0)
        tasks = [name for name, found in rows.items() for _ in found]
        every = [row for found in rows.values() for row in found]
        self._hiding = np.random.default_rng(random.getrandbits(32)) if shuffle else None
        draw = lambda: [self._drawn(name, row) for name, row in zip(tasks, every, strict=True)]  # noqa: E731
        super().__init__(draw, batch_size=batch_size, collate=self._collate, shuffle=shuffle)
        self._tasks = tasks

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        edge, places = self._batches[index]
        rows = [self.rows[place] for place in places]
        own = [self._tasks[place] for place in places]
        labels = {}
        for name, reader in self.readers.items():
            length = self.choices if isinstance(reader, ChoiceReader) else edge
            known = [
                row if task == name and row.label is not None else None for row, task in zip(rows, own, strict=True)
            ]
            labels[name] = np.stack([reader.label_of(row, length) for row in known])
        return self._collate(rows, edge), labels

    def _drawn(self, name: str, row: Row) -> Row:
        reader = self.readers[name]
        return reader.hidden(row, self._hiding) if self._hiding and isinstance(reader, MaskedReader) else row

    def _collate(self, rows: Sequence[Row], length: int) -> dict[str, np.ndarray]:
        inputs = {}
        for name, axes in self.inputs.items():
            source = name.replace("attention_mask", "input_ids")
            found = np.zeros((len(rows), self.choices, length) if axes == 3 else (len(rows), length), "int32")
            for place, row in enumerate(rows):
                arrays = row.inputs.get(source, [])
                for choice, ids in enumerate(arrays if axes == 3 else [arrays]):
                    target = found[place, choice] if axes == 3 else found[place]
                    target[: len(ids)] = 1 if source != name else ids
            inputs[name] = found
        return inputs
