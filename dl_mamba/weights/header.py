"""What a config file says, in our words, and the strict reading of its keys."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dl_mamba.config import BackboneConfig, Config
from dl_mamba.weights.errors import CheckpointError


@dataclass(frozen=True)
class Header:
    """The model that a config file describes.

    Attributes:
        config: of the backbone.
        tied: whether the logits use the embedding; None where the file does not say.
        carried: keys that fix nothing here, such as ids of special tokens, written back in the same format.

    Example:

    >>> from dl_mamba import variants
    >>> from dl_mamba.weights import Header
    >>> Header(variants.load("mamba-130m"), tied=True).config.d_model
    768
    """

    config: BackboneConfig
    tied: bool | None = None
    carried: Mapping[str, Any] = field(default_factory=dict)


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; infinity may be `Infinity` or, as transformers 5 writes it, `{"__float__": ...}`.

    Raises:
        CheckpointError: it is not JSON, or no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_hook=_number)
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; an object is needed.")
    return found


def _number(found: dict[str, Any]) -> Any:
    return float(found["__float__"]) if set(found) == {"__float__"} else found


def check_keys(
    path: Path, keys: Mapping[str, Any], known: Collection[str], fixed: Mapping[str, tuple], ignored: Collection[str]
) -> None:
    """Refuse what would silently be another model.

    Args:
        path: the file, for the error.
        keys: as the file has them.
        known: keys that are read.
        fixed: keys of which only these values are implemented.
        ignored: keys that do not change the model.

    Raises:
        CheckpointError: lists every key that is unknown, or has a value that is not implemented.
    """
    wrong = []
    for key, value in keys.items():
        if key in fixed and value not in fixed[key]:
            allowed = " or ".join(map(repr, fixed[key]))
            wrong.append(f"{key}={value!r} is not implemented (only {allowed})")
        elif key not in (*known, *fixed, *ignored):
            wrong.append(f"{key}={value!r} is unknown")
    if wrong:
        raise CheckpointError(f"{path}: {'; '.join(wrong)}.")


def build(path: Path, config_class: type[Config], options: Mapping[str, Any]) -> Any:
    """A config, or an error that names the file.

    Raises:
        CheckpointError: a value does not fit.
    """
    flags = {name for name, field in config_class.__dataclass_fields__.items() if isinstance(field.default, bool)}
    odd = sorted(name for name, value in options.items() if (name in flags) != isinstance(value, bool))
    if odd:
        raise CheckpointError(f"{path}: {odd[0]}={options[odd[0]]!r} is of the wrong type.")
    try:
        return config_class(**options)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: {error}") from error
