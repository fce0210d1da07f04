"""Gated RMS norm, one group of channels at a time: y = x / sqrt(mean(x^2) + epsilon) * weight."""

from __future__ import annotations

from keras import ops

from dl_mamba.ops.numerics import accumulation_dtype, upcast


def run(x, weight, z, epsilon, ngroups, norm_before_gate, dtype):
    x, weight, z = upcast(accumulation_dtype(x, weight, z), x, weight, z)
    if z is not None and not norm_before_gate:
        x = x * ops.silu(z)
    size = x.shape[-1] // ngroups
    groups = [x[..., g * size : (g + 1) * size] for g in range(ngroups)]
    y = ops.concatenate(
        [g / ops.sqrt(ops.sum(g * g, axis=-1, keepdims=True) / size + epsilon) for g in groups], axis=-1
    )
    y = y * weight
    return y * ops.silu(z) if z is not None and norm_before_gate else y
