"""Text into ids and back, inside the model file: bytes, or byte pairs learned from the training text."""

from dl_mamba.tokenizers.byte import ByteTokenizer
from dl_mamba.tokenizers.byte_pair import BytePairTokenizer

__all__ = ["BytePairTokenizer", "ByteTokenizer"]
