"""Causal depthwise convolution over the last d_conv real tokens, with carried state."""

from __future__ import annotations

from typing import Any

from keras import ops

from dl_mamba.ops import checks, dispatch
from dl_mamba.ops.causal_conv1d import chunked, fused, reference
from dl_mamba.ops.sequence import document_starts

IMPLEMENTATIONS = {"reference": reference.run, "chunked": chunked.run, "triton": fused.run}


def causal_conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: str | None = "silu",
    initial_state: Any = None,
    segment_ids: Any = None,
    mask: Any = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> Any:
    """Causal depthwise 1-D convolution: `y[t] = activation(sum_k weight[k] x[t - (d_conv - 1) + k] + bias)`.

    The convolution in front of the state-space model; Gu and Dao, "Mamba", 2023, section 3.4 and figure 3. It is
    computed in float32.

    Args:
        x: (batch, length, channels) float.
        weight: (d_conv, channels) float, oldest tap first: `weight[-1]` meets the current token.
        bias: (channels,) float, or None.
        activation: `"silu"` or None.
        initial_state: (batch, d_conv - 1, channels) float, the tokens before the first one; zeros if None.
        segment_ids: (batch, length) int. A token with another id than the real token before it starts a document,
            which sees nothing of the ones before. The first document continues `initial_state`.
        mask: (batch, length), true at real tokens. Padding is passed over, wherever it stands: windows hold the last
            real tokens of the row, and the output at padding is 0.
        return_final_state: also return the state after the last real token.
        implementation: `"reference"` (token by token), `"chunked"` (shifted products), `"triton"` (kernels for NVIDIA
            GPUs) or `"auto"`: the kernels where they can run. Gradients of the last three can be taken once.

    Returns:
        y (batch, length, channels) in the dtype of `x`, or (y, final_state) with the state in the dtype of `x`.

    Raises:
        ValueError: a shape, dtype, activation or implementation does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> x = np.array([[[1.0], [2.0], [3.0]]], "float32")
    >>> weight = np.array([[10.0], [1.0]], "float32")
    >>> y, state = dl_mamba.ops.causal_conv1d(x, weight, activation=None, return_final_state=True)
    >>> [float(v) for v in y[0, :, 0]], float(state[0, 0, 0])
    ([1.0, 12.0, 23.0], 3.0)
    """
    x, weight, bias, initial_state = (
        checks.to_tensor(name, tensor)
        for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("initial_state", initial_state))
    )
    batch, length, channels = checks.expect_rank("x", x, "(batch, length, channels)")
    width = checks.expect_rank("weight", weight, "(d_conv, channels)")[0]
    checks.expect_shape("weight", weight, d_conv=width, channels=channels)
    checks.expect_shape("bias", bias, channels=channels)
    checks.expect_shape(
        "initial_state", initial_state, **{"batch": batch, "d_conv - 1": width - 1, "channels": channels}
    )
    if activation not in ("silu", None):
        raise ValueError(f"activation={activation!r} is unknown; choose 'silu' or None.")
    mask = checks.to_mask(mask, batch, length)
    segment_ids = checks.to_segment_ids(segment_ids, batch, length)
    starts = None if segment_ids is None else document_starts(segment_ids, mask)
    refusal = lambda: fused.refusal(x, weight, bias, initial_state)  # noqa: E731
    run = dispatch.choose("causal_conv1d", IMPLEMENTATIONS, implementation, refusal)
    if initial_state is None and dispatch.last_implementation("causal_conv1d") != dispatch.FUSED:
        initial_state = ops.zeros((ops.shape(x)[0], width - 1, channels), dtype=x.dtype)
    y, final_state = run(x, weight, bias, activation, initial_state, starts, mask)
    y = ops.cast(y, x.dtype)
    return (y, ops.cast(final_state, x.dtype)) if return_final_state else y
