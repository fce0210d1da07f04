"""Tasks: what a head must do, and everything that decides how it looks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from dl_mamba.heads.pooling import POOLINGS


class NLPTaskType(StrEnum):
    """Kinds of tasks. Tasks of one line share a head.

    Example:

    >>> from dl_mamba.heads import NLPTaskType
    >>> NLPTaskType("sentiment_analysis") is NLPTaskType.SENTIMENT_ANALYSIS
    True
    """

    SEQUENCE_CLASSIFICATION = "sequence_classification"
    TEXT_CLASSIFICATION = "sequence_classification"  # noqa: PIE796 - another name of the line above
    SENTIMENT_ANALYSIS = "sentiment_analysis"
    EMOTION_DETECTION = "emotion_detection"
    INTENT_CLASSIFICATION = "intent_classification"
    TOPIC_CLASSIFICATION = "topic_classification"
    SPAM_DETECTION = "spam_detection"

    @classmethod
    def _missing_(cls, value: object) -> NLPTaskType:
        valid = ", ".join(repr(task.value) for task in cls)
        raise ValueError(f"task_type={value!r} is unknown; choose one of: {valid}.")


@dataclass(frozen=True)
class NLPTaskConfig:
    """One task for one head.

    Args:
        name: name of the head, and of its output.
        task_type: an `NLPTaskType` or its value.
        num_classes: number of classes, >= 2; taken from `label_names` if None.
        dropout_rate: share of the pooled features that training drops, 0 <= rate < 1.
        hidden_size: width of a hidden layer between pooling and logits; no such layer if None.
        pooling: how tokens become one vector: `"mean"`, `"last"`, `"max"` or `"attention"`, over real tokens only.
        label_names: names of the classes, in the order of their ids.

    Raises:
        ValueError: a field does not fit.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig
    >>> NLPTaskConfig("mood", "sentiment_analysis", label_names=("bad", "good")).num_classes
    2
    """

    name: str
    task_type: NLPTaskType | str
    num_classes: int | None = None
    dropout_rate: float = 0.1
    hidden_size: int | None = None
    pooling: str = "mean"
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "task_type", NLPTaskType(self.task_type))
        if self.label_names is not None:
            object.__setattr__(self, "label_names", tuple(self.label_names))
        if self.num_classes is None and self.label_names is not None:
            object.__setattr__(self, "num_classes", len(self.label_names))
        if not isinstance(self.num_classes, int) or self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes!r}; an integer >= 2 is needed, or label_names.")
        if self.label_names is not None and len(set(self.label_names)) != self.num_classes:
            raise ValueError(f"label_names={self.label_names!r}; {self.num_classes} different names are needed.")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate={self.dropout_rate!r}; a number with 0 <= rate < 1 is needed.")
        if self.hidden_size is not None and self.hidden_size < 1:
            raise ValueError(f"hidden_size={self.hidden_size!r}; an integer >= 1 or None is needed.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is unknown; choose one of {list(POOLINGS)}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        names = None if self.label_names is None else list(self.label_names)
        return {**asdict(self), "task_type": self.task_type.value, "label_names": names}
