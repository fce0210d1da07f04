"""How the next token is chosen. Every filter keeps the tokens above a threshold; one uniform number draws among them.

The numbers are arguments of the compiled programs, so that another temperature compiles nothing. The uniform numbers
come from NumPy, so that a seed means the same on every backend, and whether tokens are taken one by one or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from keras import ops

from dl_mamba.ops import dispatch

Carry = dict[str, Any]
BISECTIONS = 32  # halves the range of the logits down to neighbouring float32 numbers
ALMOST_ONE = 1.0 - 1e-6


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws a token from the softmax of the logits, after any of these, in this order.

    Args:
        repetition_penalty: logits of tokens that stand in the row already, prompt included, are divided by this if
            positive and multiplied if negative (Keskar et al., "CTRL", 2019, section 4.1); > 0.
        temperature: logits are divided by this; > 0.
        top_k: keep the k most probable tokens (Fan et al., "Hierarchical Neural Story Generation", 2018); >= 1.
        top_p: keep the smallest set of most probable tokens whose probabilities sum to at least p, 0 < p <= 1
            (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
        min_p: keep tokens at least p times as probable as the most probable one, 0 < p <= 1 (Nguyen et al., "Turning
            Up the Heat", 2024).

    Tokens of equal logits are kept or dropped together.

    Raises:
        ValueError: a number lies outside its range.

    Example:

    >>> from dl_mamba.generation import Sampler
    >>> Sampler(temperature=0.7, top_k=50, repetition_penalty=1.2).top_k
    50
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, math.inf),
            ("repetition_penalty", 0.0, math.inf),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if value is not None and not (low < value <= high and value < math.inf):
                above = "" if high == math.inf else f" and <= {high:.0f}"
                raise ValueError(f"{name}={value!r}; a number > 0{above} is needed.")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k={self.top_k!r}; an integer >= 1 is needed.")

    rows = 1  # of the batch for each sequence that is returned

    @property
    def key(self) -> tuple:
        """What a compiled program depends on: which filters are on, not their numbers."""
        return type(self).__name__, *sorted(self.numbers())

    @property
    def needs_seen(self) -> bool:
        """Whether the tokens of the row so far must be known."""
        return self.repetition_penalty is not None

    def numbers(self) -> dict[str, float]:
        """The numbers of the filters that are on."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given["top_p"] = None if self.top_p == 1.0 else self.top_p
        return {name: float(value) for name, value in given.items() if value is not None}

    def start(self, rows: int) -> Carry:
        """What the choice remembers besides the state, for a batch."""
        return {}

    def choose(self, logits: Any, carry: Carry, numbers: Carry, draw: Any) -> tuple[Carry, Carry]:
        """The next token of each row.

        Args:
            logits: (rows, vocab_size) float32.
            carry: `"done"` (rows,) bool, `"seen"` (rows, vocab_size) bool if needed, and what else travels along.
            numbers: of the filters, and `"end"` (k,) int32, ids that end a row, and `"pad"`.
            draw: (rows, 2) float32, uniform in [0, 1).

        Returns:
            The carry with `"token"`, `"done"`, `"seen"` and `"real"` (whether the token is no padding) brought up to
            date, and what is written down: `"token"` (rows,) int32.
        """
        if "repetition_penalty" in numbers:
            logits = penalized(logits, carry["seen"], numbers["repetition_penalty"])
        carry = record(carry, self.pick(logits, numbers, draw), numbers)
        return carry, {"token": carry["token"]}

    def pick(self, logits: Any, numbers: Carry, draw: Any) -> Any:
        logits = logits / numbers["temperature"]
        return sampled(logits, threshold(logits, numbers), draw)


@dataclass(frozen=True, kw_only=True)
class Greedy(Sampler):
    """The most probable token, of equal ones the first; the arguments but `repetition_penalty` change nothing.

    Example:

    >>> from dl_mamba.generation import Greedy
    >>> Greedy(repetition_penalty=1.3).repetition_penalty
    1.3
    """

    def choose(self, logits: Any, carry: Carry, numbers: Carry, draw: Any) -> tuple[Carry, Carry]:
        if "seen" in carry or not dispatch.kernels_take(logits):
            return super().choose(logits, carry, numbers, draw)
        from dl_mamba.ops.kernels.greedy import greedy

        token, real, done = greedy(logits, carry["done"], numbers["end"], numbers["pad"])
        return {**carry, "token": token, "real": real, "done": done}, {"token": token}

    def pick(self, logits: Any, numbers: Carry, draw: Any) -> Any:
        return ops.cast(ops.argmax(logits, axis=-1), "int32")


def Random(temperature: float = 1.0, **others: Any) -> Sampler:  # noqa: N802 - stands beside the classes
    """A `Sampler` of the whole vocabulary.

    Example:

    >>> from dl_mamba.generation import Random
    >>> Random(temperature=0.8).temperature
    0.8
    """
    return Sampler(temperature=temperature, **others)


