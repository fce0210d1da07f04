"""Models: backbones from token ids to hidden states, and language models over them."""

from dl_mamba.models.causal_lm import Mamba2CausalLM, MambaCausalLM
from dl_mamba.models.mamba import Mamba
from dl_mamba.models.mamba2 import Mamba2
from dl_mamba.models.tensor_state import stateful

__all__ = ["Mamba", "Mamba2", "Mamba2CausalLM", "MambaCausalLM", "stateful"]
