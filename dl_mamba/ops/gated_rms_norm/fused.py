"""Gated RMS norm by the Triton kernels: bindings, and what they refuse."""

from __future__ import annotations

from functools import partial
from typing import Any

from keras import ops

from dl_mamba.ops.kernels.availability import refusal_of

LARGEST_GROUP = 16384  # channels, which one program holds


def refusal(x: Any, weight: Any, z: Any, ngroups: int) -> str | None:
    """Why the kernels cannot take these tensors, or None."""
    reason = refusal_of(x, weight, z)
    if reason:
        return reason
    if x.shape[-1] // ngroups > LARGEST_GROUP:
        return f"{x.shape[-1] // ngroups} channels in a group; the kernels hold up to {LARGEST_GROUP}"
    return None


def run(x, weight, z, epsilon, ngroups, norm_before_gate, dtype):
    """As `reference.run`, in `dtype`."""
    from dl_mamba.ops.kernels import gated_rms_norm as kernels
    from dl_mamba.ops.kernels.binding import bind

    options = kernels.Options(epsilon, ngroups, norm_before_gate, dtype)
    op = bind(partial(kernels.forward, options), partial(kernels.backward, options), kernels.ROWS)
    shape = x.shape
    if len(shape) != 3:
        x, z = (None if v is None else ops.reshape(v, (1, -1, shape[-1])) for v in (x, z))
    (y,) = op(x, weight, z)
    return y if len(shape) == 3 else ops.reshape(y, shape)
