"""The one table of tasks: which head each task gets, and what is set for it unless its config says otherwise."""

from __future__ import annotations

from types import MappingProxyType

from dl_mamba.heads import registry
from dl_mamba.heads.arc import ArcHead
from dl_mamba.heads.base import TaskHead
from dl_mamba.heads.choice import MultipleChoiceHead
from dl_mamba.heads.language import CausalLMHead, MaskedLMHead
from dl_mamba.heads.pair import PairHead
from dl_mamba.heads.registry import Task
from dl_mamba.heads.sequence import SequenceClassificationHead
from dl_mamba.heads.span import SpanHead
from dl_mamba.heads.tasks import NLPTaskType as T
from dl_mamba.heads.tokens import TokenClassificationHead


def _task(head: type[TaskHead], **defaults: str | bool) -> Task:
    return Task(head, MappingProxyType(defaults))


TASKS: dict[T, Task] = {
    T.TOKEN_CLASSIFICATION: _task(TokenClassificationHead),
    T.NAMED_ENTITY_RECOGNITION: _task(TokenClassificationHead),
    T.PART_OF_SPEECH_TAGGING: _task(TokenClassificationHead),
    T.DEPENDENCY_PARSING: _task(ArcHead, tree=True),
    T.SEMANTIC_ROLE_LABELING: _task(TokenClassificationHead),
    T.WORD_SENSE_DISAMBIGUATION: _task(TokenClassificationHead),
    T.SEQUENCE_CLASSIFICATION: _task(SequenceClassificationHead),
    T.SENTIMENT_ANALYSIS: _task(SequenceClassificationHead),
    T.EMOTION_DETECTION: _task(SequenceClassificationHead),
    T.INTENT_CLASSIFICATION: _task(SequenceClassificationHead),
    T.TOPIC_CLASSIFICATION: _task(SequenceClassificationHead),
    T.SPAM_DETECTION: _task(SequenceClassificationHead),
    T.QUESTION_ANSWERING: _task(SpanHead),
    T.SPAN_EXTRACTION: _task(SpanHead),
    T.COREFERENCE_RESOLUTION: _task(ArcHead),
    T.EVENT_EXTRACTION: _task(TokenClassificationHead),
    T.RELATION_EXTRACTION: _task(ArcHead, problem_type="multi_label"),
    T.TEXT_SIMILARITY: _task(PairHead, problem_type="regression", similarity="cosine"),
    T.NATURAL_LANGUAGE_INFERENCE: _task(PairHead),
    T.PARAPHRASE_DETECTION: _task(PairHead),
    T.DUPLICATE_DETECTION: _task(PairHead),
    T.TEXT_GENERATION: _task(CausalLMHead),
    T.MASKED_LANGUAGE_MODELING: _task(MaskedLMHead),
    T.TEXT_SUMMARIZATION: _task(CausalLMHead),
    T.MACHINE_TRANSLATION: _task(CausalLMHead),
    T.TEXT_COMPLETION: _task(CausalLMHead),
    T.DIALOGUE_GENERATION: _task(CausalLMHead),
    T.TEXT_REGRESSION: _task(SequenceClassificationHead, problem_type="regression"),
    T.READABILITY_SCORING: _task(SequenceClassificationHead, problem_type="regression"),
    T.QUALITY_SCORING: _task(SequenceClassificationHead, problem_type="regression"),
    T.MULTIPLE_CHOICE: _task(MultipleChoiceHead),
    T.RANKING: _task(MultipleChoiceHead, problem_type="regression"),
    T.SEQUENCE_LABELING: _task(TokenClassificationHead),
    T.TEXT_MATCHING: _task(PairHead, similarity="cosine"),
    T.KEY_PHRASE_EXTRACTION: _task(TokenClassificationHead),
    T.FACT_EXTRACTION: _task(TokenClassificationHead),
    T.OPINION_EXTRACTION: _task(TokenClassificationHead),
}

for _type, _entry in TASKS.items():
    registry.add(_type, _entry)
