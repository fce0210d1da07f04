"""Selective scan by the Triton kernels: bindings, and what they refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

from keras import ops

from dl_mamba.ops.kernels.availability import refusal_of
from dl_mamba.ops.numerics import flags_of

LARGEST_STATE = 64  # numbers a channel; more would not fit into registers


def refusal(x: Any, A: Any, B: Any, *others: Any) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    reason = refusal_of(x, A, B, *others)
    if reason:
        return reason
    if A.shape[1] > LARGEST_STATE:
        return f"d_state={A.shape[1]}; the kernels hold states up to {LARGEST_STATE}"
    channels, ngroups = x.shape[2], B.shape[2]
    if ngroups > 1 and channels // ngroups % 16:
        return f"{channels // ngroups} channels share a group; the kernels need a multiple of 16"
    return None


def run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask):
    """As `reference.run`."""
    from dl_mamba.ops.kernels import selective_scan as kernels
    from dl_mamba.ops.kernels.binding import bind

    A, D, dt_bias, state = (None if v is None else ops.cast(v, "float32") for v in (A, D, dt_bias, initial_state))
    op = bind(partial(kernels.forward, dt_softplus), partial(kernels.backward, dt_softplus), kernels.ROWS)
    return op(x, dt, A, B, C, D, z, dt_bias, state, flags_of(starts, mask))
