"""Text in and out: prompts through a tokenizer, and the new text of rows as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

UNFINISHED = "\ufffd"  # what a cut character decodes to


class Texts:
    """The new text of rows.

    Args:
        tokenizer: has `decode`.
        prompts: the ids of each row's prompt; a token's text may depend on them.
        end: ids that end a row and are no text.
    """

    def __init__(self, tokenizer: Any, prompts: Sequence[np.ndarray], end: Sequence[int]) -> None:
        self._decode = lambda ids: tokenizer.decode([ids])[0]
        self._prompts, self._end = [list(map(int, row)) for row in prompts], set(end)
        self._before = [len(self._decode(row)) for row in self._prompts]
        self._shown = [0] * len(self._prompts)

    def of(self, row: int, tokens: Sequence[int]) -> str:
        """The text of a row's new tokens, up to the end of text."""
        kept = []
        for token in map(int, tokens):
            if token in self._end:
                break
            kept.append(token)
        return self._decode(self._prompts[row] + kept)[self._before[row] :]

    def fresh(self, row: int, text: str, held: Sequence[str] = (), last: bool = False) -> str:
        """What of a row's text was not shown yet.

        Args:
            row: number of the row.
            text: all of its new text.
            held: stop strings; a beginning of one at the end of the text waits for its next letter.
            last: no more text comes, so nothing waits.
        """
        ready = len(text)
        if not last:
            ready = len(text.rstrip(UNFINISHED))
            ready -= max([_overlap(text[:ready], stop) for stop in held], default=0)
        start, self._shown[row] = self._shown[row], max(ready, self._shown[row])
        return text[start:ready]


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string in it, and whether there is one."""
    places = [place for place in (text.find(s) for s in stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _overlap(text: str, stop: str) -> int:
    """Letters at the end of the text with which the stop string begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
