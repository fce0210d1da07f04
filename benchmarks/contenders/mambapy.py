"""mamba.py (package mambapy): Mamba-1 with a parallel scan in torch."""

from __future__ import annotations

import torch
from mambapy.mamba import Mamba, MambaConfig, RMSNorm
from mambapy.pscan import pscan
from torch.nn import functional

from benchmarks.case import Case
from benchmarks.contenders import Work
from benchmarks.contenders.op_work import on_torch
from benchmarks.contenders.torch_work import our_mixer_name, work_of

OUTSIDE = {"embedding.weight": "embedding/embeddings", "norm.weight": "final_norm/scale"}


class Model(torch.nn.Module):
    """The blocks of mambapy between an embedding and a final norm."""

    def __init__(self, case: Case):
        super().__init__()
        self.embedding = torch.nn.Embedding(case.vocab_size, case.d_model)
        self.blocks = Mamba(MambaConfig(d_model=case.d_model, n_layers=case.num_layers))
        self.norm = RMSNorm(case.d_model)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.blocks(self.embedding(ids)))


def prepare(case: Case) -> Work:
    if case.op:
        return on_torch(case, selective_scan)
    return work_of(case, Model(case), lambda y: y, our_name)


def our_name(name: str) -> str:
    """The name of a parameter in this library."""
    return OUTSIDE.get(name) or our_mixer_name(name.removeprefix("blocks.layers."))


def selective_scan(x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor):
    """The scan as its mixer calls it."""
    dt = functional.softplus(dt)
    states = pscan(torch.exp(dt[..., None] * A), (dt * x)[..., None] * B[:, :, None])
    return (states @ C[..., None])[..., 0]
