"""Gated RMS norm in one pass; from primitives, so that it exports to every format."""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.numerics import mean_square, times, upcast


def run(x, weight, z, epsilon, ngroups, norm_before_gate):
    x, weight, z = upcast("float32", x, weight, z)
    if z is not None and not norm_before_gate:
        x = x * ops.silu(z)
    shape = ops.shape(x)
    x = ops.reshape(x, (-1, ngroups, shape[-1] // ngroups))
    x = times(x, "tgc", ops.rsqrt(mean_square(x) + epsilon), "tg")
    y = ops.reshape(x, shape) * weight
    return y * ops.silu(z) if z is not None and norm_before_gate else y
