"""dl-mamba: Mamba state-space models for Keras 3, on TensorFlow, JAX and PyTorch.

One code and one `.keras` file on every backend: layers, backbones with the released sizes as presets, and task heads.
"""

# ruff: noqa: E402 - the backend must be chosen before the first import of Keras
from dl_mamba.backend import choose_backend, keep_freed_memory

BACKEND, REASON = choose_backend()

from importlib.metadata import version

from dl_mamba import generation, heads, ops, tokenizers, training, variants, viz
from dl_mamba.heads import TextClassifier, create_mamba2_with_head, create_mamba_with_head
from dl_mamba.layers import (
    Mamba2Layer,
    Mamba2ResidualBlock,
    MambaLayer,
    MambaResidualBlock,
    MixerState,
    RMSNorm,
    exclude_from_weight_decay,
    no_weight_decay_variables,
)
from dl_mamba.models import Mamba, Mamba2, Mamba2CausalLM, MambaCausalLM, stateful

__version__ = version("dl-mamba")

__all__ = [
    "Mamba",
    "Mamba2",
    "Mamba2CausalLM",
    "Mamba2Layer",
    "Mamba2ResidualBlock",
    "MambaCausalLM",
    "MambaLayer",
    "MambaResidualBlock",
    "MixerState",
    "RMSNorm",
    "TextClassifier",
    "create_mamba2_with_head",
    "create_mamba_with_head",
    "exclude_from_weight_decay",
    "generation",
    "heads",
    "keep_freed_memory",
    "no_weight_decay_variables",
    "ops",
    "stateful",
    "tokenizers",
    "training",
    "variants",
    "viz",
]
