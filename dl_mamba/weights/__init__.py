"""Published checkpoints: found, described, read and written; no model is known here, only configs and names."""

from dl_mamba.weights.checkpoint import Checkpoint
from dl_mamba.weights.errors import CheckpointError
from dl_mamba.weights.header import Header
from dl_mamba.weights.hub import resolve
from dl_mamba.weights.writing import convert, write_checkpoint

__all__ = ["Checkpoint", "CheckpointError", "Header", "convert", "resolve", "write_checkpoint"]
