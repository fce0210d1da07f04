"""Presets: one TOML file for each released size, and tiny ones for tests and small data."""

if __name__ != "dl_mamba.variants":
    raise ImportError("this folder is the package dl_mamba.variants; import it under that name")

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from dl_mamba.config import Mamba2Config, MambaConfig

FAMILIES: dict[str, type[MambaConfig] | type[Mamba2Config]] = {"mamba": MambaConfig, "mamba2": Mamba2Config}


def names(family: str | None = None) -> list[str]:
    """Names of the presets, smallest model first.

    Args:
        family: `"mamba"`, `"mamba2"`, or None for both.

    Raises:
        ValueError: the family is unknown.

    Example:

    >>> from dl_mamba import variants
    >>> variants.names("mamba")
    ['mamba-tiny', 'mamba-130m', 'mamba-370m', 'mamba-790m', 'mamba-1.4b', 'mamba-2.8b']
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family={family!r} is unknown; choose one of {list(FAMILIES)}, or None for all.")
    families = list(FAMILIES) if family is None else [family]
    chosen = [name for name in _presets() if _presets()[name]["family"] in families]
    return sorted(chosen, key=lambda name: (families.index(_presets()[name]["family"]), load(name).num_parameters))


def load(name: str) -> MambaConfig | Mamba2Config:
    """The config of a preset.

    Args:
        name: one of `names()`, or an alias with its family, e.g. `"mamba2-1.4b"` for `"mamba2-1.3b"`.

    Raises:
        ValueError: the name is unknown.

    Example:

    >>> from dl_mamba import variants
    >>> variants.load("mamba2-2.7b").num_parameters
    2702599680
    """
    for family in FAMILIES:
        if name.startswith(f"{family}-"):
            return find(family, name)
    raise ValueError(f"variant={name!r} is unknown; choose one of {names()}.")


def find(family: str, name: str) -> MambaConfig | Mamba2Config:
    """The config of a preset of one family, by full name, short name or alias: `find("mamba", "base")`.

    Raises:
        ValueError: the family has no such preset.

    Example:

    >>> from dl_mamba import variants
    >>> variants.find("mamba2", "1.4b") == variants.load("mamba2-1.3b")
    True
    """
    short = str(name).removeprefix(f"{family}-")
    for full, preset in _presets().items():
        if preset["family"] == family and short in (full.removeprefix(f"{family}-"), *preset.get("aliases", ())):
            return FAMILIES[family](**preset["config"])
    raise ValueError(f"variant={name!r} is unknown in the family {family!r}; choose one of {names(family)}.")


@cache
def _presets() -> dict[str, dict[str, Any]]:
    files = (file for file in resources.files(__name__).iterdir() if file.name.endswith(".toml"))
    return {file.name.removesuffix(".toml"): tomllib.loads(file.read_text(encoding="utf-8")) for file in files}
