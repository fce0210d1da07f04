"""Tasks: what a head must do, and everything that decides how it looks."""

from __future__ import annotations

from dataclasses import InitVar, asdict, dataclass
from enum import StrEnum
from typing import Any

from dl_mamba.heads import registry
from dl_mamba.heads.pooling import POOLINGS

PROBLEM_TYPES = ("single_label", "multi_label", "regression")
SIMILARITIES = ("cosine", "dot", "learned")
ENCODINGS = ("bi", "joint")
COMMON = ("name", "task_type", "dropout_rate", "loss_weight")  # fields that every head consumes


class NLPTaskType(StrEnum):
    """Kinds of tasks; `dl_mamba.heads.table.TASKS` says which head, loss and metrics each one gets.

    Example:

    >>> from dl_mamba.heads import NLPTaskType
    >>> NLPTaskType("sentiment_analysis") is NLPTaskType.SENTIMENT_ANALYSIS
    True
    """

    TOKEN_CLASSIFICATION = "token_classification"
    NAMED_ENTITY_RECOGNITION = "named_entity_recognition"
    PART_OF_SPEECH_TAGGING = "part_of_speech_tagging"
    DEPENDENCY_PARSING = "dependency_parsing"
    SEMANTIC_ROLE_LABELING = "semantic_role_labeling"
    WORD_SENSE_DISAMBIGUATION = "word_sense_disambiguation"

    SEQUENCE_CLASSIFICATION = "sequence_classification"
    TEXT_CLASSIFICATION = "sequence_classification"  # noqa: PIE796 - another name of the line above
    SENTIMENT_ANALYSIS = "sentiment_analysis"
    EMOTION_DETECTION = "emotion_detection"
    INTENT_CLASSIFICATION = "intent_classification"
    TOPIC_CLASSIFICATION = "topic_classification"
    SPAM_DETECTION = "spam_detection"

    QUESTION_ANSWERING = "question_answering"
    SPAN_EXTRACTION = "span_extraction"
    COREFERENCE_RESOLUTION = "coreference_resolution"
    EVENT_EXTRACTION = "event_extraction"
    RELATION_EXTRACTION = "relation_extraction"

    TEXT_SIMILARITY = "text_similarity"
    NATURAL_LANGUAGE_INFERENCE = "natural_language_inference"
    PARAPHRASE_DETECTION = "paraphrase_detection"
    DUPLICATE_DETECTION = "duplicate_detection"

    TEXT_GENERATION = "text_generation"
    MASKED_LANGUAGE_MODELING = "masked_language_modeling"
    TEXT_SUMMARIZATION = "text_summarization"
    MACHINE_TRANSLATION = "machine_translation"
    TEXT_COMPLETION = "text_completion"
    DIALOGUE_GENERATION = "dialogue_generation"

    TEXT_REGRESSION = "text_regression"
    READABILITY_SCORING = "readability_scoring"
    QUALITY_SCORING = "quality_scoring"

    MULTIPLE_CHOICE = "multiple_choice"
    RANKING = "ranking"
    SEQUENCE_LABELING = "sequence_labeling"
    TEXT_MATCHING = "text_matching"

    KEY_PHRASE_EXTRACTION = "key_phrase_extraction"
    FACT_EXTRACTION = "fact_extraction"
    OPINION_EXTRACTION = "opinion_extraction"


