"""Mamba and Mamba-2 of transformers: torch, without compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from benchmarks.case import NEW_TOKENS, Case
from benchmarks.contenders import Work
from benchmarks.contenders.parameters import config_of
from benchmarks.contenders.torch_work import DEVICE, load, our_mixer_name, work_of
from benchmarks.weights import token_ids

OUTSIDE = {"embeddings.weight": "embedding/embeddings", "norm_f.weight": "final_norm/scale"}


def prepare(case: Case) -> Work:
    transformers.logging.set_verbosity_error()
    model_class, language_model_class, config = (_mamba if case.family == "mamba" else _mamba2)(case)
    if case.work == "generate":
        return _generate(case, language_model_class(config))
    model = model_class(config)
    if case.work == "token":
        return _token(case, model)
    return work_of(case, model, lambda outputs: outputs.last_hidden_state, our_name)


def our_name(name: str) -> str:
    """The name of a parameter in this library."""
    name = name.removeprefix("backbone.")
    return OUTSIDE.get(name) or our_mixer_name(name.removeprefix("layers."))


def _mamba(case: Case) -> tuple[type, type, Any]:
    c = config_of(case)
    config = transformers.MambaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.num_layers,
        state_size=c.d_state,
        residual_in_fp32=True,
        tie_word_embeddings=True,
    )
    return transformers.MambaModel, transformers.MambaForCausalLM, config


def _mamba2(case: Case) -> tuple[type, type, Any]:
    c = config_of(case)
    config = transformers.Mamba2Config(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.num_layers,
        state_size=c.d_state,
        num_heads=c.nheads,
        head_dim=c.headdim,
        n_groups=c.ngroups,
        chunk_size=c.chunk_size,
        residual_in_fp32=True,
        tie_word_embeddings=True,
    )
    return transformers.Mamba2Model, transformers.Mamba2ForCausalLM, config


def _token(case: Case, model: torch.nn.Module) -> Work:
    """One more token after a prompt, from the cache."""
    ids = torch.from_numpy(token_ids(case.batch, 8, case.vocab_size)).long().to(DEVICE)
    model.to(DEVICE)
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache_params

    def run() -> Any:
        return model(ids[:, :1], cache_params=cache, use_cache=True).last_hidden_state

    return Work(torch.no_grad()(run))


def _generate(case: Case, model: torch.nn.Module) -> Work:
    """New tokens after a prompt by its own cached `generate`."""
    load(model, our_name)
    model.eval()
    ids = torch.from_numpy(token_ids(case.batch, case.length, case.vocab_size)).long()
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def run() -> torch.Tensor:
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    return Work(torch.no_grad()(run), lambda tokens: {"tokens": tokens.numpy()})
