"""The recurrence as a matrix: y = M x with M = L o (C B^T), the same lower triangle that attention would have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from dl_mamba.ops.numerics import skip_and_gate
from dl_mamba.viz.recurrence import mixer_of, recurrence_of


def hidden_attention(
    layer: Any, x: Any, mask: Any = None, segment_ids: Any = None, channels: Sequence[int] | None = None
) -> np.ndarray:
    """The matrix that a layer's recurrence multiplies its tokens with: how much of token j is in output i.

    `M[i, j] = C[i]^T exp(sum of dt[k] A for j < k <= i) B[j] dt[j]` for j <= i, and 0 for j > i. The recurrence of the
    layer, between its convolution and its gate, is `y = M x + D x`; `attend` goes on from there to the layer's output.
    Unlike the weights of softmax attention, those of a row may be negative and have no fixed sum. Sources: Dao and Gu,
    "Transformers are SSMs", 2024, eq. 3 and section 5.1 (Mamba-2); Ali, Zimerman and Wolf, "The Hidden Attention of
    Mamba Models", 2024, section 3 (Mamba-1). It is summed in float64 from the layer's own float32 step sizes.

    Args:
        layer: a `MambaLayer`, a `Mamba2Layer`, or a residual block, e.g. `model.blocks[0]`.
        x: (batch, length, d_model) float, the input of the layer; that of block i is
            `model(ids, output_hidden_states=True)["hidden_states"][i]`.
        mask: (batch, length), true at real tokens; nothing is read from padding.
        segment_ids: (batch, length) int; documents packed into one row do not see each other.
        channels: which of the d_inner channels (Mamba-1) or heads (Mamba-2); all if None. The result has length^2
            numbers for each.

    Returns:
        (batch, channels, length, length) float32; row i: the output, column j: the token it reads.

    Raises:
        TypeError: `layer` is no mixer.
        ValueError: a shape does not fit.
        IndexError: a channel does not exist.

    Example:

    >>> import numpy as np, dl_mamba
    >>> layer = dl_mamba.Mamba2Layer(d_model=8, headdim=4, d_state=4)
    >>> matrix = dl_mamba.viz.hidden_attention(layer, np.ones((1, 5, 8), "float32"))
    >>> matrix.shape, float(np.abs(np.triu(matrix[0, 0], 1)).max())
    ((1, 4, 5, 5), 0.0)
    """
    r = recurrence_of(layer, x, mask, segment_ids)
    chosen = list(range(r.dt.shape[2]) if channels is None else channels)
    dt, A, B, C = r.dt[:, :, chosen], r.A[chosen], r.B[:, :, chosen], r.C[:, :, chosen]
    seen = np.tri(dt.shape[1], dtype=bool) & (r.document[:, :, None] == r.document[:, None, :])
    seen = seen[:, None]  # (b, 1, i, j)
    passed = np.moveaxis(np.cumsum(dt, axis=1), 1, -1)
    passed = np.where(seen, passed[..., :, None] - passed[..., None, :], 0.0)  # (b, channel, i, j)
    states = [slice(None)] if r.by_head else [slice(n, n + 1) for n in range(A.shape[1])]
    matrix = np.zeros(passed.shape)
    for rate, state in zip(A.T, states, strict=True):
        scores = np.einsum("bihn,bjhn->bhij", C[..., state], B[..., state], optimize=True)
        matrix += np.exp(passed * rate[:, None, None]) * scores
    return (np.where(seen, matrix, 0.0) * np.moveaxis(dt, 1, -1)[:, :, None]).astype("float32")


def attend(layer: Any, x: Any, matrix: np.ndarray, mask: Any = None, segment_ids: Any = None) -> np.ndarray:
    """The output of a layer with a matrix in the place of its recurrence.

    With the matrix of `hidden_attention` it is the layer's own output. With some entries set to 0 it is the output of a
    layer that cannot see from there to here: an intervention that tells what an output rests on.

    Args:
        layer, x, mask, segment_ids: those of `hidden_attention`.
        matrix: (batch, channels, length, length) float, all channels or heads.

    Returns:
        (batch, length, d_model) float32. At padding it has no meaning.

    Raises:
        TypeError: `layer` is no mixer.
        ValueError: a shape does not fit.

    Example:

    >>> import numpy as np, dl_mamba, keras
    >>> layer, x = dl_mamba.MambaLayer(d_model=4), np.random.default_rng(0).normal(size=(1, 6, 4)).astype("float32")
    >>> matrix = dl_mamba.viz.hidden_attention(layer, x)
    >>> again = dl_mamba.viz.attend(layer, x, matrix)
    >>> bool(np.allclose(again, keras.ops.convert_to_numpy(layer(x)), atol=1e-5))
    True
    >>> matrix[..., 5, 0] = 0.0  # the last output no longer sees the first token
    >>> moved = np.abs(dl_mamba.viz.attend(layer, x, matrix) - again).max(axis=(0, 2))
    >>> (moved > 0).tolist()
    [False, False, False, False, False, True]
    """
    mixer = mixer_of(layer)
    r = recurrence_of(layer, x, mask, segment_ids)
    batch, length, channels, _ = r.x.shape
    if np.shape(matrix) != (batch, channels, length, length):
        raise ValueError(
            f"matrix has shape {np.shape(matrix)}; {(batch, channels, length, length)} (batch, channels, length, "
            "length) is needed: hidden_attention with channels=None."
        )
    y = np.einsum("bhij,bjhp->bihp", matrix, r.x, optimize=True).reshape(r.inputs["x"].shape)
    y, inner, D, z = (
        None if v is None else ops.cast(v, "float32") for v in (y, *(r.inputs[name] for name in ("x", "D", "z")))
    )
    D = D[:, None] if r.by_head and len(D.shape) == 1 else D
    y = ops.cast(skip_and_gate(y, inner, D, z), mixer.compute_dtype)
    y = ops.cast(mixer.finish(y, *r.beside), "float32")
    return ops.convert_to_numpy(y if layer is mixer else ops.cast(x, "float32") + y)
