"""What a layer keeps and what it forgets: step sizes, decays, what is left of each token, and the states themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from dl_mamba.viz.recurrence import Recurrence, recurrence_of


def step_sizes(layer: Any, x: Any, mask: Any = None, segment_ids: Any = None) -> np.ndarray:
    """The step size dt of each token: near 0 a token is passed over, a large one writes it and forgets what was before.

    `dt = softplus(dt_proj + dt_bias)`, within `dt_limit` for Mamba-2, and 0 at padding. Source: Gu and Dao, "Mamba",
    2023, section 3.5.2.

    Args:
        layer, x, mask, segment_ids: those of `hidden_attention`.

    Returns:
        (batch, length, d_inner) float32 for Mamba-1, (batch, length, nheads) for Mamba-2.

    Raises:
        TypeError: `layer` is no mixer.
        ValueError: a shape does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> layer = dl_mamba.MambaLayer(d_model=4)
    >>> dt = dl_mamba.viz.step_sizes(layer, np.ones((1, 3, 4), "float32"), mask=[[1, 1, 0]])
    >>> dt.shape, (dt > 0).all(axis=(0, 2)).tolist()
    ((1, 3, 8), [True, True, False])
    """
    return recurrence_of(layer, x, mask, segment_ids).dt.astype("float32")


def decays(layer: Any, x: Any, mask: Any = None, segment_ids: Any = None) -> np.ndarray:
    """The share of the state that each token leaves: `exp(dt[t] A)`, between 0 (all is forgotten) and 1 (all is kept).

    Args:
        layer, x, mask, segment_ids: those of `hidden_attention`.

    Returns:
        (batch, length, d_inner, d_state) float32 for Mamba-1, (batch, length, nheads) for Mamba-2. Where a document
        starts it is 0, at padding 1.

    Raises:
        TypeError: `layer` is no mixer.
        ValueError: a shape does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> layer = dl_mamba.Mamba2Layer(d_model=8, headdim=4, d_state=4)
    >>> kept = dl_mamba.viz.decays(layer, np.ones((1, 3, 8), "float32"), segment_ids=[[0, 0, 1]])
    >>> kept.shape, (kept > 0).all(axis=(0, 2)).tolist()
    ((1, 3, 4), [True, True, False])
    """
    r = recurrence_of(layer, x, mask, segment_ids)
    return _as_given(_decays(r), r)


def _decays(r: Recurrence) -> np.ndarray:
    """(batch, length, channels, k) float64."""
    starts = np.diff(r.document, axis=1, prepend=r.document[:, :1]) > 0
    return np.where(starts[..., None, None], 0.0, np.exp(r.dt[..., None] * r.A))


def _as_given(values: np.ndarray, r: Recurrence) -> np.ndarray:
    return (values[..., 0] if r.by_head else values).astype("float32")


def retention(layer: Any, x: Any, mask: Any = None, segment_ids: Any = None) -> np.ndarray:
    """The share of what each token wrote that is left in the state at the end: the product of all later decays.

    Args:
        layer, x, mask, segment_ids: those of `hidden_attention`.

    Returns:
        (batch, length, d_inner, d_state) float32 for Mamba-1, (batch, length, nheads) for Mamba-2; 1 at the last token,
        0 in an earlier document of the row.

    Raises:
        TypeError: `layer` is no mixer.
        ValueError: a shape does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> left = dl_mamba.viz.retention(dl_mamba.MambaLayer(d_model=4), np.ones((1, 9, 4), "float32"))
    >>> bool((np.diff(left, axis=1) > 0).all()), float(left[0, -1].min())
    (True, 1.0)
    """
    r = recurrence_of(layer, x, mask, segment_ids)
    decay = _decays(r)
    later = np.concatenate([decay[:, 1:], np.ones_like(decay[:, :1])], axis=1)
    return _as_given(np.cumprod(later[:, ::-1], axis=1)[:, ::-1], r)


def states(layer: Any, x: Any, mask: Any = None, segment_ids: Any = None) -> np.ndarray:
    """The state after each token, from an empty one; the last is what `layer(x, return_state=True)` returns.

    Args:
        layer, x, mask, segment_ids: those of `hidden_attention`.

    Returns:
        (batch, length, d_inner, d_state) float32 for Mamba-1, (batch, length, nheads, headdim, d_state) for Mamba-2.

    Raises:
        TypeError: `layer` is no mixer.
        ValueError: a shape does not fit.

    Example:

    >>> import numpy as np, dl_mamba, keras
    >>> layer, x = dl_mamba.MambaLayer(d_model=4), np.ones((1, 5, 4), "float32")
    >>> _, state = layer(x, return_state=True)
    >>> bool(np.allclose(dl_mamba.viz.states(layer, x)[:, -1], keras.ops.convert_to_numpy(state.ssm), atol=1e-5))
    True
    """
    r = recurrence_of(layer, x, mask, segment_ids)
    decay = _decays(r)[:, :, :, None]
    batch, length, channels, width = r.x.shape
    found = np.zeros((batch, length, channels, width, r.B.shape[-1]), "float32")
    h = np.zeros_like(found[:, 0], "float64")
    for t in range(length):
        h = decay[:, t] * h + (r.dt[:, t, :, None] * r.x[:, t])[..., None] * r.B[:, t, :, None]
        found[:, t] = h
    return found if r.by_head else found[:, :, :, 0]


def state_norms(layer: Any, x: Any, mask: Any = None, segment_ids: Any = None) -> np.ndarray:
    """The size of the state after each token: the Frobenius norm of each channel's or head's part.

    Args:
        layer, x, mask, segment_ids: those of `hidden_attention`.

    Returns:
        (batch, length, d_inner) float32 for Mamba-1, (batch, length, nheads) for Mamba-2.

    Raises:
        TypeError: `layer` is no mixer.
        ValueError: a shape does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> layer = dl_mamba.Mamba2Layer(d_model=8, headdim=4, d_state=4)
    >>> dl_mamba.viz.state_norms(layer, np.ones((1, 3, 8), "float32")).shape
    (1, 3, 4)
    """
    found = states(layer, x, mask, segment_ids)
    return np.sqrt(np.sum(np.square(found), axis=tuple(range(3, found.ndim))))
