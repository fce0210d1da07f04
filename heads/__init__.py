"""Task heads: Keras layers on `{"last_hidden_state", "attention_mask"}`."""

if __name__ != "dl_mamba.heads":
    raise ImportError("this folder is the package dl_mamba.heads; import it under that name")

from dl_mamba.heads.arc import ArcHead
from dl_mamba.heads.base import TaskHead
from dl_mamba.heads.bidirectional import BidirectionalEncoder
from dl_mamba.heads.choice import MultipleChoiceHead
from dl_mamba.heads.factory import create_mamba2_with_head, create_mamba_with_head
from dl_mamba.heads.labels import check_labels
from dl_mamba.heads.language import CausalLMHead, MaskedLMHead, to_causal_lm
from dl_mamba.heads.multi_task import MultiTaskHead, compile_options, create_multi_task_nlp_head, create_nlp_head
from dl_mamba.heads.pair import PairHead
from dl_mamba.heads.pooling import MaskedPooling
from dl_mamba.heads.registry import register_head
from dl_mamba.heads.sequence import SequenceClassificationHead
from dl_mamba.heads.sequence_classifier import SequenceClassifier, SequenceNormalization, create_sequence_classifier
from dl_mamba.heads.span import SpanHead
from dl_mamba.heads.table import TASKS
from dl_mamba.heads.task_model import TaskModel
from dl_mamba.heads.tasks import NLPTaskConfig, NLPTaskType
from dl_mamba.heads.text_classifier import TextClassifier
from dl_mamba.heads.tokens import TokenClassificationHead

__all__ = [
    "TASKS",
    "ArcHead",
    "BidirectionalEncoder",
    "CausalLMHead",
    "MaskedLMHead",
    "MaskedPooling",
    "MultiTaskHead",
    "MultipleChoiceHead",
    "NLPTaskConfig",
    "NLPTaskType",
    "PairHead",
    "SequenceClassificationHead",
    "SequenceClassifier",
    "SequenceNormalization",
    "SpanHead",
    "TaskHead",
    "TaskModel",
    "TextClassifier",
    "TokenClassificationHead",
    "check_labels",
    "compile_options",
    "create_mamba2_with_head",
    "create_mamba_with_head",
    "create_multi_task_nlp_head",
    "create_nlp_head",
    "create_sequence_classifier",
    "register_head",
    "to_causal_lm",
]
