"""Gated RMS norm in one pass; from primitives, so that it exports to every format."""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.numerics import upcast


def run(x, weight, z, epsilon, ngroups, norm_before_gate):
    x, weight, z = upcast("float32", x, weight, z)
    if z is not None and not norm_before_gate:
        x = x * ops.silu(z)
    shape = ops.shape(x)
    grouped = x if ngroups == 1 else ops.reshape(x, (*shape[:-1], ngroups, shape[-1] // ngroups))
    grouped = grouped * ops.rsqrt(ops.sum(ops.square(grouped), axis=-1, keepdims=True) / grouped.shape[-1] + epsilon)
    y = (grouped if ngroups == 1 else ops.reshape(grouped, shape)) * weight
    return y * ops.silu(z) if z is not None and norm_before_gate else y
