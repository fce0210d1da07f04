"""Mamba-1 as a plain torch loop over tokens that unbinds its inputs once: the fairest simple baseline for training."""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.case import Case
from benchmarks.contenders import Work
from benchmarks.contenders.parameters import config_of
from benchmarks.contenders.torch_work import our_mixer_name, work_of

OUTSIDE = {"embedding.weight": "embedding/embeddings", "norm.weight": "final_norm/scale"}


class Mixer(torch.nn.Module):
    """A Mamba-1 mixer; Gu and Dao, 2023, algorithm 2 and figure 3."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.in_proj = torch.nn.Linear(c.d_model, 2 * c.d_inner, bias=False)
        self.conv1d = torch.nn.Conv1d(c.d_inner, c.d_inner, c.d_conv, groups=c.d_inner, padding=c.d_conv - 1)
        self.x_proj = torch.nn.Linear(c.d_inner, c.dt_width + 2 * c.d_state, bias=False)
        self.dt_proj = torch.nn.Linear(c.dt_width, c.d_inner)
        self.A_log = torch.nn.Parameter(torch.zeros(c.d_inner, c.d_state))
        self.D = torch.nn.Parameter(torch.zeros(c.d_inner))
        self.out_proj = torch.nn.Linear(c.d_inner, c.d_model, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        c = self.config
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        x = functional.silu(self.conv1d(x.mT)[..., : x.shape[1]].mT)
        dt, B, C = self.x_proj(x).split([c.dt_width, c.d_state, c.d_state], dim=-1)
        dt = functional.softplus(self.dt_proj(dt))
        A, h, ys = -torch.exp(self.A_log), x.new_zeros(x.shape[0], c.d_inner, c.d_state), []
        for dt_t, u_t, B_t, C_t in zip(*(t.unbind(1) for t in (dt, dt * x, B, C)), strict=True):
            h = torch.exp(dt_t[..., None] * A) * h + u_t[..., None] * B_t[:, None]
            ys.append((h * C_t[:, None]).sum(-1))
        return self.out_proj((torch.stack(ys, 1) + self.D * x) * functional.silu(z))


class Layer(torch.nn.Module):
    """Pre-norm residual layer."""

    def __init__(self, config):
        super().__init__()
        self.norm = torch.nn.RMSNorm(config.d_model, eps=config.norm_epsilon)
        self.mixer = Mixer(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.mixer(self.norm(hidden))


class Model(torch.nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config):
        super().__init__()
        self.embedding = torch.nn.Embedding(config.vocab_size, config.d_model)
        self.layers = torch.nn.Sequential(*(Layer(config) for _ in range(config.num_layers)))
        self.norm = torch.nn.RMSNorm(config.d_model, eps=config.norm_epsilon)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layers(self.embedding(ids)))


def prepare(case: Case) -> Work:
    return work_of(case, Model(config_of(case)), lambda y: y, our_name)


def our_name(name: str) -> str:
    """The name of a parameter in this library."""
    return OUTSIDE.get(name) or our_mixer_name(name.removeprefix("layers."))
