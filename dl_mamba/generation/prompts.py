"""Prompts as the loop wants them: checked, and packed so that every row ends in the last column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

SHORTEST = 16  # tokens of a compiled program that reads a prompt


class Prompts(NamedTuple):
    """Rows of ids.

    Attributes:
        given: (batch, length) int32, as they came.
        real: (batch, length) bool, true at their real tokens.
        ids: (batch, longest) int32, each row's real tokens at its right end.
        mask: (batch, longest) bool, true at real tokens.

    Example:

    >>> from dl_mamba.generation.prompts import read_prompts
    >>> read_prompts([[5, 6], [7]], None, vocab_size=9).mask.tolist()
    [[True, True], [False, True]]
    """

    given: np.ndarray
    real: np.ndarray
    ids: np.ndarray
    mask: np.ndarray


def read_prompts(input_ids: Any, attention_mask: Any, vocab_size: int) -> Prompts:
    """Check and pack prompts.

    Args:
        input_ids: (batch, length) int, or a list of rows of any lengths, which are padded on the left with 0.
        attention_mask: (batch, length), true at real tokens; None takes all of them.
        vocab_size: ids go from 0 to vocab_size - 1.

    Raises:
        ValueError: names what came and what is wanted.
    """
    given, real = _rectangle(input_ids, attention_mask)
    empty = np.flatnonzero(~real.any(axis=1))
    if not len(given) or len(empty):
        where = f"row {empty[0]} of input_ids" if len(empty) else "input_ids"
        raise ValueError(f"{where} holds no token; a prompt of at least one is needed, e.g. the end-of-text token.")
    low, high = given[real].min(), given[real].max()
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"input_ids holds {wrong}; ids from 0 to {vocab_size - 1} are needed. Tokenize with the vocabulary that "
            "the model was built for."
        )
    order = np.argsort(real, axis=1, kind="stable")[:, -int(real.sum(axis=1).max()) :]
    mask = np.take_along_axis(real, order, axis=1)
    return Prompts(given, real, np.where(mask, np.take_along_axis(given, order, axis=1), 0), mask)


def _rectangle(input_ids: Any, attention_mask: Any) -> tuple[np.ndarray, np.ndarray]:
    ragged = isinstance(input_ids, Sequence) and all(isinstance(row, Sequence | np.ndarray) for row in input_ids)
    if ragged and len({len(row) for row in input_ids}) > 1:
        if attention_mask is not None:
            raise ValueError("input_ids has rows of unlike lengths and an attention_mask; pad them, or leave it out.")
        longest = max(map(len, input_ids))
        mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in input_ids], bool)
        input_ids = [[0] * (longest - len(row)) + list(row) for row in input_ids]
    elif attention_mask is not None:
        mask = to_numpy(attention_mask).astype(bool)
    else:
        mask = None
    ids = to_numpy(input_ids)
    if ids.ndim != 2 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(
            f"input_ids has shape {ids.shape} and dtype {ids.dtype}; integers of shape (batch, length) are needed."
        )
    mask = np.ones(ids.shape, bool) if mask is None else mask
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {mask.shape}; that of input_ids, {ids.shape}, is needed.")
    return ids.astype("int32"), mask


def to_numpy(value: Any) -> np.ndarray:
    """An array of any backend, or nested lists, as NumPy."""
    return ops.convert_to_numpy(value) if ops.is_tensor(value) else np.asarray(value)


def chunks(ids: np.ndarray, mask: np.ndarray, size: int, compiled: bool) -> Iterator[tuple[np.ndarray, Any]]:
    """Pieces of packed rows in the order in which they are read: what is left over first, then `size` tokens each.

    Args:
        ids, mask: (batch, length), packed to the right.
        size: tokens of a piece.
        compiled: whether a new length costs a compilation. If so, the first piece gets padding up to a power of two,
            at least `SHORTEST`.

    Yields:
        Ids (batch, n) and their mask, None where all are real.
    """
    first = ids.shape[1] % size
    padding = min(size, max(SHORTEST, 1 << (first - 1).bit_length())) - first if compiled and first else 0
    ids, mask = (np.pad(part, [[0, 0], [padding, 0]]) for part in (ids, mask))
    first += padding
    for end in range(first or size, ids.shape[1] + 1, size):
        piece = slice(max(0, end - (first if end == first else size)), end)
        yield ids[:, piece], None if mask[:, piece].all() else mask[:, piece]
