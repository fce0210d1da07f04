"""A tokenizer.json of Hugging Face: the vocabulary of a published checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from dl_mamba.tokenizers.base import Tokenizer

FILE = "tokenizer.json"


@keras.saving.register_keras_serializable(package="dl_mamba")
class HuggingFaceTokenizer(Tokenizer):
    """What the `tokenizers` library makes of a tokenizer.json. Needs `pip install "dl-mamba[hf]"`.

    The file's text is a part of the config, so that a `.keras` file holds the whole tokenizer.

    Args:
        definition: the text of a tokenizer.json.
        **options: `max_length`, `truncation`, `padding`; see `ByteTokenizer`, counted in tokens.

    Raises:
        ModuleNotFoundError: `tokenizers` is not installed.
        ValueError: the definition is none.

    Example:

    >>> from dl_mamba.tokenizers import HuggingFaceTokenizer
    >>> tokenizer = HuggingFaceTokenizer.from_folder("checkpoint")  # doctest: +SKIP
    >>> model.tokenizer = tokenizer  # doctest: +SKIP
    """

    def __init__(self, definition: str, **options: Any) -> None:
        super().__init__(**options)
        self.definition = definition
        read = _library().Tokenizer.from_str
        try:
            self._tokenizer = read(definition)
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise ValueError(f"the definition of the tokenizer cannot be read: {error}") from error

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> Self:
        """The tokenizer of the tokenizer.json in a folder.

        Raises:
            FileNotFoundError: the folder has none.
        """
        return cls((Path(folder) / FILE).read_text(encoding="utf-8"), **options)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the file spells it, e.g. `"<|endoftext|>"`, or None."""
        return self._tokenizer.token_to_id(token)

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def ids_and_offsets(self, text: str) -> tuple[list[int], np.ndarray]:
        found = self._tokenizer.encode(text)
        return found.ids, np.array(found.offsets, int).reshape(-1, 2)

    def decode(self, input_ids: Iterable[Any], attention_mask: Any = None) -> list[str]:
        """The texts of a batch of ids, special tokens and ids beyond the vocabulary left out."""
        rows = [np.asarray(row) for row in input_ids]
        if attention_mask is not None:
            rows = [row[np.asarray(real).astype(bool)] for row, real in zip(rows, attention_mask, strict=True)]
        return [self._tokenizer.decode(row.astype(int).tolist()) for row in rows]

    def get_config(self) -> dict[str, Any]:
        return {"definition": self.definition, **super().get_config()}


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ModuleNotFoundError(
            'a tokenizer.json needs the library tokenizers: pip install "dl-mamba[hf]"'
        ) from error
    return tokenizers
