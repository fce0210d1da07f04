"""Task heads: Keras layers on `{"last_hidden_state", "attention_mask"}`."""

if __name__ != "dl_mamba.heads":
    raise ImportError("this folder is the package dl_mamba.heads; import it under that name")

from dl_mamba.heads.factory import create_mamba2_with_head, create_mamba_with_head, create_nlp_head
from dl_mamba.heads.pooling import MaskedPooling
from dl_mamba.heads.sequence import SequenceClassificationHead
from dl_mamba.heads.tasks import NLPTaskConfig, NLPTaskType

__all__ = [
    "MaskedPooling",
    "NLPTaskConfig",
    "NLPTaskType",
    "SequenceClassificationHead",
    "create_mamba2_with_head",
    "create_mamba_with_head",
    "create_nlp_head",
]
