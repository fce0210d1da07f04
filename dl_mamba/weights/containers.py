"""Files of tensors, each kind through its own library: safetensors, and torch for the pickles of `torch.save`.

A library is imported when a file of its kind is first read or written.
"""

from __future__ import annotations

import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes  # also teaches numpy the name bfloat16, which safetensors asks it for
import numpy as np

from dl_mamba.weights.errors import CheckpointError

DTYPES = {
    "float64": np.dtype("float64"),
    "float32": np.dtype("float32"),
    "float16": np.dtype("float16"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


class Spec(NamedTuple):
    """Dtype (a name of `DTYPES`, or what the file calls another) and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class TensorFile(ABC):
    """An open file of tensors: dtype and shape of each by name, and one tensor at a time.

    Args:
        path: the file.

    Raises:
        CheckpointError: the library is missing, the file is damaged, or holds anything but tensors.
    """

    path: Path
    specs: Mapping[str, Spec]

    @staticmethod
    @abstractmethod
    def library() -> ModuleType:
        """The library of this kind of file.

        Raises:
            CheckpointError: it is not installed; says what to install.
        """

    @staticmethod
    @abstractmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write contiguous arrays by name."""

    def read(self, name: str) -> np.ndarray:
        """The tensor of that name.

        Raises:
            CheckpointError: it has no floating-point dtype, or cannot be read.
        """
        if self.specs[name].dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {name} has dtype {self.specs[name].dtype}; one of {list(DTYPES)} is needed."
            )
        try:
            return self._read(name)
        except Exception as error:  # noqa: BLE001 - errors belong to the libraries
            raise CheckpointError(f"{self.path}: {name} cannot be read: {error}") from error

    @abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """The tensor of that name, whose dtype is known; may be a view of the mapped file."""

    def shares(self, first: str, second: str) -> bool:
        """Whether the file stores two names as one tensor."""
        return False


class SafetensorsFile(TensorFile):
    """A `.safetensors` file."""

    _names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

    def __init__(self, path: Path):
        self.path = path
        library = self.library()
        try:  # a mapped file, the other backend, would stay in memory
            self._file = library.safe_open(path, framework="np", backend="pread")
        except (library.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged, or is no safetensors file: {error}") from error
        parts = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - no mapping
        self.specs = {name: self._spec(part.get_dtype(), part.get_shape()) for name, part in parts.items()}

    @staticmethod
    def library() -> ModuleType:
        return _imported("safetensors", ".safetensors files", 'pip install "dl-mamba[hf]"')

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        from safetensors.numpy import save_file

        path.touch()
        mode = path.stat().st_mode
        save_file(dict(arrays), path, metadata={"format": "pt"})  # transformers reads no file without this word
        path.chmod(mode)  # the library leaves a file that its owner alone can read

    def _spec(self, dtype: str, shape: list[int]) -> Spec:
        return Spec(self._names.get(dtype, dtype), tuple(shape))

    def _read(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)


class TorchFile(TensorFile):
    """A `.bin` file: the pickle of a state dict as torch has written it since version 1.6.

    torch unpickles tensors and plain values only, so no code of the file runs.
    """

    def __init__(self, path: Path):
        self.path = path
        torch = self.library()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # noqa: BLE001 - a damaged pickle may raise anything
            raise CheckpointError(
                f"{path} is cut short, older than torch 1.6, or no plain file of tensors: {_reason(error)}"
            ) from error
        if not isinstance(state, dict):
            raise CheckpointError(f"{path} holds a {type(state).__name__}; a dict of tensors by name is needed.")
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                raise CheckpointError(
                    f"{path} holds {name!r}, a {type(tensor).__name__}; only tensors by name are read."
                )
        self._tensors = {name: tensor.detach() for name, tensor in state.items()}
        self.specs = {name: Spec(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in state.items()}

    @staticmethod
    def library() -> ModuleType:
        advice = 'pip install "dl-mamba[torch]", or convert the file to safetensors (dl-mamba convert) where torch is'
        return _imported("torch", ".bin files", advice)

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        torch = TorchFile.library()
        tensors = {id(array): _as_tensor(array, torch) for array in arrays.values()}  # of two names: stored once
        torch.save({name: tensors[id(array)] for name, array in arrays.items()}, path)

    def _read(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        if self.specs[name].dtype == "bfloat16":  # of which torch makes no array
            return tensor.view(self.library().int16).numpy().view(DTYPES["bfloat16"])
        return tensor.numpy()

    def shares(self, first: str, second: str) -> bool:
        return self._tensors[first].is_set_to(self._tensors[second])


def _imported(name: str, files: str, advice: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{files} need the library {name}: {advice}.") from error


def _reason(error: Exception) -> str:
    """What torch says, in short and without its advice to load the file unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        return f"it names {found[1]}, which is no tensor." if found else "its pickle is damaged."
    return str(error).partition(". ")[0]


def _as_tensor(array: np.ndarray, torch: ModuleType) -> Any:
    array = np.require(array, requirements="W")  # torch warns of an array that it may not write
    if array.dtype == DTYPES["bfloat16"]:
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)
