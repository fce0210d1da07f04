"""Residual blocks as one loop over their stacked weights: a program that holds one block, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from dl_mamba.layers.stacked import Run, StackedVariable
from dl_mamba.ops.loops import scan


def scanned(
    blocks: Sequence[keras.Layer],
    weights: Sequence[StackedVariable],
    hidden: Any,
    mask: Any,
    segment_ids: Any,
    keep: bool,
) -> list[Any]:
    """The residual stream after the last block, or after each one if `keep`.

    Of a block its input alone is kept for the gradient, as `scan` does.
    """

    def step(carry, weights):
        after = _with_weights(blocks[0], weights, carry[0], mask=mask, segment_ids=segment_ids)
        return (after,), ((after,) if keep else ())

    (last,), each = scan(step, (hidden,), tuple(map(ops.convert_to_tensor, weights)))
    return [each[0][i] for i in range(len(blocks))] if keep else [last]


def taken_apart(runs: Sequence[Run]) -> list[Callable]:
    """The blocks one by one, for torch, where the gradient of a single slice is as large as that of the whole stack."""
    calls = []
    for blocks, weights in runs:
        rows = zip(*(ops.unstack(ops.convert_to_tensor(stacked)) for stacked in weights), strict=True)
        calls += [partial(_with_weights, block, row) for block, row in zip(blocks, rows, strict=True)]
    return calls


def _with_weights(block: keras.Layer, weights: Sequence[Any], *args: Any, **options: Any) -> Any:
    with keras.StatelessScope(state_mapping=list(zip(block.variables, weights, strict=True))):
        return block(*args, **options)
