"""A checkpoint in a folder: found, described and checked from its headers, then read tensor by tensor.

Nothing is read before every tensor of the files has met a weight of the config, in name and shape, exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dl_mamba.config import BackboneConfig
from dl_mamba.weights import huggingface, mamba_ssm
from dl_mamba.weights.containers import DTYPES, SafetensorsFile, Spec, TensorFile, TorchFile
from dl_mamba.weights.errors import CheckpointError
from dl_mamba.weights.header import Header, read_json
from dl_mamba.weights.tables import EMBEDDING, HEAD, MODEL, Weight, bare_names, weights_of

# The first that a folder holds is read. An index names the files that share the tensors.
CONTAINERS = {
    "model.safetensors": SafetensorsFile,
    "model.safetensors.index.json": SafetensorsFile,
    "consolidated.safetensors": SafetensorsFile,
    "pytorch_model.bin": TorchFile,
    "pytorch_model.bin.index.json": TorchFile,
}
CONFIGS = ("config.json", "params.json")
# Read by nothing here; they go where the weights go.
TEXTS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


class Row(NamedTuple):
    """One tensor of a checkpoint, and what becomes of it.

    Attributes:
        file_name: its name in the files; empty where a weight has no tensor.
        spec: its dtype and shape there.
        name: the weight that it becomes; empty where it becomes none.
        note: how it is laid out anew, why it is dropped, or what is wrong with it.
    """

    file_name: str
    spec: Spec | None
    name: str
    note: str


class Checkpoint:
    """A checkpoint in a folder, opened and described; no tensor is read before it is asked for.

    Args:
        folder: holds config.json (or params.json) and the tensors.

    Attributes:
        config: of the backbone.
        tied: whether the logits use the embedding.
        carried: keys of the config that fix nothing here, such as ids of special tokens.
        format: `"hf"`, `"mamba_ssm"` or `"codestral"`.
        dtype: of the embedding in the file.
        rows: a `Row` for each tensor and each weight.
        problems: what does not fit; empty for a checkpoint that can be read.

    Raises:
        CheckpointError: a file or its library is missing, a file is damaged, or the config describes a model that is
            not implemented.

    Example:

    >>> import tempfile, dl_mamba
    >>> from dl_mamba.weights import Checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=1).save_pretrained(folder)
    ...     checkpoint = Checkpoint(folder)
    >>> checkpoint.format, checkpoint.tied, checkpoint.dtype, checkpoint.config.d_model
    ('hf', True, 'float32', 8)
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config_path, self.path = self._place(CONFIGS), self._place(tuple(CONTAINERS))
        self._files = self._opened()
        self._names = bare_names(list(self._files), str(self.path))
        self._header = self._described()
        self.config: BackboneConfig = self._header.config
        self.carried = self._header.carried
        self.dtype = self._spec(MODEL[EMBEDDING][0]).dtype
        self.tied = self._decide_tie()
        self._weights = weights_of(self.config, not self.tied)
        self.rows, self.problems = self._compared()

    def check(self) -> None:
        """Refuse a checkpoint whose tensors are not those of its config.

        Raises:
            CheckpointError: lists every tensor that is missing, extra or of another shape.
        """
        if self.problems:
            raise CheckpointError(
                f"{self.path} does not fit {self.config_path.name}, nothing was loaded: {'; '.join(self.problems)}."
            )

    def weights(self, head: bool) -> dict[str, Weight]:
        """The weights to read, by name here.

        Args:
            head: read the head too, where the file has one of its own.
        """
        return {name: weight for name, weight in self._weights.items() if head or name != HEAD}

    def read(self, name: str) -> np.ndarray:
        """A tensor by its name here, in the layout of here and the dtype of the file; it may lie in a mapped file."""
        weight = self._weights[name]
        return weight.layout.to_ours(self._tensor(weight.file_name), weight.shape)

    def tensors(self, head: bool) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors by their names here, one at a time; see `weights`."""
        for name in self.weights(head):
            yield name, self.read(name)

    def texts(self) -> dict[str, str]:
        """The files of `TEXTS` in the folder, by name."""
        paths = [self.folder / name for name in TEXTS]
        return {path.name: path.read_text(encoding="utf-8") for path in paths if path.is_file()}

    def spec(self, weight: Weight) -> Spec:
        """Dtype and shape of a weight in the file."""
        return self._spec(weight.file_name)

    def _place(self, names: tuple[str, ...]) -> Path:
        found = [self.folder / name for name in names if (self.folder / name).is_file()]
        if not found:
            raise CheckpointError(f"{self.folder} holds none of {', '.join(names)}; it is no checkpoint.")
        return found[0]

    def _opened(self) -> dict[str, TensorFile]:
        """The file of each tensor."""
        kind = CONTAINERS[self.path.name]
        if self.path.suffix != ".json":
            file = kind(self.path)
            return dict.fromkeys(file.specs, file)
        return self._opened_shards(kind)

    def _opened_shards(self, kind: type[TensorFile]) -> dict[str, TensorFile]:
        index = read_json(self.path).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise CheckpointError(f"{self.path} has no weight_map of names to files.")
        missing = sorted({name for name in index.values() if not self._is_beside(name)})
        if missing:
            raise CheckpointError(f"{self.path} names files that are not beside it: {', '.join(missing)}.")
        files = {name: kind(self.folder / name) for name in sorted(set(index.values()))}
        found = {tensor: file for file in files.values() for tensor in file.specs}
        astray = sorted(t for t in {**found, **index} if t not in found or found[t] is not files.get(index.get(t)))
        if astray:
            raise CheckpointError(f"{self.path} does not say where these tensors are: {', '.join(astray)}.")
        return found

    def _is_beside(self, name: str) -> bool:
        return Path(name).name == name and (self.folder / name).is_file()

    def _described(self) -> Header:
        keys = read_json(self.config_path)
        bare, shape = MODEL[EMBEDDING][0], ()
        if bare in self._names:
            shape = self._spec(bare).shape
        if len(shape) != 2:
            raise CheckpointError(f"{self.path} holds no embedding, {bare}, of two axes; it is no Mamba model.")
        if self.config_path.name == "params.json":
            self.format, reader = "codestral", mamba_ssm.read_params
        elif "model_type" not in keys and "d_model" in keys:
            self.format, reader = "mamba_ssm", mamba_ssm.read
        else:
            self.format, reader = "hf", huggingface.read
        return reader(self.config_path, keys, shape[0])

    def _decide_tie(self) -> bool:
        """What the config says; where it does not, no head or an equal one is a tied one."""
        head, embedding = MODEL[HEAD][0], MODEL[EMBEDDING][0]
        said = self._header.tied
        if said is False or head not in self._names:
            return said is not False
        equal = self._equal(head, embedding)
        if said and not equal:
            raise CheckpointError(
                f"{self.config_path} ties the head to the embedding, but {self.path.name} holds two that differ."
            )
        return equal

    def _equal(self, first: str, second: str) -> bool:
        a, b = self._names[first], self._names[second]
        if self._files[a] is self._files[b] and self._files[a].shares(a, b):
            return True
        return self._spec(first) == self._spec(second) and np.array_equal(self._tensor(first), self._tensor(second))

    def _compared(self) -> tuple[list[Row], list[str]]:
        rows, left, problems = [], dict(self._names), []
        for name, weight in self._weights.items():
            stored = left.pop(weight.file_name, None)
            spec = None if stored is None else self._files[stored].specs[stored]
            problem = self._problem(weight, spec)
            if problem:
                problems.append(f"{stored or weight.file_name} {problem}")
            rows.append(Row(stored or "", spec, name, problem or weight.layout.text))
        for bare, stored in left.items():
            tied = bare == MODEL[HEAD][0] and self.tied
            note = "dropped: the embedding again" if tied else "is no weight of this config"
            problems += [] if tied else [f"{stored} {note}"]
            rows.append(Row(stored, self._files[stored].specs[stored], "", note))
        return rows, problems

    @staticmethod
    def _problem(weight: Weight, spec: Spec | None) -> str:
        if spec is None:
            return f"{list(weight.file_shape)} is missing"
        if spec.shape != weight.file_shape:
            return f"has shape {list(spec.shape)} instead of {list(weight.file_shape)}"
        return "" if spec.dtype in DTYPES else f"has dtype {spec.dtype}, none of {list(DTYPES)}"

    def _spec(self, bare: str) -> Spec:
        stored = self._names[bare]
        return self._files[stored].specs[stored]

    def _tensor(self, bare: str) -> Any:
        stored = self._names[bare]
        return self._files[stored].read(stored)
