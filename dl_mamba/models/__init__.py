"""Backbones: token ids to hidden states."""

from dl_mamba.models.mamba import Mamba
from dl_mamba.models.mamba2 import Mamba2

__all__ = ["Mamba", "Mamba2"]
