"""The container safetensors: the length of a JSON header, the header, the bytes of the tensors without gaps.

Read and written here one tensor at a time; the library of that name maps the whole file to read, and wants every
tensor at once to write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dl_mamba.weights.errors import CheckpointError
from dl_mamba.weights.stored import DTYPES, Spec, TensorFile, raw_bytes

NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
LONGEST_HEADER = 100_000_000  # bytes; the limit of the format
ALIGNMENT = 8


class SafetensorsFile(TensorFile):
    """A `.safetensors` file, whose header is checked against its size when it is opened.

    Args:
        path: the file.

    Raises:
        CheckpointError: the header is damaged, or the file is longer or shorter than it says.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size - 8
            if not 2 <= length <= min(size, LONGEST_HEADER):
                raise CheckpointError(f"{path} is cut short, or is no safetensors file: its header is incomplete.")
            header = self._parsed(file.read(length))
        self._start = 8 + length
        header.pop("__metadata__", None)
        try:
            found = {name: self._entry(entry) for name, entry in header.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} has a damaged header: {error!r}.") from error
        self.specs = {name: spec for name, (spec, _) in found.items()}
        self._places = {name: place for name, (_, place) in found.items()}
        self._check_places(size - length)

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            header = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{self.path} has a damaged header: it is not JSON ({error}).") from error
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path} has a damaged header: a {type(header).__name__} instead of an object.")
        return header

    @staticmethod
    def _entry(entry: dict[str, Any]) -> tuple[Spec, tuple[int, int]]:
        names = {theirs: ours for ours, theirs in NAMES.items()}
        spec = Spec(names.get(entry["dtype"], entry["dtype"]), tuple(int(size) for size in entry["shape"]))
        start, end = (int(offset) for offset in entry["data_offsets"])
        if min((start, end - start, *spec.shape)) < 0 or (spec.dtype in DTYPES and spec.nbytes != end - start):
            raise ValueError(f"{spec} does not take bytes {start} to {end}")
        return spec, (start, end)

    def _check_places(self, size: int) -> None:
        position = 0
        for start, end in sorted(self._places.values()):
            if start != position:
                raise CheckpointError(f"{self.path} has a damaged header: tensors overlap or leave gaps.")
            position = end
        if position != size:
            raise CheckpointError(
                f"{self.path} is damaged: its header describes {position:,} bytes of tensors, {size:,} are there. "
                "Fetch it again."
            )

    def _read(self, name: str) -> np.ndarray:
        dtype, shape = self.specs[name]
        return np.fromfile(
            self.path, DTYPES[dtype], math.prod(shape), offset=self._start + self._places[name][0]
        ).reshape(shape)


def write(path: Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray]) -> None:
    """Write a file of tensors, asking for one at a time.

    Args:
        path: the file.
        specs: dtype and shape of each tensor by name.
        read: gives the tensor of a name.
    """
    header, position = {"__metadata__": {"format": "pt"}}, 0  # transformers reads no file without this word
    for name, spec in specs.items():
        places = [position, position + spec.nbytes]
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": places}
        position = places[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, spec in specs.items():
            file.writelines(raw_bytes(read(name), spec.dtype))
