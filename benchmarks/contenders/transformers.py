"""MambaModel and Mamba2Model of transformers: torch, without compiled kernels."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from benchmarks.case import Case
from benchmarks.contenders import Work
from benchmarks.contenders.parameters import config_of
from benchmarks.contenders.torch_work import DEVICE, our_mixer_name, work_of
from benchmarks.weights import token_ids

OUTSIDE = {"embeddings.weight": "embedding/embeddings", "norm_f.weight": "final_norm/scale"}


def prepare(case: Case) -> Work:
    transformers.logging.set_verbosity_error()
    model = (_mamba if case.family == "mamba" else _mamba2)(case)
    if case.work == "token":
        return _token(case, model)
    return work_of(case, model, lambda outputs: outputs.last_hidden_state, our_name)


def our_name(name: str) -> str:
    """The name of a parameter in this library."""
    return OUTSIDE.get(name) or our_mixer_name(name.removeprefix("layers."))


def _mamba(case: Case) -> torch.nn.Module:
    c = config_of(case)
    config = transformers.MambaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        num_hidden_layers=c.num_layers,
        state_size=c.d_state,
        residual_in_fp32=True,
    )
    return transformers.MambaModel(config)


def _mamba2(case: Case) -> torch.nn.Module:
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
    )
    return transformers.Mamba2Model(config)


def _token(case: Case, model: torch.nn.Module) -> Work:
    """One more token after a prompt, from the cache."""
    ids = torch.from_numpy(token_ids(case.batch, 8, case.vocab_size)).long().to(DEVICE)
    model.to(DEVICE)
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache_params

    def run() -> Any:
        return model(ids[:, :1], cache_params=cache, use_cache=True).last_hidden_state

    return Work(torch.no_grad()(run))
