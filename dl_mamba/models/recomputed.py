"""A function that keeps only its input for the backward pass and runs again there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from dl_mamba.ops.gradients import after


def recomputed(function: Callable[[Any], Any], x: Any) -> Any:
    """`function(x)`, of which nothing but x and what the function closes over is kept for the gradient."""
    return _recomputed_jax(function, x) if keras.backend.backend() == "jax" else keras.remat(function)(x)


def _recomputed_jax(function: Callable[[Any], Any], x: Any) -> Any:
    """What `jax.checkpoint` does, but the second run waits for the gradient of the output, see `after`."""
    import jax

    converted, closed_over = jax.closure_convert(function, x)
    run = jax.custom_vjp(converted)

    def backward(kept, dy):
        x, closed_over = kept
        return jax.vjp(converted, after(dy, x), *closed_over)[1](dy)

    run.defvjp(lambda x, *closed_over: (converted(x, *closed_over), (x, closed_over)), backward)
    return run(x, *closed_over)
