"""The error of this room: a checkpoint that cannot be read or written as it is."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that is damaged, unknown or does not fit its config; the message names the file and the reason.

    Example:

    >>> from dl_mamba.weights import CheckpointError
    >>> str(CheckpointError("model.safetensors is cut short."))
    'model.safetensors is cut short.'
    """
