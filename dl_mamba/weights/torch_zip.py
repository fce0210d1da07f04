"""The container of `torch.save`: a zip of a pickle, which names the tensors, and one record of bytes for each storage.

It is read and written without torch. Unpickling builds nothing but descriptions of tensors: any other global that the
pickle names is an error, so no code of the file ever runs.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dl_mamba.weights.errors import CheckpointError
from dl_mamba.weights.stored import DTYPES, Spec, TensorFile, raw_bytes

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
}
ALIGNMENT = 64  # bytes; torch can then map the file


class _Storage(NamedTuple):
    dtype: str
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows the globals of a state dict, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, tuple(shape), tuple(strides))
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        dtypes = {theirs: ours for ours, theirs in STORAGES.items()}
        _, kind, key, *_ = pid
        return _Storage(dtypes.get(kind, str(kind)), str(key))


class TorchFile(TensorFile):
    """A `.bin` or `.pt` file of a state dict, as torch has written it since version 1.6.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file is damaged, or holds anything but tensors.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._records = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
                if "byteorder" in self._records and archive.read(self._records["byteorder"]) != b"little":
                    raise CheckpointError(f"{path} has its bytes in big-endian order; save it again.")
                with archive.open(self._records["data.pkl"]) as file:
                    state = _Unpickler(file).load()
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"{path} is cut short, or is no file of torch.save since version 1.6 ({error})."
            ) from error
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - a damaged pickle may raise anything
            raise CheckpointError(f"{path} is no plain file of tensors: {error}.") from error
        self._tensors = self._checked(state)
        self.specs = {name: Spec(tensor.storage.dtype, tensor.shape) for name, tensor in self._tensors.items()}

    def _checked(self, state: Any) -> dict[str, _Tensor]:
        if not isinstance(state, dict):
            raise CheckpointError(f"{self.path} holds a {type(state).__name__}; a dict of tensors by name is needed.")
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, _Tensor):
                raise CheckpointError(
                    f"{self.path} holds {name!r}, a {type(tensor).__name__}; nothing but tensors by name is read."
                )
            record = self._records.get(f"data/{tensor.storage.key}")
            if record is None or record.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{self.path} is damaged: the bytes of {name} are missing or compressed.")
        return dict(state)

    def _read(self, name: str) -> np.ndarray:
        storage, offset, shape, strides = self._tensors[name]
        dtype = DTYPES[storage.dtype]
        try:
            with zipfile.ZipFile(self.path) as archive:
                data = archive.read(self._records[f"data/{storage.key}"])
            return np.ndarray(shape, dtype, data, offset * dtype.itemsize, [s * dtype.itemsize for s in strides])
        except (zipfile.BadZipFile, EOFError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path} is damaged at {name}: {error}.") from error

    def shares(self, first: str, second: str) -> bool:
        return self._tensors[first] == self._tensors[second]


def write(
    path: Path, specs: Mapping[str, Spec], read: Callable[[str], np.ndarray], aliases: Mapping[str, str] | None = None
) -> None:
    """Write a state dict that `torch.load` reads, asking for one tensor at a time.

    Args:
        path: the file.
        specs: dtype and shape of each tensor by name.
        read: gives the tensor of a name.
        aliases: further names, each for the tensor of a name in `specs`, stored once.
    """
    keys = {name: str(i) for i, name in enumerate(specs)}
    names = {**dict(zip(specs, specs, strict=True)), **(aliases or {})}
    entries = [(name, keys[source], specs[source]) for name, source in names.items()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", _pickled(entries)), ("byteorder", b"little"), ("version", b"3\n")):
            _add(archive, name, len(data), [data])
        for name, spec in specs.items():
            _add(archive, f"data/{keys[name]}", spec.nbytes, raw_bytes(read(name), spec.dtype))


def _add(archive: zipfile.ZipFile, name: str, size: int, data: Iterable[bytes | memoryview]) -> None:
    record = zipfile.ZipInfo(f"archive/{name}")
    record.file_size = size
    before = archive.fp.tell() + 30 + len(record.filename) + 4  # the local header, its name, the padding's own header
    record.extra = struct.pack("<HH", 0x4246, -before % ALIGNMENT) + b"Z" * (-before % ALIGNMENT)
    with archive.open(record, "w") as file:
        file.writelines(data)


def _pickled(entries: list[tuple[str, str, Spec]]) -> bytes:
    """The pickle of {name: tensor}, as torch writes it; its objects need torch, so its opcodes are written here."""
    out = [pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK]
    for name, key, (dtype, shape) in entries:
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        storage = _global("torch", STORAGES[dtype]) + _plain(key) + _plain("cpu") + _plain(math.prod(shape))
        out += [
            _plain(name) + _global("torch._utils", "_rebuild_tensor_v2") + pickle.MARK,
            pickle.MARK + _plain("storage") + storage + pickle.TUPLE + pickle.BINPERSID,
            _plain(0) + _plain(shape) + _plain(strides) + _plain(False),
            _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
            pickle.TUPLE + pickle.REDUCE,
        ]
    return b"".join([*out, pickle.SETITEMS, pickle.STOP])


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _plain(value: Any) -> bytes:
    """Opcodes of a string, number or tuple: its pickle without the first two bytes (protocol) and the last (stop)."""
    return pickle.dumps(value, protocol=2)[2:-1]
