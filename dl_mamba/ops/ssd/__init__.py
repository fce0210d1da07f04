"""State-space duality, the recurrence of Mamba-2: one scalar decay a head, states of headdim x d_state."""

from __future__ import annotations

from typing import Any

from keras import ops

from dl_mamba.ops import checks, dispatch
from dl_mamba.ops.sequence import document_starts
from dl_mamba.ops.ssd import chunked, fused, reference

IMPLEMENTATIONS = {"reference": reference.run, "chunked": chunked.run, "triton": fused.run}


def ssd(
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
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    input_scale: Any = None,
    chunk_size: int = 256,
    initial_state: Any = None,
    segment_ids: Any = None,
    mask: Any = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> Any:
    """State-space duality: `h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]^T`, `y[t] = (h[t] C[t] + D x[t]) SiLU(z[t])`.

    With `dt = clip(softplus(dt + dt_bias), *dt_limit)`. Source: Dao and Gu, "Transformers are SSMs: Generalized
    Models and Efficient Algorithms Through Structured State Space Duality", 2024, eq. 2 and section 6. Everything
    inside is float32; the reference takes float64 when an input has it.

    Args:
        x: (batch, length, nheads, headdim) float.
        dt: (batch, length, nheads) float, before bias and softplus.
        A: (nheads,) float, negative for a state that decays.
        B, C: (batch, length, ngroups, d_state) float; nheads / ngroups neighbouring heads share a group.
        D: (nheads,) or (nheads, headdim) float, or None.
        z: (batch, length, nheads, headdim) float or None.
        dt_bias: (nheads,) float or None.
        dt_softplus: apply the softplus; without it dt is used as it comes.
        dt_limit: smallest and largest dt after the softplus.
        input_scale: (batch, length, nheads) float; weighs x in place of dt, which then sets the decay alone.
        chunk_size: largest number of tokens in a chunk, >= 1; a CPU takes smaller chunks. The result does not depend
            on it.
        initial_state: (batch, nheads, headdim, d_state) float; zeros if None.
        segment_ids: (batch, length) int. A token with another id than the real token before it starts a document
            with an empty state. The first document continues `initial_state`.
        mask: (batch, length), true at real tokens. Padding leaves the state as it is.
        return_final_state: also return the state after the last real token.
        implementation: `"reference"` (token by token), `"chunked"` (matrix products), `"triton"` (kernels for NVIDIA
            GPUs) or `"auto"`: the kernels where they can run. Gradients of the last three can be taken once.

    Returns:
        y (batch, length, nheads, headdim) in the dtype of `x`, or (y, final_state) with the state in float32.

    Raises:
        ValueError: a shape, dtype, limit, chunk size or implementation does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> x, dt = np.ones((1, 3, 1, 1), "float32"), np.ones((1, 3, 1), "float32")
    >>> A, B = np.array([-np.log(2.0)], "float32"), np.ones((1, 3, 1, 1), "float32")
    >>> y = dl_mamba.ops.ssd(x, dt, A, B, B, dt_softplus=False)
    >>> [round(float(v), 4) for v in y[0, :, 0, 0]]
    [1.0, 1.5, 1.75]
    """
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "input_scale", "initial_state")
    given = (x, dt, A, B, C, D, z, dt_bias, input_scale, initial_state)
    x, dt, A, B, C, D, z, dt_bias, input_scale, initial_state = map(checks.to_tensor, names, given)
    batch, length, nheads, headdim = checks.expect_rank("x", x, "(batch, length, nheads, headdim)")
    _, _, ngroups, d_state = checks.expect_rank("B", B, "(batch, length, ngroups, d_state)")
    checks.expect_shape("z", z, batch=batch, length=length, nheads=nheads, headdim=headdim)
    for name, tensor in (("dt", dt), ("input_scale", input_scale)):
        checks.expect_shape(name, tensor, batch=batch, length=length, nheads=nheads)
    for name, tensor in (("A", A), ("dt_bias", dt_bias), ("D", D if D is None or len(D.shape) == 1 else None)):
        checks.expect_shape(name, tensor, nheads=nheads)
    if D is not None and len(D.shape) != 1:
        checks.expect_shape("D", D, nheads=nheads, headdim=headdim)
    for name, tensor in (("B", B), ("C", C)):
        checks.expect_shape(name, tensor, batch=batch, length=length, ngroups=ngroups, d_state=d_state)
    checks.expect_groups(ngroups, "nheads", nheads)
    _check_numbers(dt_limit, chunk_size)
    checks.expect_shape("initial_state", initial_state, batch=batch, nheads=nheads, headdim=headdim, d_state=d_state)
    mask = checks.to_mask(mask, batch, length)
    segment_ids = checks.to_segment_ids(segment_ids, batch, length)
    starts = None if segment_ids is None else document_starts(segment_ids, mask)
    refusal = lambda: fused.refusal(x, B, C, dt, A, D, z, dt_bias, input_scale, initial_state)  # noqa: E731
    run = dispatch.choose("ssd", IMPLEMENTATIONS, implementation, refusal)
    if initial_state is None and dispatch.last_implementation("ssd") != dispatch.FUSED:
        initial_state = ops.zeros((ops.shape(x)[0], nheads, headdim, d_state), dtype="float32")
    y, final_state = run(
        x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit, input_scale, chunk_size, initial_state, starts, mask
    )
    y = ops.cast(y, x.dtype)
    return (y, final_state) if return_final_state else y


def _check_numbers(dt_limit: tuple[float, float], chunk_size: int) -> None:
    if len(dt_limit) != 2 or not 0.0 <= dt_limit[0] <= dt_limit[1]:
        raise ValueError(
            f"dt_limit={dt_limit!r}; two numbers with 0 <= low <= high are needed, e.g. (0.0, float('inf'))."
        )
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r}; an integer >= 1 is needed, e.g. 256.")
