"""Text generation at constant cost per token, for any model that carries state.

A model needs `next_logits(ids, mask, state) -> (logits, state)`, `initial_state(batch)` and `config.vocab_size`.
"""

from dl_mamba.generation.beam import Beam
from dl_mamba.generation.decoding import Memory
from dl_mamba.generation.loop import generate, prefill
from dl_mamba.generation.request import fork
from dl_mamba.generation.samplers import Greedy, MinP, Random, Sampler, TopK, TopP

__all__ = ["Beam", "Greedy", "Memory", "MinP", "Random", "Sampler", "TopK", "TopP", "fork", "generate", "prefill"]