@dataclass(frozen=True)
class NLPTaskConfig:
    """One task for one head. A field that the head of the task has no use for is refused.

    Args:
        name: name of the head, and of its output.
        task_type: an `NLPTaskType` or its value, or a name given to `register_head`.
        num_classes: number of classes, >= 2 (>= 1 for several labels and for relations); number of values for
            regression, 1 if not given; taken from `label_names` if None.
        dropout_rate: share of the features that training drops in front of each dense layer, 0 <= rate < 1.
        hidden_size: width of a hidden layer in front of the logits; no such layer if None, but 128 for arcs.
        pooling: how tokens become one vector: `"mean"` (the default), `"last"`, `"max"` or `"attention"`, over real
            tokens only.
        label_names: names of the classes, in the order of their ids.
        vocab_size: number of tokens of a language model; `create_mamba_with_head` takes it from the backbone.
        max_length: longest span, in tokens.
        loss_weight: factor of the task's loss in a model of several tasks, >= 0.
        label_smoothing: probability that is spread over all classes, 0 <= share < 1 (Szegedy et al. 2016).
        use_crf: score tags of tokens by a linear-chain CRF instead of each apart.
        problem_type: `"single_label"`, `"multi_label"` or `"regression"`; that of the task if None.
        similarity: how a pair of vectors is compared: `"cosine"`, `"dot"` or `"learned"`; that of the task if None.
        encoding: `"bi"` reads the texts of a pair apart, `"joint"` in one sequence whose `token_type_ids` say which
            text a token belongs to.
        tie_word_embeddings: the embedding is also the matrix of the logits, as it is by default.
        tree: the arcs of a row form a tree with one root, as they do for dependencies.
        unanswerable: a text may hold no span; position 0 stands for that then, and tokens count from 1.
        num_labels: another name of `num_classes`.

    Raises:
        ValueError: a field does not fit, or the head of the task does not use it.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig
    >>> NLPTaskConfig("mood", "sentiment_analysis", label_names=("bad", "good")).num_classes
    2
    >>> NLPTaskConfig("mood", "sentiment_analysis", num_classes=2, use_crf=True)
    Traceback (most recent call last):
    ValueError: use_crf=True is not used by sentiment_analysis (SequenceClassificationHead); leave it out. ...
    """

    name: str
    task_type: NLPTaskType | str
    num_classes: int | None = None
    dropout_rate: float = 0.1
    hidden_size: int | None = None
    pooling: str | None = None
    label_names: tuple[str, ...] | None = None
    vocab_size: int | None = None
    max_length: int | None = None
    loss_weight: float = 1.0
    label_smoothing: float = 0.0
    use_crf: bool = False
    problem_type: str | None = None
    similarity: str | None = None
    encoding: str | None = None
    tie_word_embeddings: bool | None = None
    tree: bool | None = None
    unanswerable: bool = False
    num_labels: InitVar[int | None] = None

    def __post_init__(self, num_labels: int | None) -> None:
        self._set("task_type", _known(self.task_type))
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            raise ValueError(f"name={self.name!r}; a name without '/' is needed.")
        task = registry.find(self.task_type)
        self._refuse_unused(task.head, num_labels)
        self._one_number_of_classes(num_labels)
        for field, value in {**task.head.defaults, **task.defaults}.items():
            if getattr(self, field) is None:
                self._set(field, value)
        self._check_numbers()
        self._check_choices(task.head)
        if "num_classes" in task.head.fields:
            self._check_classes(optional="num_classes" in task.head.optional)
        task.head.check(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        names = None if self.label_names is None else list(self.label_names)
        return {**asdict(self), "task_type": str(self.task_type), "label_names": names}

    @property
    def head_class(self) -> type:
        """The class of the head that the task gets."""
        return registry.find(self.task_type).head

    def _set(self, field: str, value: Any) -> None:
        object.__setattr__(self, field, value)

    def _one_number_of_classes(self, num_labels: int | None) -> None:
        if self.label_names is not None:
            self._set("label_names", tuple(self.label_names))
        if num_labels is not None and self.num_classes not in (None, num_labels):
            raise ValueError(f"num_labels={num_labels} is another name of num_classes={self.num_classes}; give one.")
        if self.num_classes is None:
            names = None if self.label_names is None else len(self.label_names)
            self._set("num_classes", names if num_labels is None else num_labels)

    def _refuse_unused(self, head: type, num_labels: int | None) -> None:
        used = {*COMMON, *head.fields, *(["num_labels"] if "num_classes" in head.fields else [])}
        for field, description in self.__dataclass_fields__.items():
            value = num_labels if field == "num_labels" else getattr(self, field)
            if field in used or value == description.default:
                continue
            others = ", ".join(sorted(head.fields)) or "no further field"
            raise ValueError(
                f"{field}={value!r} is not used by {self.task_type} ({head.__name__}); leave it out. Beside "
                f"{', '.join(COMMON)}, this head uses: {others}."
            )

    def _check_numbers(self) -> None:
        for field in ("dropout_rate", "label_smoothing"):
            if not 0.0 <= getattr(self, field) < 1.0:
                raise ValueError(f"{field}={getattr(self, field)!r}; a number with 0 <= rate < 1 is needed.")
        if not 0.0 <= self.loss_weight < float("inf"):
            raise ValueError(f"loss_weight={self.loss_weight!r}; a number >= 0 is needed.")
        for field in ("hidden_size", "vocab_size", "max_length"):
            value = getattr(self, field)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{field}={value!r}; an integer >= 1 or None is needed.")
        for field in ("use_crf", "tie_word_embeddings", "tree", "unanswerable"):
            if getattr(self, field) not in (True, False, None):
                raise ValueError(f"{field}={getattr(self, field)!r}; True or False is needed.")

    def _check_choices(self, head: type) -> None:
        choices = {"pooling": POOLINGS, "similarity": SIMILARITIES, "encoding": ENCODINGS}
        for field, valid in {**choices, "problem_type": head.problem_types}.items():
            value = getattr(self, field)
            if value is not None and value not in valid:
                raise ValueError(f"{field}={value!r} is unknown to {self.task_type}; choose one of {list(valid)}.")
        if self.problem_type == "regression" and self.label_smoothing:
            raise ValueError(f"label_smoothing={self.label_smoothing} has no meaning for regression; leave it out.")

    def _check_classes(self, optional: bool) -> None:
        if self.num_classes is None and self.problem_type == "regression":
            self._set("num_classes", 1)
        if self.num_classes is None and optional:
            return
        low = 2 if self.problem_type == "single_label" and not optional else 1
        if isinstance(self.num_classes, bool) or not isinstance(self.num_classes, int) or self.num_classes < low:
            raise ValueError(f"num_classes={self.num_classes!r}; an integer >= {low} is needed, or label_names.")
        if self.label_names is not None and len(set(self.label_names)) != self.num_classes:
            raise ValueError(f"label_names={self.label_names!r}; {self.num_classes} different names are needed.")


NLPTaskConfig.num_labels = property(lambda self: self.num_classes, doc="Another name of `num_classes`.")


def _known(task_type: Any) -> NLPTaskType | str:
    if task_type in set(NLPTaskType):
        return NLPTaskType(task_type)
    registry.find(task_type)
    return task_type
