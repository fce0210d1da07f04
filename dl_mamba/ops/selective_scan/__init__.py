"""The selective state-space recurrence of Mamba-1: diagonal A, and dt, B, C that depend on the token."""

from __future__ import annotations

from typing import Any

from keras import ops

from dl_mamba.ops import checks, dispatch
from dl_mamba.ops.selective_scan import chunked, fused, reference
from dl_mamba.ops.sequence import document_starts

IMPLEMENTATIONS = {"reference": reference.run, "chunked": chunked.run, "triton": fused.run}


def selective_scan(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    *,
    dt_bias: Any = None,
    dt_softplus: bool = True,
    initial_state: Any = None,
    segment_ids: Any = None,
    mask: Any = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> Any:
    """Selective scan: `h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]`, `y[t] = (C[t] h[t] + D x[t]) SiLU(z[t])`.

    With `dt = softplus(dt + dt_bias)`. Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State
    Spaces", 2023, eq. 2 and algorithm 2. Everything inside is float32; the reference takes float64 when an input has
    it.

    Args:
        x: (batch, length, d_inner) float.
        dt: (batch, length, d_inner) float, before bias and softplus.
        A: (d_inner, d_state) float, negative for a state that decays.
        B, C: (batch, length, d_state) or (batch, length, ngroups, d_state) float; d_inner / ngroups neighbouring
            channels share a group.
        D: (d_inner,) float or None.
        z: (batch, length, d_inner) float or None.
        dt_bias: (d_inner,) float or None.
        dt_softplus: apply the softplus; without it dt is used as it comes.
        initial_state: (batch, d_inner, d_state) float; zeros if None.
        segment_ids: (batch, length) int. A token with another id than the real token before it starts a document
            with an empty state. The first document continues `initial_state`.
        mask: (batch, length), true at real tokens. Padding leaves the state as it is.
        return_final_state: also return the state after the last real token.
        implementation: `"reference"` (token by token), `"chunked"` (blocks of tokens, and where the processor has room
            chunks in lock-step, O(sqrt length) sequential steps; its gradient keeps one state for each block),
            `"triton"` (kernels for NVIDIA GPUs) or `"auto"`: the kernels where they can run. Gradients of the last
            three can be taken once.

    Returns:
        y (batch, length, d_inner) in the dtype of `x`, or (y, final_state) with the state in float32.

    Raises:
        ValueError: a shape, dtype or implementation does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> x, dt = np.ones((1, 3, 1), "float32"), np.ones((1, 3, 1), "float32")
    >>> A, B = -np.log(2.0) * np.ones((1, 1), "float32"), np.ones((1, 3, 1), "float32")
    >>> y = dl_mamba.ops.selective_scan(x, dt, A, B, B, dt_softplus=False)
    >>> [round(float(v), 4) for v in y[0, :, 0]]
    [1.0, 1.5, 1.75]
    """
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
    given = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    x, dt, A, B, C, D, z, dt_bias, initial_state = map(checks.to_tensor, names, given)
    batch, length, d_inner = checks.expect_rank("x", x, "(batch, length, d_inner)")
    d_state = checks.expect_rank("A", A, "(d_inner, d_state)")[1]
    checks.expect_shape("A", A, d_inner=d_inner, d_state=d_state)
    for name, tensor in (("dt", dt), ("z", z)):
        checks.expect_shape(name, tensor, batch=batch, length=length, d_inner=d_inner)
    for name, tensor in (("D", D), ("dt_bias", dt_bias)):
        checks.expect_shape(name, tensor, d_inner=d_inner)
    B, C = (M[:, :, None] if len(M.shape) == 3 else M for M in (B, C))
    ngroups = checks.expect_rank("B", B, "(batch, length, ngroups, d_state)")[2]
    for name, tensor in (("B", B), ("C", C)):
        checks.expect_shape(name, tensor, batch=batch, length=length, ngroups=ngroups, d_state=d_state)
    checks.expect_groups(ngroups, "d_inner", d_inner)
    checks.expect_shape("initial_state", initial_state, batch=batch, d_inner=d_inner, d_state=d_state)
    mask = checks.to_mask(mask, batch, length)
    segment_ids = checks.to_segment_ids(segment_ids, batch, length)
    starts = None if segment_ids is None else document_starts(segment_ids, mask)
    refusal = lambda: fused.refusal(x, A, B, dt, C, D, z, dt_bias, initial_state)  # noqa: E731
    run = dispatch.choose("selective_scan", IMPLEMENTATIONS, implementation, refusal)
    if initial_state is None and dispatch.last_implementation("selective_scan") != dispatch.FUSED:
        initial_state = ops.zeros((ops.shape(x)[0], d_inner, d_state), dtype="float32")
    y, final_state = run(x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state, starts, mask)
    y = ops.cast(y, x.dtype)
    return (y, final_state) if return_final_state else y
