"""Text into ids and back. Bytes need no vocabulary file: any text of any language has ids below 256."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

SIDES = ("left", "right")


@keras.saving.register_keras_serializable(package="dl_mamba")
class ByteTokenizer:
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

    def __init__(self, max_length: int | None = None, truncation: str = "right", padding: str = "right") -> None:
        if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
            raise ValueError(f"max_length={max_length!r}; an integer >= 1 is needed, or None for no limit.")
        for name, side in (("truncation", truncation), ("padding", padding)):
            if side not in SIDES:
                raise ValueError(f"{name}={side!r} is unknown; choose 'left' or 'right'.")
        self.max_length = max_length
        self.truncation = truncation
        self.padding = padding

    def rows(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The ids of each text, cut to `max_length` and not padded.

        Args:
            texts: strings; a lone string is refused, since it would be read as one text a letter.

        Returns:
            One (bytes,) int32 array a text.

        Raises:
            TypeError: `texts` is one string, or holds something else than strings.

        Example:

        >>> from dl_mamba.tokenizers import ByteTokenizer
        >>> [row.tolist() for row in ByteTokenizer(max_length=2, truncation="left").rows(["abc", ""])]
        [[98, 99], []]
        """
        if isinstance(texts, str):
            raise TypeError(f"texts={texts!r} is one string; a list of strings is needed, e.g. [{texts!r}].")
        return [self._ids(text, place) for place, text in enumerate(texts)]

    def encode(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Ids and mask of a batch of texts, padded to the longest of them (at least one column).

        Args:
            texts: strings.

        Returns:
            `"input_ids"` and `"attention_mask"`, both (batch, length) int32; the mask is 1 at real bytes.

        Raises:
            TypeError: `texts` is one string, or holds something else than strings.

        Example:

        >>> from dl_mamba.tokenizers import ByteTokenizer
        >>> ByteTokenizer(padding="left").encode(["a", "bc"])["attention_mask"].tolist()
        [[0, 1], [1, 1]]
        """
        rows = self.rows(texts)
        length = max([1, *map(len, rows)])
        ids, mask = np.zeros((2, len(rows), length), "int32")
        for place, row in enumerate(rows):
            real = slice(0, len(row)) if self.padding == "right" else slice(length - len(row), length)
            ids[place, real], mask[place, real] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    def decode(self, input_ids: Any, attention_mask: Any = None) -> list[str]:
        """The texts of a batch of ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            input_ids: (batch, length) int, each from 0 to 255.
            attention_mask: (batch, length), true at real bytes; None takes all of them.

        Returns:
            One string a row.

        Raises:
            ValueError: an id lies outside 0 to 255.

        Example:

        >>> from dl_mamba.tokenizers import ByteTokenizer
        >>> ByteTokenizer().decode([[72, 105, 255]])
        ['Hi\ufffd']
        """
        ids = np.asarray(input_ids)
        mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"input_ids go from {ids.min()} to {ids.max()}; bytes go from 0 to {self.vocab_size - 1}.")
        rows = (row[real] for row, real in zip(ids, mask, strict=True))
        return [bytes(row.tolist()).decode("utf-8", errors="replace") for row in rows]

    def get_config(self) -> dict[str, Any]:
        return {"max_length": self.max_length, "truncation": self.truncation, "padding": self.padding}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ByteTokenizer:
        return cls(**config)

    def _ids(self, text: str, place: int) -> np.ndarray:
        if not isinstance(text, str):
            raise TypeError(f"text {place} is {text!r} of type {type(text).__name__}; a string is needed.")
        ids = np.frombuffer(text.encode("utf-8", errors="replace"), "uint8").astype("int32")
        if self.max_length is None or len(ids) <= self.max_length:
            return ids
        return ids[: self.max_length] if self.truncation == "right" else ids[-self.max_length :]
