"""Beam search: the most probable continuation among `width` that are followed at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.generation.samplers import Carry, Sampler, penalized, record

NEVER = -1e30


@dataclass(frozen=True, kw_only=True)
class Beam(Sampler):
    """Follows the `width` most probable beginnings of each row and returns the best one. A width of 1 is greedy.

    A beam that has met the end of text keeps its probability and its place. Of the beams left at the end, the one with
    the largest log-probability / length ** length_penalty wins, the length being that of its new tokens. Temperature
    and filters of `Sampler` do not apply, `repetition_penalty` does.

    Args:
        width: beams a row, >= 1.
        length_penalty: 0 compares sums of log-probabilities, 1 their means (Wu et al., "Google's Neural Machine
            Translation System", 2016, section 7, without the constant).
        repetition_penalty: see `Sampler`.

    Raises:
        ValueError: the width is below 1.

    Example:

    >>> from dl_mamba.generation import Beam
    >>> Beam(width=4).width
    4
    """

    width: int = 4
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"width={self.width!r}; an integer >= 1 is needed.")

    @property
    def rows(self) -> int:
        return self.width

    @property
    def key(self) -> tuple:
        return *super().key, self.width

    def start(self, rows: int) -> Carry:
        """All beams of a row are the same at first: only the first one counts."""
        scores = np.full((rows // self.width, self.width), NEVER, "float32")
        scores[:, 0] = 0.0
        return {"score": ops.convert_to_tensor(scores.reshape(-1)), "length": ops.zeros((rows,), dtype="float32")}

    def choose(self, logits: Any, carry: Carry, numbers: Carry, draw: Any) -> tuple[Carry, Carry]:
        rows, size = logits.shape
        if "repetition_penalty" in numbers:
            logits = penalized(logits, carry["seen"], numbers["repetition_penalty"])
        log_p = logits - ops.logsumexp(logits, axis=-1, keepdims=True)
        ended = ops.where(ops.equal(ops.arange(size, dtype="int32"), 0), 0.0, NEVER)  # one way to go on, at no cost
        log_p = ops.where(carry["done"][:, None], ended, log_p)
        scores = ops.reshape(carry["score"][:, None] + log_p, (rows // self.width, self.width * size))
        scores, best = ops.top_k(scores, self.width)
        best = ops.cast(best, "int32")
        first = ops.arange(rows // self.width, dtype="int32")[:, None] * self.width
        parent = ops.reshape(first + best // size, (rows,))
        carry = keras.tree.map_structure(lambda x: ops.take(x, parent, axis=0), carry)
        carry = record(carry, ops.reshape(best % size, (rows,)), numbers)
        carry["score"] = ops.reshape(scores, (rows,))
        carry["length"] = carry["length"] + ops.cast(carry["real"], "float32")
        return carry, {"token": carry["token"], "parent": parent}

    def best(self, tokens: np.ndarray, parents: np.ndarray, carry: Carry) -> tuple[np.ndarray, np.ndarray]:
        """The winner of each row, followed back from its last token.

        Args:
            tokens, parents: (steps, rows) int, as `choose` wrote them down.
            carry: after the last step.

        Returns:
            Tokens (rows / width, steps), and the winners' rows.
        """
        score, length = (ops.convert_to_numpy(carry[name]) for name in ("score", "length"))
        score = score / np.maximum(length, 1.0) ** self.length_penalty
        winners = np.argmax(score.reshape(-1, self.width), axis=1)
        winners = row = winners + self.width * np.arange(len(winners))
        found = []
        for step_tokens, step_parents in zip(tokens[::-1], parents[::-1], strict=True):
            found.append(step_tokens[row])
            row = step_parents[row]
        return np.stack(found[::-1], axis=1), winners
