"""Task heads: Keras layers on `{"last_hidden_state", "attention_mask"}`."""

if __name__ != "dl_mamba.heads":
    raise ImportError("this folder is the package dl_mamba.heads; import it under that name")

from dl_mamba.heads.factory import create_mamba2_with_head, create_mamba_with_head, create_nlp_head
from dl_mamba.heads.pooling import MaskedPooling
from dl_mamba.heads.sequence import SequenceClassificationHead
from dl_mamba.heads.sequence_classifier import SequenceClassifier, SequenceNormalization, create_sequence_classifier
from dl_mamba.heads.tasks import NLPTaskConfig, NLPTaskType
from dl_mamba.heads.text_classifier import TextClassifier

__all__ = [
    "MaskedPooling",
    "NLPTaskConfig",
    "NLPTaskType",
    "SequenceClassificationHead",
    "SequenceClassifier",
    "SequenceNormalization",
    "TextClassifier",
    "create_mamba2_with_head",
    "create_mamba_with_head",
    "create_nlp_head",
    "create_sequence_classifier",
]
