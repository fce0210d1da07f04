"""Rows of an embedding table in the dtype of the residual stream, for a few tokens."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dl_mamba.ops.kernels.launch import launch, packed

BLOCK = 1024  # columns of a program


def embedded(ids: Any, table: Any, dtype: str) -> Any:
    """(rows, 1) ids inside the table (n, width) to (rows, 1, width)."""
    rows, width = ids.shape[0], table.shape[1]
    return launch(
        _embedded,
        (rows, -(-width // BLOCK)),
        [packed(ids), packed(table)],
        [((rows, 1, width), dtype)],
        early=(1,),
        WIDTH=width,
        BLOCK=BLOCK,
        num_warps=4,
        num_stages=1,
    )[0]


@triton.jit
def _embedded(ids, table, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()  # for the ids
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(ids + row).to(tl.int64) * WIDTH
    value = tl.load(table + at + column, mask=column < WIDTH, other=0.0)
    tl.store(y + row.to(tl.int64) * WIDTH + column, value.to(y.dtype.element_ty), mask=column < WIDTH)
