"""Bytes as ids. They need no vocabulary file: any text of any language has ids below 256."""

from __future__ import annotations

import keras

from dl_mamba.tokenizers.base import Tokenizer


@keras.saving.register_keras_serializable(package="dl_mamba")
class ByteTokenizer(Tokenizer):
    """One id a byte of the UTF-8 text, `vocab_size` 256.

    No id is set aside for padding: `attention_mask` alone says which positions are real, so that every byte, 0
    included, is text.

    Args:
        max_length: longest row in bytes, or None for no limit.
        truncation: the side on which bytes are cut from a longer text. `"right"` keeps its beginning, `"left"` its end.
        padding: the side that is filled up.

    Raises:
        ValueError: a length below 1, or a side that is not `"left"` or `"right"`.

    Example:

    >>> from dl_mamba.tokenizers import ByteTokenizer
    >>> tokenizer = ByteTokenizer()
    >>> batch = tokenizer.encode(["ab", "é!c"])
    >>> batch["input_ids"].tolist()
    [[97, 98, 0, 0], [195, 169, 33, 99]]
    >>> batch["attention_mask"].tolist()
    [[1, 1, 0, 0], [1, 1, 1, 1]]
    >>> tokenizer.decode(**batch)
    ['ab', 'é!c']
    """

    vocab_size = 256

    def ids(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])
