"""Checkpoints of other libraries: turned from one format into another, and described."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from dl_mamba.config import Mamba2Config, MambaConfig
from dl_mamba.models import Mamba2CausalLM, MambaCausalLM
from dl_mamba.models.pretrained import Pretrained
from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.files import check_destination, load_model
from dl_mamba.weights import Checkpoint, resolve
from dl_mamba.weights import convert as rewrite
from dl_mamba.weights.containers import DTYPES
from dl_mamba.weights.publishing import published

FORMATS = ("hf", "mamba_ssm", "keras")
MODELS: dict[type, type] = {MambaConfig: MambaCausalLM, Mamba2Config: Mamba2CausalLM}


def convert(
    source: str | Path,
    destination: str | Path,
    format: str | None = None,
    dtype: str | None = None,
    revision: str | None = None,
) -> dict[str, str]:
    """Write a model in another format.

    Between checkpoints the tensors pass without a model; to and from a .keras file it is built.

    Args:
        source: a folder, a repository of the Hugging Face hub, or a .keras file of a backbone.
        destination: a folder, or a .keras file.
        format: `"hf"`, `"mamba_ssm"` or `"keras"`; if None, "keras" for a destination that ends so, else "hf".
        dtype: of the tensors written; as they are if None.
        revision: branch, tag or commit of the repository.

    Returns:
        What was written, in words.

    Raises:
        InputError: the options or the source do not fit.
        CheckpointError: the checkpoint is damaged, unknown, or cannot be written in that format.

    Example:

    >>> import tempfile, dl_mamba
    >>> from dl_mamba.pipelines.checkpoints import convert
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=1).save_pretrained(f"{folder}/a")
    ...     convert(f"{folder}/a", f"{folder}/b.keras")["format"]
    'hf to keras'
    """
    format = format or ("keras" if Path(destination).suffix == ".keras" else "hf")
    if format not in FORMATS:
        raise InputError(f"format={format!r} is unknown; choose one of {', '.join(FORMATS)}.")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
    if format == "keras":
        check_destination(destination)
    if Path(source).suffix == ".keras":
        return _from_keras(Path(source), destination, format, dtype)
    checkpoint = Checkpoint(resolve(source, revision))
    checkpoint.check()
    if format == "keras":
        _to_keras(checkpoint, Path(destination), dtype)
    else:
        rewrite(checkpoint, destination, format, dtype)
    return {"format": f"{checkpoint.format} to {format}", "model": _model(checkpoint), "written": str(destination)}


def _from_keras(source: Path, destination: str | Path, format: str, dtype: str | None) -> dict[str, str]:
    if format == "keras" or dtype is not None:
        raise InputError(f"{source} is written as hf or mamba_ssm in the dtype that it has.")
    model = load_model(source, (Pretrained,), "a model that has save_pretrained")
    model.save_pretrained(destination, format=format)
    return {
        "format": f"keras to {format}",
        "model": f"{type(model).__name__}, {model.count_params():,} parameters",
        "written": str(destination),
    }


def _to_keras(checkpoint: Checkpoint, destination: Path, dtype: str | None) -> None:
    model = MODELS[type(checkpoint.config)].from_pretrained(checkpoint.folder, dtype=dtype)
    with published(destination.parent) as staging:
        model.save(staging / destination.name)


def _model(checkpoint: Checkpoint) -> str:
    kind = type(checkpoint.config).__name__.removesuffix("Config")
    head = "tied head" if checkpoint.tied else "head of its own"
    return f"{kind}, {parameters(checkpoint):,} parameters, {head}, {checkpoint.dtype}"


def parameters(checkpoint: Checkpoint) -> int:
    """Number of weights of the language model in a checkpoint; a tied head counts once.

    Example:

    >>> import tempfile, dl_mamba
    >>> from dl_mamba.pipelines.checkpoints import parameters
    >>> from dl_mamba.weights import Checkpoint
    >>> model = dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     parameters(Checkpoint(folder)) == model.count_params()
    True
    """
    config = checkpoint.config
    return config.num_parameters + (not checkpoint.tied) * config.embedding_rows * config.d_model


class Description(NamedTuple):
    """What `inspect` found.

    Attributes:
        lines: the model, in words.
        options: of its config, as the class takes them.
        tensors: (how many, file name, dtype and shape, name here, what becomes of it); layers of one kind in one row.
    """

    lines: dict[str, str]
    options: dict[str, Any]
    tensors: list[tuple[int, str, str, str, str]]


def inspect(checkpoint: Checkpoint) -> Description:
    """What a checkpoint holds, and what would be loaded as what.

    Args:
        checkpoint: an open one; its problems are among its tensors.

    Example:

    >>> import tempfile, dl_mamba
    >>> from dl_mamba.pipelines.checkpoints import inspect
    >>> from dl_mamba.weights import Checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=3).save_pretrained(folder)
    ...     inspect(Checkpoint(folder)).tensors[1]
    (3, 'backbone.layers.{i}.norm.weight', 'float32 [8]', 'layers/{i}/norm/scale', 'as is')
    """
    rows = Counter(
        (_any_layer(row.file_name), str(row.spec or ""), _any_layer(row.name), row.note) for row in checkpoint.rows
    )
    lines = {
        "folder": str(checkpoint.folder),
        "format": f"{checkpoint.format}: {checkpoint.config_path.name} and {checkpoint.path.name}",
        "model": _model(checkpoint),
        "tensors": f"{sum(1 for row in checkpoint.rows if row.spec)}",
    }
    return Description(lines, checkpoint.config.to_dict(), [(count, *row) for row, count in rows.items()])


def _any_layer(name: str) -> str:
    return re.sub(r"(layers[./])\d+", r"\1{i}", name)
