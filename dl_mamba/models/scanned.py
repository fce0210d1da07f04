"""Residual blocks as one loop over their stacked weights: a program that holds one block, however many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from dl_mamba.layers.quantized import is_quantized
from dl_mamba.ops.loops import scan


def can_be_scanned(blocks: Sequence[keras.Layer]) -> bool:
    """Whether the blocks differ in the values of their weights alone; quantized ones have integers and statistics."""
    kinds = [[(tuple(v.shape), v.dtype) for v in block.variables] for block in blocks]
    return all(kind == kinds[0] for kind in kinds) and not any(is_quantized(block) for block in blocks)


def scanned(blocks: Sequence[keras.Layer], hidden: Any, mask: Any, segment_ids: Any, keep: bool) -> list[Any]:
    """The residual stream after the last block, or after each one if `keep`.

    Of a block its input alone is kept for the gradient, as `scan` does. The stacked weights take their memory twice.
    """
    first = blocks[0].variables

    def step(carry, weights):
        with keras.StatelessScope(state_mapping=list(zip(first, weights, strict=True))):
            after = blocks[0](carry[0], mask=mask, segment_ids=segment_ids)
        return (after,), ((after,) if keep else ())

    stacked = tuple(_stack(same) for same in zip(*(block.variables for block in blocks), strict=True))
    (last,), each = scan(step, (hidden,), stacked)
    return [each[0][i] for i in range(len(blocks))] if keep else [last]


def _stack(variables: Sequence[keras.Variable]) -> Any:
    return ops.concatenate([ops.expand_dims(variable, 0) for variable in variables])
