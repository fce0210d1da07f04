"""What every tokenizer shares: rows of ids cut to a length, padded batches with their mask, and the way back."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Self

import numpy as np

SIDES = ("left", "right")


class Tokenizer:
    """Base of the tokenizers: text into ids and back. A subclass says what the ids of one text are, and their bytes.

    Args:
        max_length: longest row in tokens, or None for no limit.
        truncation: the side on which a longer text is cut: `"right"` keeps its beginning, `"left"` its end.
        padding: the side that is filled up.

    Raises:
        ValueError: a length below 1, or a side that is not `"left"` or `"right"`.
    """

    vocab_size: int

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
            One (tokens,) int32 array a text.

        Raises:
            TypeError: `texts` is one string, or holds something else than strings.

        Example:

        >>> from dl_mamba.tokenizers import ByteTokenizer
        >>> [row.tolist() for row in ByteTokenizer(max_length=2, truncation="left").rows(["abc", ""])]
        [[98, 99], []]
        """
        return [self.cut(self.ids(text)) for text in checked_texts(texts)]

    def ids(self, text: str) -> list[int]:
        """The ids of one text, whatever its length."""
        raise NotImplementedError

    def ids_of_words(self, words: Iterable[str]) -> list[list[int]]:
        """The ids of each word of a text whose words are known, as they stand there: behind a space.

        Example:

        >>> from dl_mamba.tokenizers import ByteTokenizer
        >>> ByteTokenizer().ids_of_words(["so", "a"])
        [[115, 111], [32, 97]]
        """
        return [self.ids(f" {word}" if place else word) for place, word in enumerate(words)]

    def ids_and_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        """The ids of a text, and where each stands in it: (tokens, 2), its first letter and the one behind its last.

        Example:

        >>> from dl_mamba.tokenizers import BytePairTokenizer
        >>> ids, offsets = BytePairTokenizer([(32, 110)]).ids_and_offsets("no é")
        >>> offsets.tolist()
        [[0, 1], [1, 2], [2, 3], [3, 4], [3, 4]]
        """
        ids = self.ids(text)
        letters = [len(letter.encode("utf-8", errors="replace")) for letter in text]
        letter_of_byte = np.repeat(np.arange(len(text)), letters)
        ends = np.cumsum([0] + [len(self.token_bytes(token)) for token in ids])
        ends = np.clip(
            ends - (ends[-1] - len(letter_of_byte)), 0, None
        )  # a tokenizer's own space in front is no letter
        of = lambda byte: int(letter_of_byte[byte]) if byte < len(letter_of_byte) else len(text)  # noqa: E731
        starts = [[of(start), of(end - 1) + 1 if end > start else of(start)] for start, end in pairwise(ends)]
        return ids, np.array(starts, int).reshape(-1, 2)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that an id stands for."""
        raise NotImplementedError

    def text_of(self, joined: bytes) -> str:
        """The text of the bytes of a row."""
        return joined.decode("utf-8", errors="replace")

    def cut(self, ids: list[int]) -> np.ndarray:
        """The ids as an int32 array, no longer than `max_length`."""
        row = np.array(ids, "int32")
        if self.max_length is None or len(row) <= self.max_length:
            return row
        return row[: self.max_length] if self.truncation == "right" else row[-self.max_length :]

    def encode(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        """Ids and mask of a batch of texts, padded to the longest of them (at least one column).

        Args:
            texts: strings.

        Returns:
            `"input_ids"` and `"attention_mask"`, both (batch, length) int32; the mask is 1 at real tokens.

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
            input_ids: (batch, length) int, each from 0 to vocab_size - 1.
            attention_mask: (batch, length), true at real tokens; None takes all of them.

        Returns:
            One string a row.

        Raises:
            ValueError: an id lies outside the vocabulary.

        Example:

        >>> from dl_mamba.tokenizers import ByteTokenizer
        >>> ByteTokenizer().decode([[72, 105, 255]])
        ['Hi\ufffd']
        """
        ids = np.asarray(input_ids)
        mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"input_ids go from {ids.min()} to {ids.max()}; tokens go from 0 to {self.vocab_size - 1}."
            )
        rows = (row[real] for row, real in zip(ids, mask, strict=True))
        return [self.text_of(b"".join(map(self.token_bytes, row.tolist()))) for row in rows]

    def get_config(self) -> dict[str, Any]:
        return {"max_length": self.max_length, "truncation": self.truncation, "padding": self.padding}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list, or an error that names the one that is no string."""
    if isinstance(texts, str):
        raise TypeError(f"texts={texts!r} is one string; a list of strings is needed, e.g. [{texts!r}].")
    texts = list(texts)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {place} is {text!r} of type {type(text).__name__}; a string is needed.")
    return texts
