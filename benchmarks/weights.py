"""The same weights for every contender, by the name that the weight has in this library."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np


def _log_of_counts(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    counts = np.arange(1, shape[-1] + 1) if len(shape) == 2 else rng.uniform(1.0, 16.0, shape)
    return np.log(np.broadcast_to(counts, shape))


def _step_bias(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    dt = np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), shape))
    return dt + np.log(-np.expm1(-dt))


def _near_one(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 1.0 + 0.1 * rng.normal(size=shape)


def _projection(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape) * shape[0] ** -0.5


_RULES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "A_log": _log_of_counts,
    "dt_bias": _step_bias,
    "D": _near_one,
    "scale": _near_one,
    "kernel": _projection,
    "bias": lambda rng, shape: 0.1 * rng.normal(size=shape),
    "embeddings": lambda rng, shape: rng.normal(size=shape),
}


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value of one weight, e.g. `"layers/0/mixer/in_proj/kernel"`."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return _RULES[name.rpartition("/")[2]](rng, shape).astype("float32")


def token_ids(batch: int, length: int, vocab_size: int) -> np.ndarray:
    """The same (batch, length) int32 input for every contender."""
    return np.random.default_rng(0).integers(0, vocab_size, (batch, length)).astype("int32")


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """What the output is multiplied with for a scalar loss."""
    return (np.random.default_rng(1).normal(size=shape) / np.prod(shape[:2])).astype("float32")
