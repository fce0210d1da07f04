"""Raw inputs of a task: records as people have them, into rows of ids with labels, and outputs back into answers.

A record is a dictionary, such as `{"text": ..., "label": ...}`; docs/data_formats.md lists the fields of every task.
What a record needs, and what its answer looks like, is said by a `Reader`, one class for each kind of head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dl_mamba.heads.tasks import NLPTaskConfig

Record = Mapping[str, Any]
IGNORED = -100
END = ("<|endoftext|>", "</s>", "<eos>")  # as a tokenizer.json may spell it


@dataclass(frozen=True)
class Row:
    """One encoded record.

    Attributes:
        inputs: the model's inputs without batch axis and padding; those of choices have one array a choice.
        label: as the head takes it, without padding; None where there is none.
        places: positions of the words, or of the tokens of a context, in `input_ids`.
        record: what was encoded.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.raw import Row
    >>> len(Row({"input_ids": np.arange(3)}))
    3
    """

    inputs: Mapping[str, Any]
    label: np.ndarray | None = None
    places: np.ndarray | None = None
    record: Record = field(default_factory=dict)

    def __len__(self) -> int:
        return max(max(map(len, ids), default=0) if isinstance(ids, list) else len(ids) for ids in self.inputs.values())


class Reader:
    """Base of the readers: records of one task into rows, and the head's outputs into answers.

    Attributes:
        fields: fields that every record has.
        from_text: the name of a field that a plain string stands for, or None.
        cuts: whether a text may be cut to `max_length`, since its label is about the whole.

    Args:
        task: the task; its `label_names` are the labels that are known.
        tokenizer: text into ids; longer texts than its `max_length` are cut, or refused where places in them count.
    """

    fields: ClassVar[tuple[str, ...]] = ("text",)
    from_text: ClassVar[str | None] = None
    cuts: ClassVar[bool] = False

    def __init__(self, task: NLPTaskConfig, tokenizer: Any) -> None:
        self.task = task
        self.tokenizer = tokenizer

    def texts(self, record: Record) -> list[str]:
        """The texts of a record, from which a tokenizer may learn."""
        return [record[name] for name in self.fields]

    def rows(self, record: Record) -> list[Row]:
        """The rows of a record; most have one.

        Raises:
            ValueError: a label is unknown, or a place lies outside the text.
        """
        raise NotImplementedError

    def label_of(self, row: Row | None, length: int) -> np.ndarray:
        """The label of a row, padded to a length; of a row without label if None."""
        raise NotImplementedError

    def answer(self, head: Any, output: np.ndarray, row: Row) -> dict[str, Any]:
        """What the output of the head says about a row."""
        raise NotImplementedError

    def ids(self, text: str) -> np.ndarray:
        return self.tokenizer.cut(self.tokenizer.ids(text))

    def whole(self, ids: Sequence[int]) -> np.ndarray:
        """Ids that must not be cut, since labels name places among them."""
        longest = self.tokenizer.max_length
        if longest is not None and len(ids) > longest:
            raise ValueError(f"it has {len(ids)} tokens, and max_length is {longest}; raise it, or divide the text.")
        return np.array(ids, "int32")

    def number_of(self, name: Any) -> int:
        """The class number of a label."""
        names = self.task.label_names
        if str(name) not in names:
            shown = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
            raise ValueError(f"the label {name!r} is unknown to the task {self.task.name!r}; it knows {shown}.")
        return names.index(str(name))

    def names_of(self, numbers: Any) -> list[str | None]:
        """Labels of class numbers; None where there is none."""
        return [self.task.label_names[number] if number >= 0 else None for number in np.asarray(numbers).tolist()]


def end_of_text(tokenizer: Any) -> int:
    """The id that ends a text, and stands for hidden tokens: that of the file, or of the byte 0, which no text has.

    Raises:
        ValueError: a tokenizer.json has none of the usual names.

    Example:

    >>> from dl_mamba.heads.raw import end_of_text
    >>> from dl_mamba.tokenizers import ByteTokenizer
    >>> end_of_text(ByteTokenizer())
    0
    """
    if not hasattr(tokenizer, "token_id"):
        return 0
    found = [tokenizer.token_id(name) for name in END]
    if all(number is None for number in found):
        raise ValueError(f"the tokenizer has none of the tokens {', '.join(END)}; one is needed to end a text.")
    return next(number for number in found if number is not None)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, float64.

    Example:

    >>> from dl_mamba.heads.raw import softmax
    >>> softmax([0.0, 0.0]).tolist()
    [0.5, 0.5]
    """
    logits = np.asarray(logits, "float64")
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def padded(label: np.ndarray, length: int, axes: int = 1) -> np.ndarray:
    """A label along tokens, filled up with -100 on its first axes.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.raw import padded
    >>> padded(np.array([1, 2]), 3).tolist()
    [1, 2, -100]
    """
    widths = [(0, length - size if axis < axes else 0) for axis, size in enumerate(label.shape)]
    return np.pad(label, widths, constant_values=IGNORED)
