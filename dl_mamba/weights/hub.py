"""A local folder for a checkpoint: the one that is named, or a copy from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

from dl_mamba.weights.checkpoint import CONFIGS, CONTAINERS, TEXTS
from dl_mamba.weights.errors import CheckpointError

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(name: str | Path, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of a checkpoint; a repository of the hub is fetched into its cache first.

    Of several forms of the same weights one is fetched, safetensors before pickles.

    Args:
        name: a folder, or a repository such as `"state-spaces/mamba-130m-hf"`.
        revision: branch, tag or commit of the repository; its main branch if None.
        offline: use the cache only. So does the environment variable HF_HUB_OFFLINE.

    Raises:
        CheckpointError: there is no such folder, the extra is not installed, or the hub cannot be reached and the
            cache does not hold the repository.

    Example:

    >>> from dl_mamba.weights import resolve
    >>> resolve(".").is_dir()
    True
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if not REPOSITORY.fullmatch(str(name)):
        raise CheckpointError(f"{name} is neither a folder nor the name of a repository, such as owner/model.")
    hub, reason = _library(str(name)), "offline=True"
    if not offline:
        try:
            return _fetched(hub, str(name), revision)
        except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
            raise CheckpointError(f"{name}: no such repository or revision, or no access ({_line(error)}).") from error
        except Exception as error:  # noqa: BLE001 - errors of connection belong to the client's HTTP library
            reason = _line(error)
    cached = _cached(hub, str(name), revision)
    if cached is None:
        raise CheckpointError(_unreachable(hub, str(name), reason))
    return cached


def _fetched(hub: ModuleType, name: str, revision: str | None) -> Path:
    files = _chosen(hub.HfApi().list_repo_files(name, revision=revision))
    return Path(hub.snapshot_download(name, revision=revision, allow_patterns=files))


def _cached(hub: ModuleType, name: str, revision: str | None) -> Path | None:
    """The folder in the cache, if it holds a config and weights."""
    try:
        folder = Path(hub.snapshot_download(name, revision=revision, local_files_only=True))
    except (hub.errors.LocalEntryNotFoundError, OSError):
        return None
    complete = all(any((folder / name).is_file() for name in names) for names in (CONFIGS, CONTAINERS))
    return folder if complete else None


def _library(name: str) -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f'{name} is no folder here, and to fetch it needs huggingface_hub: pip install "dl-mamba[hf]"'
        ) from error
    return huggingface_hub


def _chosen(files: list[str]) -> list[str]:
    """The files to fetch: one form of the weights, its shards, the config and what belongs to text."""
    stem = next((name.removesuffix(".index.json") for name in CONTAINERS if name in files), None)
    if stem is None:
        return [*CONFIGS, *TEXTS]
    base, _, ending = stem.rpartition(".")
    return [*CONFIGS, *TEXTS, stem, f"{stem}.index.json", f"{base}-*.{ending}"]


def _unreachable(hub: ModuleType, name: str, reason: str) -> str:
    try:
        cached = ", ".join(sorted(repository.repo_id for repository in hub.scan_cache_dir().repos))
    except hub.errors.CacheNotFound:
        cached = ""
    return (
        f"{name} is not in the cache, and the hub was not reached ({reason}). The cache holds: {cached or 'nothing'}. "
        f"Where there is a network, run `hf download {name}`; then copy the cache, or name the folder."
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
