"""Text into ids and back, inside the model file: bytes, learned byte pairs, or the vocabulary of a checkpoint."""

from dl_mamba.tokenizers.byte import ByteTokenizer
from dl_mamba.tokenizers.byte_pair import BytePairTokenizer
from dl_mamba.tokenizers.hugging_face import HuggingFaceTokenizer

__all__ = ["BytePairTokenizer", "ByteTokenizer", "HuggingFaceTokenizer"]
