"""The three sequence ops, each described once for the laws they share: inputs, axes, and a float64 numpy recurrence.

The recurrences are written from the papers' equations, apart from the library, one token of one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dl_mamba import ops as mamba_ops


def softplus(x):
    return np.logaddexp(0.0, x)


def silu(x):
    return x / (1.0 + np.exp(-x))


@dataclass(frozen=True)
class Recurrence:
    """One op under test.

    Attributes:
        run: the op.
        sequences: names of the arguments with a (batch, length, ...) axis pair.
        inputs: `inputs(rng, batch, length, ngroups)` -> dict of float64 arrays, initial state included; ngroups None
            stands for a group of its own for each channel or head.
        oracle: `oracle(arrays, **options)` -> (y, final state) by a numpy loop.
    """

    run: Callable
    sequences: tuple[str, ...]
    inputs: Callable
    oracle: Callable


CHANNELS, STATE, HEADS, WIDTH = 6, 3, 4, 4


def scan_inputs(rng, batch, length, ngroups):
    n = rng.normal
    return {
        "x": n(size=(batch, length, CHANNELS)),
        "dt": 2.0 * n(size=(batch, length, CHANNELS)),
        "A": -np.exp(n(size=(CHANNELS, STATE))),
        "B": n(size=(batch, length, ngroups or CHANNELS, STATE)),
        "C": n(size=(batch, length, ngroups or CHANNELS, STATE)),
        "D": n(size=CHANNELS),
        "z": n(size=(batch, length, CHANNELS)),
        "dt_bias": n(size=CHANNELS),
        "initial_state": n(size=(batch, CHANNELS, STATE)),
    }


def scan_oracle(a, starts, mask):
    dt = softplus(a["dt"] + a["dt_bias"]) * mask[..., None]
    share = CHANNELS // a["B"].shape[2]
    h, y = a["initial_state"].copy(), np.zeros_like(a["x"])
    for b, t in np.ndindex(dt.shape[:2]):
        if starts[b, t]:
            h[b] = 0.0
        for d in range(CHANNELS):
            g = d // share
            h[b, d] = np.exp(dt[b, t, d] * a["A"][d]) * h[b, d] + dt[b, t, d] * a["B"][b, t, g] * a["x"][b, t, d]
            y[b, t, d] = a["C"][b, t, g] @ h[b, d]
    return (y + a["D"] * a["x"]) * silu(a["z"]), h


def ssd_inputs(rng, batch, length, ngroups):
    n = rng.normal
    return {
        "x": n(size=(batch, length, HEADS, WIDTH)),
        "dt": 2.0 * n(size=(batch, length, HEADS)),
        "A": -np.exp(n(size=HEADS)),
        "B": n(size=(batch, length, ngroups or HEADS, STATE)),
        "C": n(size=(batch, length, ngroups or HEADS, STATE)),
        "D": n(size=(HEADS, WIDTH)),
        "z": n(size=(batch, length, HEADS, WIDTH)),
        "dt_bias": n(size=HEADS),
        "initial_state": n(size=(batch, HEADS, WIDTH, STATE)),
    }


def ssd_oracle(a, starts, mask, dt_limit=(0.0, np.inf)):
    dt = np.clip(softplus(a["dt"] + a["dt_bias"]), *dt_limit) * mask[..., None]
    scale = a["input_scale"] * mask[..., None] if "input_scale" in a else dt
    share = HEADS // a["B"].shape[2]
    D = a["D"] if a["D"].ndim == 2 else a["D"][:, None]
    h, y = a["initial_state"].copy(), np.zeros_like(a["x"])
    for b, t in np.ndindex(dt.shape[:2]):
        if starts[b, t]:
            h[b] = 0.0
        for k in range(HEADS):
            g = k // share
            added = scale[b, t, k] * np.outer(a["x"][b, t, k], a["B"][b, t, g])
            h[b, k] = np.exp(dt[b, t, k] * a["A"][k]) * h[b, k] + added
            y[b, t, k] = h[b, k] @ a["C"][b, t, g]
    return (y + D * a["x"]) * silu(a["z"]), h


def conv_inputs(rng, batch, length, ngroups):
    n = rng.normal
    return {
        "x": n(size=(batch, length, CHANNELS)),
        "weight": n(size=(WIDTH, CHANNELS)),
        "bias": n(size=CHANNELS),
        "initial_state": n(size=(batch, WIDTH - 1, CHANNELS)),
    }


def conv_oracle(a, starts, mask):
    window, y = a["initial_state"].copy(), np.zeros_like(a["x"])
    for b, t in np.ndindex(mask.shape):
        if not mask[b, t]:
            continue
        if starts[b, t]:
            window[b] = 0.0
        tokens = np.concatenate([window[b], a["x"][b, t : t + 1]])
        y[b, t] = silu((tokens * a["weight"]).sum(axis=0) + a["bias"])
        window[b] = tokens[1:]
    return y, window


SCAN = Recurrence(mamba_ops.selective_scan, ("x", "dt", "B", "C", "z"), scan_inputs, scan_oracle)
SSD = Recurrence(mamba_ops.ssd, ("x", "dt", "B", "C", "z"), ssd_inputs, ssd_oracle)
CONV = Recurrence(mamba_ops.causal_conv1d, ("x",), conv_inputs, conv_oracle)
ALL = {"selective_scan": SCAN, "ssd": SSD, "causal_conv1d": CONV}


def document_starts(segment_ids, mask):
    """True where a real token has another id than the real token before it."""
    starts = np.zeros(mask.shape, bool)
    for b in range(mask.shape[0]):
        real = np.flatnonzero(mask[b])
        starts[b, real[1:]] = segment_ids[b, real[1:]] != segment_ids[b, real[:-1]]
    return starts