def TopK(k: int = 50, temperature: float = 1.0, **others: Any) -> Sampler:  # noqa: N802
    """A `Sampler` of the k most probable tokens.

    Example:

    >>> from dl_mamba.generation import TopK
    >>> TopK(k=5).top_k
    5
    """
    return Sampler(top_k=k, temperature=temperature, **others)


def TopP(p: float = 0.9, temperature: float = 1.0, **others: Any) -> Sampler:  # noqa: N802
    """A `Sampler` of the most probable tokens that make up the probability p.

    Example:

    >>> from dl_mamba.generation import TopP
    >>> TopP(p=0.9, temperature=0.7).top_p
    0.9
    """
    return Sampler(top_p=p, temperature=temperature, **others)


def MinP(p: float = 0.05, temperature: float = 1.0, **others: Any) -> Sampler:  # noqa: N802
    """A `Sampler` of the tokens at least p times as probable as the most probable one.

    Example:

    >>> from dl_mamba.generation import MinP
    >>> MinP(p=0.1).min_p
    0.1
    """
    return Sampler(min_p=p, temperature=temperature, **others)


def record(carry: Carry, token: Any, numbers: Carry) -> Carry:
    """The carry after a token was chosen: rows that had ended get padding instead."""
    done = carry["done"]
    token = ops.where(done, numbers["pad"], token)
    ended = ops.any(ops.equal(token[:, None], numbers["end"]), axis=-1)
    carry = {**carry, "token": token, "real": ops.logical_not(done), "done": ops.logical_or(done, ended)}
    if "seen" in carry:
        vocabulary = ops.arange(carry["seen"].shape[-1], dtype="int32")
        carry["seen"] = ops.logical_or(carry["seen"], ops.equal(token[:, None], vocabulary))
    return carry


def penalized(logits: Any, seen: Any, penalty: Any) -> Any:
    """Logits (rows, vocab_size), those of the tokens seen made smaller."""
    return ops.where(seen, ops.where(logits > 0, logits / penalty, logits * penalty), logits)


def threshold(logits: Any, numbers: Carry) -> Any:
    """(rows, 1): tokens whose logits are below are dropped by top_k, then top_p, then min_p."""
    top = ops.max(logits, axis=-1, keepdims=True)
    lowest = ops.min(logits, axis=-1, keepdims=True)
    kept = lowest
    if "top_k" in numbers:
        count = ops.minimum(numbers["top_k"], float(logits.shape[-1]))
        kept = _largest(logits, ops.ones_like(logits), count, lowest, top)
    if "top_p" in numbers:
        weights = ops.where(logits >= kept, ops.exp(logits - top), 0.0)
        wanted = numbers["top_p"] * ops.sum(weights, axis=-1, keepdims=True)
        kept = ops.maximum(kept, _largest(logits, weights, wanted, lowest, top))
    if "min_p" in numbers:
        kept = ops.maximum(kept, top + ops.log(numbers["min_p"]))
    return kept


def _largest(logits: Any, weights: Any, wanted: Any, low: Any, high: Any) -> Any:
    """The largest t for which the weights of logits >= t sum to what is wanted, by bisection."""
    enough_at = lambda t: ops.sum(ops.where(logits >= t, weights, 0.0), axis=-1, keepdims=True) >= wanted  # noqa: E731

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) * 0.5
        enough = enough_at(middle)
        return ops.where(enough, middle, low), ops.where(enough, high, middle)

    return ops.fori_loop(0, BISECTIONS, halve, (ops.where(enough_at(high), high, low), high))[0]


def sampled(logits: Any, kept: Any, draw: Any) -> Any:
    """Tokens drawn from the softmax of the logits that reach a threshold.

    The inverse of the distribution function, taken in two steps of about sqrt(vocab_size) sums each, so that no sum is
    long enough to lose small probabilities.
    """
    rows, size = logits.shape
    side = math.isqrt(size - 1) + 1
    weights = ops.where(logits >= kept, ops.exp(logits - ops.max(logits, axis=-1, keepdims=True)), 0.0)
    weights = ops.reshape(ops.pad(weights, [[0, 0], [0, side * side - size]]), (rows, side, side))
    place = _find(ops.sum(weights, axis=-1), draw[:, 0])
    line = ops.take_along_axis(weights, place[:, None, None], axis=1)[:, 0]
    return place * side + _find(line, draw[:, 1])


def _find(weights: Any, draw: Any) -> Any:
    """Which of the weights (rows, n) a number from [0, 1) falls into, if they are laid out one behind the other."""
    n = weights.shape[-1]
    not_after = ops.arange(n, dtype="int32")[:, None] >= ops.arange(n, dtype="int32")
    sums = ops.sum(ops.where(not_after, weights[:, None], 0.0), axis=-1)  # never decreasing, and equal at weight 0
    point = ops.minimum(draw, ALMOST_ONE)[:, None] * sums[:, -1:]
    return ops.cast(ops.sum(ops.cast(sums <= point, "int32"), axis=-1), "int32")
