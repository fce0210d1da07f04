"""Gated RMS norm in one pass; from primitives, so that it exports to every format. torch on a CPU: `in_place`."""

from __future__ import annotations

from functools import cache, partial

from keras import ops

from dl_mamba.ops.gradients import recomputed
from dl_mamba.ops.numerics import mean_square, scaled_rows, silu, spread, upcast
from dl_mamba.ops.sequence import runs_in_place


def run(x, weight, z, epsilon, ngroups, norm_before_gate, dtype):
    if runs_in_place(x):
        from dl_mamba.ops.gated_rms_norm import in_place

        return in_place.norm(epsilon, ngroups, norm_before_gate)(x, weight, z)[0]
    return _norm(epsilon, ngroups, norm_before_gate)(x, weight, z)


@cache
def _norm(epsilon, ngroups, norm_before_gate):
    options = {"epsilon": epsilon, "ngroups": ngroups, "norm_before_gate": norm_before_gate}
    return recomputed(partial(normalized, **options))


def normalized(x, weight, z, *, epsilon, ngroups, norm_before_gate):
    """The result in float32, with the gradient of its operations, which keeps what they compute."""
    x, weight, z = upcast("float32", x, weight, z)
    if z is not None and not norm_before_gate:
        x = x * silu(z)
    shape = ops.shape(x)
    x = ops.reshape(x, (-1, ngroups, shape[-1] // ngroups))
    x = scaled_rows(x, ops.rsqrt(mean_square(x) + epsilon))
    y = ops.reshape(x, shape)
    y = y * spread(weight, y)
    return y * silu(z) if z is not None and norm_before_gate else y
