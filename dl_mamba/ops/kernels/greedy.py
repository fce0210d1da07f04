"""The most probable token of each row, and what the decode loop keeps of it: one read of the logits."""

from __future__ import annotations

from typing import Any

import keras
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from dl_mamba.ops.kernels.launch import launch, packed

BLOCK = 4096  # columns at a time
WARPS = 32


def greedy(logits: Any, done: Any, end: Any, pad: Any) -> tuple[Any, Any, Any]:
    """`dl_mamba.generation.samplers.record` of the first of the largest logits.

    Args:
        logits: (rows, vocab_size).
        done: (rows,) bool, rows that have ended: they get `pad`.
        end: (k,) int32, ids that end a row.
        pad: () int32.

    Returns:
        Tokens (rows,) int32, whether they are real, and which rows have ended now.
    """
    rows, size = logits.shape
    distance = size
    if keras.backend.backend() == "torch" and logits.stride(1) == 1:
        distance = logits.stride(0)  # a slice of the columns stays where it is
    else:
        logits = packed(logits)
    flag = ((rows,), "bool")
    return launch(
        _greedy,
        (rows,),
        [logits, packed(done), packed(end), pad],
        [((rows,), "int32"), flag, flag],
        over={1: 2},
        early=(2, 3),
        ROW=distance,
        V=size,
        ENDS=end.shape[0],
        BLOCK=BLOCK,
        num_warps=WARPS,
        num_stages=1,
    )


@triton.jit
def _greedy(
    logits,
    done,
    end,
    pad,
    token,
    real,
    ended,
    ROW: tl.constexpr,
    V: tl.constexpr,
    ENDS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """`ended` may be `done`."""
    if OVERLAP:
        gdc_wait()  # for the logits
    row = tl.program_id(0)
    logits += row.to(tl.int64) * ROW
    best = tl.full((BLOCK,), -float("inf"), tl.float32)  # of every BLOCK-th column, and where it stands
    place = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, V, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(logits + column, mask=column < V, other=-float("inf")).to(tl.float32)
        place = tl.where(value > best, column, place)
        best = tl.maximum(best, value)
    chosen = tl.min(tl.where(best == tl.max(best, axis=0), place, V), axis=0)
    over = tl.load(done + row) != 0
    chosen = tl.where(over, tl.load(pad), chosen)
    over_now = over
    for i in tl.static_range(ENDS):
        over_now = over_now | (chosen == tl.load(end + i))
    tl.store(token + row, chosen)
    tl.store(real + row, over == 0)
    tl.store(ended + row, over_now)
