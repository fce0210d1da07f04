"""An op from its kernels, with its gradient; on JAX with a rule for `jax.vmap`, which launches know nothing of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import ops

from dl_mamba.ops.gradients import with_gradient

Tensor = Any
Tensors = tuple[Any, ...]


def bind(forward: Callable, backward: Callable, rows: tuple[bool, ...], outputs: Callable | None = None) -> Callable:
    """The op `(*tensors) -> outputs`, to be differentiated once.

    Args:
        forward: `forward(*tensors)` -> (outputs, residuals). The residuals are the tensors, then others; the first
            axis of those and of every output goes over the batch.
        backward: `backward(copies, residuals, gradients)` -> a gradient for each tensor, None for None. Those of
            tensors without batch axis are `over_rows(parts, copies)`.
        rows: which tensors have the batch as their first axis.
        outputs: `outputs(*tensors)` -> what `forward` returns first, for calls of which no gradient is wanted.
    """
    outputs = outputs or (lambda *tensors: forward(*tensors)[0])
    if keras.backend.backend() != "jax":
        return with_gradient(forward, partial(backward, None), outputs)
    return with_gradient(
        _forward_mapped(forward, rows), _backward_mapped(backward, rows), _outputs_mapped(outputs, rows)
    )


def over_rows(parts: Tensor, copies: int | None) -> Tensor:
    """The sum of parts (n, ...) of a gradient; of each of `copies` equal shares of them, if that is a number."""
    if copies is None:
        return ops.sum(parts, axis=0)
    return ops.sum(ops.reshape(parts, (copies, -1, *parts.shape[1:])), axis=1)


def _outputs_mapped(outputs, rows):
    return _mapped(lambda _, *tensors: outputs(*tensors), rows, lambda came, axis: tuple(axis(y, True) for y in came))


def _forward_mapped(forward, rows):
    def unfold(came, axis):
        outputs, residuals = came
        own = (*rows, *[True] * (len(residuals) - len(rows)))
        return tuple(axis(y, True) for y in outputs), tuple(map(axis, residuals, own))

    return _mapped(lambda _, *tensors: forward(*tensors), rows, unfold)


def _backward_mapped(backward, rows):
    def call(residuals, gradients):
        count = len(residuals)
        flat = (*residuals, *gradients)
        own = (*rows, *[True] * (len(flat) - len(rows)))
        run = lambda copies, *flat: backward(copies, flat[:count], flat[count:])  # noqa: E731
        return _mapped(run, own, lambda came, axis: tuple(map(axis, came, rows, [True] * len(rows))))(*flat)

    return call


def _mapped(run, rows, unfold, copies=None):
    """`run(copies, *tensors)` as a function of its tensors, of which a mapped axis is folded into the batch.

    `unfold(came, axis)` gives `axis(tensor, folded, summed)` for each tensor of the result: whether its first axis is
    the batch, or whether it is `over_rows`.
    """
    import jax

    function = jax.custom_batching.custom_vmap(partial(run, copies))

    @function.def_vmap
    def rule(size, mapped, *tensors):
        here = [flag is not None and bool(flag) for flag in mapped]
        if any(flag and not row for flag, row in zip(here, rows, strict=True)):
            return _one_by_one(function, here, tensors)
        folded = [_fold(t, size, flag) if row else t for t, flag, row in zip(tensors, here, rows, strict=True)]
        came = _mapped(run, rows, unfold, size * (copies or 1))(*folded)

        def shape(tensor, folded, summed=False):
            split = tensor is not None and (folded or (summed and copies))
            return _split(tensor, size) if split else tensor

        return unfold(came, shape), unfold(came, lambda t, row, summed=False: None if t is None else row or summed)

    return function


def _fold(tensor, size, mapped):
    if tensor is None:
        return None
    tensor = tensor if mapped else ops.broadcast_to(tensor, (size, *tensor.shape))
    return ops.reshape(tensor, (size * tensor.shape[1], *tensor.shape[2:]))


def _split(tensor, size):
    return ops.reshape(tensor, (size, tensor.shape[0] // size, *tensor.shape[1:]))


def _one_by_one(function, mapped, tensors):
    """Where parameters are mapped, which differ between rows of a folded batch: one call after another."""
    import jax

    def one(given):
        given = iter(given)
        return function(*(next(given) if flag else t for t, flag in zip(tensors, mapped, strict=True)))

    came = jax.lax.map(one, [t for t, flag in zip(tensors, mapped, strict=True) if flag])
    return came, jax.tree.map(lambda _: True, came)
