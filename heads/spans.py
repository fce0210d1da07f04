"""The best span of a text from the scores of its start and its end."""

from __future__ import annotations

from typing import Any

from keras import ops

from dl_mamba.heads.base import NOWHERE, is_real


def best_spans(logits: Any, max_length: int | None = None, unanswerable: bool = False) -> tuple[Any, Any]:
    """The span of each row with the largest sum of start and end score, start <= end.

    Args:
        logits: (batch, length, 2) float, scores of start and end; `NOWHERE` at padding.
        max_length: longest span in real tokens; None for any length.
        unanswerable: position 0 is no token but stands for no span: no other span starts there.

    Returns:
        spans (batch, 2) int32, first and last position, and their scores (batch,). A row of padding alone has the span
        (-100, -100).

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.spans import best_spans
    >>> spans, _ = best_spans(np.array([[[0.0, 9.0], [5.0, 0.0], [0.0, 3.0]]]))
    >>> np.asarray(spans).tolist()
    [[0, 0]]
    """
    logits = ops.cast(ops.convert_to_tensor(logits), "float32")
    real = is_real(logits[..., 0])
    number = ops.cumsum(ops.cast(real, "int32"), axis=1)
    apart = number[:, None, :] - number[:, :, None]  # (b, start, end)
    allowed = apart >= 0
    if max_length is not None:
        allowed = ops.logical_and(allowed, apart < max_length)
    allowed = ops.logical_and(allowed, ops.logical_and(real[:, :, None], real[:, None, :]))
    if unanswerable:
        token = number > 1
        allowed = ops.logical_and(allowed, ops.equal(token[:, :, None], token[:, None, :]))
    scores = ops.where(allowed, logits[:, :, None, 0] + logits[:, None, :, 1], 2 * NOWHERE)
    best_end = ops.argmax(scores, axis=2)
    best = ops.max(scores, axis=2)
    start = ops.argmax(best, axis=1)[:, None]
    end = ops.take_along_axis(best_end, start, axis=1)
    spans = ops.cast(ops.concatenate([start, end], axis=1), "int32")
    return ops.where(ops.any(real, axis=1)[:, None], spans, -100), ops.max(best, axis=1)
