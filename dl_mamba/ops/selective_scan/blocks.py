"""Loops over the blocks of a sequence, or over the tokens of a block."""

from __future__ import annotations

from dl_mamba.ops.loops import loop


def over_blocks(step, carry, blocks, more=(), reverse=False):
    """`loop` over tuples in which None may stand."""
    present = [v is not None for v in blocks]

    def dense(carry, item):
        remaining = iter(item)
        block = tuple(next(remaining) if here else None for here in present)
        return step(carry, (*block, *remaining))

    return loop(dense, carry, (*(v for v in blocks if v is not None), *more), reverse)
