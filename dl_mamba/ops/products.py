"""Products of float32 matrices for torch on a CPU: on processors of AMD by oneDNN, of few rows on all cores.

torch asks MKL, which keeps its AVX-512 code, and its way to give a few rows to all cores, for processors of Intel. On
those of AMD oneDNN takes half the time with AVX-512 and 0.9 of it with AVX2, and few rows times many columns are
computed in parts, which on those of Intel takes twice the time of one product of one row, and less from 7 rows on.
`torch.backends.mkldnn.enabled = False` goes back to MKL.
"""

from __future__ import annotations

from functools import cache

import torch

WORTH_A_CALL = 2**20  # multiplications; with fewer MKL's shorter calls are faster
PARTS = 8  # of the columns, for up to so many rows
WHOLE = 6  # rows up to which MKL needs no parts on processors of Intel


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (..., i) times b (i, j), for functions whose gradient is written by hand."""
    if not _is_faster(a, b):
        return torch.matmul(a, b)
    return torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")


def bmm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (m, i, j) times b (m, j, k), in the same way."""
    return matmul(a, b[0]) if len(a) == 1 else torch.bmm(a, b)


def add_bmm(y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """y + a b in the place of y."""
    return y.add_(matmul(a, b[0])) if len(a) == 1 and _is_faster(a, b[0]) else y.baddbmm_(a, b)


def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x (..., i) times w (i, j)."""
    few = len(x.shape) == 2 and (0 if on_amd() else WHOLE) < len(x) <= PARTS
    if few and w.mT.is_contiguous() and w.shape[1] % PARTS == 0 and _is_large(x, w):
        columns = w.mT.view(PARTS, -1, w.shape[0])
        return torch.matmul(columns, x.mT.expand(PARTS, -1, -1)).flatten(0, 1).mT
    return _Product.apply(x, w) if torch.is_grad_enabled() and _is_faster(x, w) else matmul(x, w)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        of_x, of_w = ctx.needs_input_grad
        ctx.save_for_backward(x if of_w else None, w if of_x else None)
        return matmul(x, w)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dx = None if w is None else matmul(dy, w.mT)
        return dx, None if x is None else matmul(x.flatten(0, -2).mT, dy.flatten(0, -2))


def _is_faster(a: torch.Tensor, b: torch.Tensor) -> bool:
    return _is_large(a, b) and torch.backends.mkldnn.enabled and on_amd() and _has_both()


def _is_large(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and a.numel() * b.shape[1] >= WORTH_A_CALL


@cache
def on_amd() -> bool:
    """Whether this is a processor of AMD."""
    return torch.cpu.get_capabilities().get("cpu_name", "").startswith("AMD")


@cache
def _has_both() -> bool:
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
