"""What a file of tensors offers: the dtype and shape of each by name, and one tensor at a time."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from dl_mamba.weights.errors import CheckpointError

DTYPES = {
    "float64": np.dtype("float64"),
    "float32": np.dtype("float32"),
    "float16": np.dtype("float16"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
BLOCK = 1 << 20  # numbers that are cast and written at once


class Spec(NamedTuple):
    """Dtype (a name of `DTYPES`, or what the file calls another) and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in a file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def raw_bytes(array: np.ndarray, dtype: str) -> Iterator[memoryview]:
    """The bytes of a tensor as a file holds it, a few rows at a time: a cast or transposed copy is never whole."""
    rows = max(1, len(array) * BLOCK // max(1, array.size))
    for start in range(0, len(array), rows):
        block = np.ascontiguousarray(array[start : start + rows], DTYPES[dtype])
        yield memoryview(block.view("uint8")).cast("B")


class TensorFile(ABC):
    """A file of tensors, read one by one: no more than one is ever in memory, and none is mapped."""

    path: Path
    specs: Mapping[str, Spec]

    def read(self, name: str) -> np.ndarray:
        """The tensor of that name.

        Raises:
            CheckpointError: it has no floating-point dtype, or the file is damaged.
        """
        if self.specs[name].dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {name} has dtype {self.specs[name].dtype}; one of {list(DTYPES)} is needed."
            )
        return self._read(name)

    @abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """The tensor of that name, whose dtype is known."""

    def shares(self, first: str, second: str) -> bool:
        """Whether the file stores two names as one tensor."""
        return False
