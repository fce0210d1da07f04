"""Layers: mixers, residual blocks, norm and convolution, each usable alone."""

from dl_mamba.layers.blocks import Mamba2ResidualBlock, MambaResidualBlock
from dl_mamba.layers.conv import CausalConv1D
from dl_mamba.layers.mamba import MambaLayer
from dl_mamba.layers.mamba2 import Mamba2Layer
from dl_mamba.layers.mixer import MixerState
from dl_mamba.layers.norm import RMSNorm
from dl_mamba.layers.variables import exclude_from_weight_decay, no_weight_decay_variables

__all__ = [
    "CausalConv1D",
    "Mamba2Layer",
    "Mamba2ResidualBlock",
    "MambaLayer",
    "MambaResidualBlock",
    "MixerState",
    "RMSNorm",
    "exclude_from_weight_decay",
    "no_weight_decay_variables",
]
