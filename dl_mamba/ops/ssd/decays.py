"""Decays inside a chunk, from its log decays: products of neighbouring steps as the exponential of a running sum."""

from __future__ import annotations

import math

from keras import ops

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.numerics import Tensor, sum_of_rows
from dl_mamba.ops.sequence import compiled_on_a_cpu

FORGOTTEN = -1000.0  # exp() of it is 0 in float32: log decay of an emptied state
UNKNOWN_COUNT = 1024  # steps that the exact running sum provides for when their number is not known


def decays(log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Decay from token j to token i of a chunk, exp(log_decay[j+1] + ... + log_decay[i]): (..., q) -> (..., i, j).

    Also from the start of the chunk to token i, that of token i included, and from token j to the end.
    """
    coarse, fine = cumulative(log_decay)
    difference = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :])
    between = ops.where(not_before(_size(log_decay)), ops.exp(ops.minimum(difference, 0.0)), 0.0)
    # not parts of `between`, which XLA would look for there again wherever they are read
    since_start = ops.exp(ops.minimum(coarse + fine, 0.0))
    until_end = ops.exp(ops.minimum((coarse[..., -1:] - coarse) + (fine[..., -1:] - fine), 0.0))
    return between, since_start, until_end


def _forward(log_decay):
    between, since_start, until_end = decays(log_decay)
    return (between, since_start, until_end), (between, since_start, log_decay)


def _backward(residuals, gradients):
    """The gradient of step k sums over the pairs j < k <= i, without the difference of two large sums."""
    between, since_start, log_decay = residuals
    dbetween, dsince_start, duntil_end = gradients
    after = after_each(_size(log_decay), log_decay.dtype)
    until = ops.matmul(dbetween * between, after) + (dsince_start * since_start)[..., None]
    return (sum_of_rows(until * (1.0 - after)) + ops.matmul(duntil_end * between[..., -1, :], after),)


differentiable_decays = with_gradient(_forward, _backward)


def _size(log_decay):
    return ops.shape(log_decay)[-1]


def not_before(size: int) -> Tensor:
    """True where token i does not come before token j: (i, j)."""
    token = ops.arange(size, dtype="int32")
    return token[:, None] >= token


def after_each(size: int, dtype: str) -> Tensor:
    """1 where token k comes after token j: (j, k)."""
    return 1.0 - ops.cast(not_before(size), dtype)


def cumulative(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Running sum as two parts whose differences do not cancel.

    The coarse part is rounded so that its sums are exact in float32; the fine part stays small. The difference of two
    plain running sums would lose up to 1e-3 of a decay that lies behind a strong one.
    """
    count = log_decay.shape[-1]
    reach = math.ceil(math.log2(-FORGOTTEN * (count if isinstance(count, int) else UNKNOWN_COUNT)))
    unit = 2.0 ** (reach - 24)
    coarse = ops.round(log_decay / unit) * unit
    return _running_sum(coarse), _running_sum(log_decay - coarse)


def _running_sum(x):
    if not compiled_on_a_cpu(x):
        return ops.cumsum(x, axis=-1)
    return ops.matmul(x, ops.cast(ops.transpose(not_before(_size(x))), x.dtype))  # XLA's cumsum takes ten times as long
