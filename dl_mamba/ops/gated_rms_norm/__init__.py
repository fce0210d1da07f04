"""Root-mean-square norm with an optional gate: y = norm(x SiLU(z)) weight, or norm(x) weight SiLU(z)."""

from __future__ import annotations

from typing import Any

from keras import ops
from keras.backend import standardize_dtype

from dl_mamba.ops import checks, dispatch
from dl_mamba.ops.gated_rms_norm import chunked, fused, reference

IMPLEMENTATIONS = {"reference": reference.run, "chunked": chunked.run, "triton": fused.run}


def gated_rms_norm(
    x: Any,
    weight: Any,
    z: Any = None,
    *,
    epsilon: float = 1e-5,
    ngroups: int = 1,
    norm_before_gate: bool = False,
    dtype: str | None = None,
    implementation: str = "auto",
) -> Any:
    """RMS norm over the last axis, in float32, with the gate of Mamba-2.

    With `s(v) = v / sqrt(mean(v^2) + epsilon)` taken over each of `ngroups` equal slices of the channels:
    `y = s(x) weight` without gate, `y = s(x SiLU(z)) weight` (the released models) or, with `norm_before_gate`,
    `y = s(x) weight SiLU(z)`. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, eq. 4; the
    gate: Dao and Gu, "Transformers are SSMs", 2024, section 7.

    Args:
        x: (..., channels) float.
        weight: (channels,) float.
        z: gate, shape of `x`, or None.
        epsilon: added to the mean square, > 0.
        ngroups: number of slices that are normalised apart; divides channels.
        norm_before_gate: normalise before the gate is applied.
        dtype: of the result; that of `x` if None.
        implementation: `"reference"` (the equation), `"chunked"` (one pass), `"triton"` (kernels for NVIDIA GPUs; their
            gradient can be taken once) or `"auto"`: the kernels where they can run.

    Returns:
        (..., channels) in `dtype`.

    Raises:
        ValueError: a shape, dtype, group count or implementation does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> y = dl_mamba.ops.gated_rms_norm(np.array([[3.0, 4.0]], "float32"), np.ones(2, "float32"), epsilon=1e-12)
    >>> [round(float(v), 4) for v in y[0]]
    [0.8485, 1.1314]
    """
    x, weight, z = (checks.to_tensor(name, t) for name, t in (("x", x), ("weight", weight), ("z", z)))
    channels = x.shape[-1]
    checks.expect_shape("weight", weight, channels=channels)
    if z is not None and len(z.shape) != len(x.shape):
        raise ValueError(f"z has shape {tuple(z.shape)}; the shape of x, {tuple(x.shape)}, is needed.")
    checks.expect_shape("z", z, **{f"axis_{i}": size for i, size in enumerate(x.shape)})
    checks.expect_groups(ngroups, "channels", channels)
    refusal = lambda: fused.refusal(x, weight, z, ngroups)  # noqa: E731
    run = dispatch.choose("gated_rms_norm", IMPLEMENTATIONS, implementation, refusal)
    dtype = standardize_dtype(dtype or x.dtype)
    return ops.cast(run(x, weight, z, epsilon, ngroups, norm_before_gate, dtype), dtype)
