"""The official CUDA and Triton kernels."""

from __future__ import annotations

import torch

from benchmarks.case import Case
from benchmarks.contenders import Work
from benchmarks.contenders.op_work import on_torch


def prepare(case: Case) -> Work:
    return on_torch(case, _FUNCTIONS[case.op])


def ssd(x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=256, dt_softplus=True)


def selective_scan(x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor):
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y = selective_scan_fn(*(v.mT.contiguous() for v in (x, dt)), A, B.mT, C.mT, delta_softplus=True)
    return y.mT


_FUNCTIONS = {"ssd": ssd, "selective_scan": selective_scan}
