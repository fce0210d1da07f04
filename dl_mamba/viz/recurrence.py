"""The recurrence inside a layer on given inputs: h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]^T;  y[t] = h[t] C[t]."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from keras import ops

from dl_mamba.layers.blocks import ResidualBlock
from dl_mamba.layers.mixer import Mixer
from dl_mamba.ops import checks
from dl_mamba.ops.numerics import step_sizes
from dl_mamba.ops.sequence import document_starts


class Recurrence(NamedTuple):
    """One shape for both generations, in float64: p is 1 and k is d_state for Mamba-1, headdim and 1 for Mamba-2.

    Attributes:
        x: (batch, length, channels, p), input of the recurrence; a channel of Mamba-2 is a head.
        dt: (batch, length, channels), step sizes, 0 at padding.
        A: (channels, k), decay rates.
        B, C: (batch, length, channels, d_state), what is written and read.
        document: (batch, length) int, number of the document in its row.
        inputs: the arguments of the op as the layer gives them.
        beside: what goes past the recurrence in the layer.
    """

    x: np.ndarray
    dt: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    document: np.ndarray
    inputs: dict[str, Any]
    beside: tuple

    @property
    def by_head(self) -> bool:
        """Whether the decay is one number a head, as in Mamba-2."""
        return len(self.inputs["x"].shape) == 4


def mixer_of(layer: Any) -> Mixer:
    """The mixer of a layer or residual block."""
    mixer = layer.mixer if isinstance(layer, ResidualBlock) else layer
    if not isinstance(mixer, Mixer):
        raise TypeError(
            f"layer is a {type(layer).__name__}; a MambaLayer, a Mamba2Layer or a residual block of them is needed, "
            "e.g. model.blocks[0]."
        )
    return mixer


def recurrence_of(layer: Any, x: Any, mask: Any, segment_ids: Any) -> Recurrence:
    """Run a layer up to its recurrence, from an empty state."""
    mixer = mixer_of(layer)
    x, mask = ops.convert_to_tensor(x), checks.to_mask(mask, None, None)
    segment_ids = checks.to_segment_ids(segment_ids, None, None)
    mixer.check(x, mask, None, segment_ids)
    if not layer.built:
        layer(x)
    if layer is not mixer:
        x = layer.norm(ops.cast(x, layer.residual_dtype))
    inputs, beside, _ = mixer.project(ops.cast(x, mixer.compute_dtype), mask, None, segment_ids)
    dt = ops.cast(inputs["dt"], "float32")
    dt = step_sizes(dt, ops.convert_to_tensor(inputs["dt_bias"]), True, mask, inputs.get("dt_limit"))
    starts = None if segment_ids is None else document_starts(segment_ids, mask)
    document = np.zeros(x.shape[:2], int) if starts is None else np.cumsum(ops.convert_to_numpy(starts), axis=1)
    x, A, B, C = (_float64(inputs[name]) for name in ("x", "A", "B", "C"))
    if A.ndim == 2:  # Mamba-1: one decay for each channel and state
        x, B, C = x[..., None], *(np.broadcast_to(M[:, :, None], (*x.shape, A.shape[1])) for M in (B, C))
    else:
        A, B, C = A[:, None], *(np.repeat(M, len(A) // M.shape[2], axis=2) for M in (B, C))
    return Recurrence(x, _float64(dt), A, B, C, document, inputs, beside)


def _float64(tensor: Any) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float32")).astype("float64")
