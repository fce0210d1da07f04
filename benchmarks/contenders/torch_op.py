"""What torch itself offers in the place of an op: attention for SSD, convolution, RMS norm."""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.case import Case
from benchmarks.contenders import Work
from benchmarks.contenders.op_work import on_torch


def prepare(case: Case) -> Work:
    return on_torch(case, _FUNCTIONS[case.op], same=case.op != "ssd")


def attention(x: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
    """Causal attention with as many heads of the same size: another mathematics, the yardstick of the field."""
    heads = x.transpose(1, 2)
    return functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2)


def convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """As the published models call it: channels before tokens, padding on both sides, the right one cut off."""
    y = functional.conv1d(x.mT, weight.T[:, None], bias, padding=len(weight) - 1, groups=x.shape[-1])
    return functional.silu(y[..., : x.shape[1]]).mT


def norm(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """The gate before the norm."""
    return functional.rms_norm(x * functional.silu(z), weight.shape, weight, 1e-5)


_FUNCTIONS = {"ssd": attention, "causal_conv1d": convolution, "gated_rms_norm": norm}
