"""Writing a checkpoint: the config of a format, and its tensors, beside their place and then renamed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from dl_mamba.weights import huggingface, mamba_ssm
from dl_mamba.weights.checkpoint import CONFIGS, CONTAINERS, Checkpoint
from dl_mamba.weights.containers import DTYPES
from dl_mamba.weights.errors import CheckpointError
from dl_mamba.weights.header import Header
from dl_mamba.weights.publishing import published
from dl_mamba.weights.tables import EMBEDDING, MODEL, weights_of

KEPT_IN_FLOAT32 = ("A_log", "D", "dt_bias")  # exp() of A_log, and sums over many tokens, must not round


class Format(NamedTuple):
    """A format that is written: its file of tensors, and the name of the embedding in it."""

    file: str
    embedding: str


FORMATS = {
    "hf": Format("model.safetensors", "backbone.embeddings.weight"),
    "mamba_ssm": Format("pytorch_model.bin", "backbone.embedding.weight"),
}


def write_checkpoint(
    folder: str | Path,
    format: str,
    header: Header,
    dtypes: Mapping[str, str],
    read: Callable[[str], np.ndarray],
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a model into a folder; all of its files appear at the end, or none.

    The tensors are all in memory at once, as the libraries want them.

    Args:
        folder: is made if needed; files of the same names are replaced.
        format: `"hf"` or `"mamba_ssm"`.
        header: config and tie.
        dtypes: of each weight, by its name here, as it is to be written.
        read: gives a weight by its name here, in the layout of here.
        texts: further files by name, such as tokenizer.json.

    Raises:
        CheckpointError: the format is unknown or cannot describe the model, its library is missing, the weights are
            not those of the config, or the folder holds tensors of another format.

    Example:

    >>> import tempfile
    >>> import numpy as np
    >>> from dl_mamba.config import MambaConfig
    >>> from dl_mamba.weights import Checkpoint, Header, write_checkpoint
    >>> from dl_mamba.weights.tables import weights_of
    >>> config = MambaConfig(vocab_size=11, d_model=8, num_layers=1)
    >>> arrays = {name: np.zeros(w.shape, "float32") for name, w in weights_of(config, head=False).items()}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     header = Header(config, tied=True)
    ...     write_checkpoint(folder, "hf", header, dict.fromkeys(arrays, "bfloat16"), arrays.__getitem__)
    ...     Checkpoint(folder).dtype
    'bfloat16'
    """
    if format not in FORMATS:
        raise CheckpointError(f"format={format!r} is unknown; choose one of {list(FORMATS)}.")
    weights = weights_of(header.config, not header.tied)
    odd = sorted(set(weights) ^ set(dtypes))
    if odd:
        raise CheckpointError(f"the model's weights are not those of its config; these are in one only: {odd}.")
    keys = huggingface.write(header, dtypes[EMBEDDING]) if format == "hf" else mamba_ssm.write(header)
    file, embedding = FORMATS[format]
    CONTAINERS[file].library()  # a missing one is an error before anything is read or made
    folder = _prepared(Path(folder), format)
    arrays = {}
    for name, weight in weights.items():
        tensor = weight.layout.to_file(read(name))
        arrays[_file_name(format, weight.file_name)] = np.ascontiguousarray(tensor, DTYPES[dtypes[name]])
    if format == "mamba_ssm" and header.tied:  # it looks for the head even where it is the embedding
        arrays["lm_head.weight"] = arrays[embedding]
    with published(folder) as staging:
        for name, text in {**texts, "config.json": json.dumps(keys, indent=2) + "\n"}.items():
            (staging / name).write_text(text, encoding="utf-8")
        CONTAINERS[file].write(staging / file, arrays)


def convert(checkpoint: Checkpoint, folder: str | Path, format: str, dtype: str | None = None) -> None:
    """Write a checkpoint in another format, without a model of it; what belongs to its text goes along.

    Args:
        checkpoint: what to read.
        folder: where to write.
        format: `"hf"` or `"mamba_ssm"`.
        dtype: of the tensors written, but A_log, D and dt_bias are not narrowed below float32; as they are if None.

    Raises:
        CheckpointError: see `write_checkpoint`, or the checkpoint's tensors do not fit its config.

    Example:

    >>> import tempfile, dl_mamba
    >>> from dl_mamba.weights import Checkpoint, convert
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=1).save_pretrained(f"{folder}/a")
    ...     convert(Checkpoint(f"{folder}/a"), f"{folder}/b", "mamba_ssm", dtype="float16")
    ...     Checkpoint(f"{folder}/b").format, Checkpoint(f"{folder}/b").dtype
    ('mamba_ssm', 'float16')
    """
    checkpoint.check()
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype={dtype!r} is unknown; choose one of {list(DTYPES)}.")
    carried = checkpoint.carried if format == "hf" else {}
    header = Header(checkpoint.config, checkpoint.tied, carried)
    dtypes = {
        name: _narrowed(name, checkpoint.spec(weight).dtype, dtype) for name, weight in checkpoint.weights(True).items()
    }
    if Path(folder).resolve() == checkpoint.folder.resolve():
        raise CheckpointError(f"{folder} is read and written at once; choose another folder to write.")
    write_checkpoint(folder, format, header, dtypes, checkpoint.read, checkpoint.texts())


def _narrowed(name: str, stored: str, wanted: str | None) -> str:
    if wanted is None:
        return stored
    keep = name.rpartition("/")[2] in KEPT_IN_FLOAT32 and DTYPES[wanted].itemsize < DTYPES["float32"].itemsize
    return stored if keep else wanted


def _file_name(format: str, bare: str) -> str:
    if bare == MODEL[EMBEDDING][0]:
        return FORMATS[format].embedding
    return bare if bare == "lm_head.weight" else f"backbone.{bare}"


def _prepared(folder: Path, format: str) -> Path:
    """The folder, made if needed, without files that would be read instead of the new ones."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; choose a folder.")
    others = [*(set(CONTAINERS) - {FORMATS[format].file}), CONFIGS[1]]
    found = sorted(name for name in others if (folder / name).exists())
    if found:
        raise CheckpointError(f"{folder} holds {', '.join(found)} of another checkpoint; choose an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
