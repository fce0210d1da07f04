"""A loop over the leading axis, on each backend.

`keras.ops.scan` cannot take two inputs of unknown length on TensorFlow, and no loop of Keras can be differentiated on
all backends under XLA. `scan` can, everywhere: its gradient keeps the carry before each step and runs the steps again,
last one first, so that memory grows with the carry and not with what a step computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import keras
from keras import ops

from dl_mamba.ops.gradients import Tensors, after, vjp, with_gradient

Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def scan(step: Step, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    """Run `carry, y = step(carry, x)` over the leading axis of `xs`.

    Args:
        step: takes and returns tuples of tensors; shapes and dtypes of the carry must not change. It may read no other
            tensor that a gradient is wanted of, and on TensorFlow hold no loop but those `with_gradient`.
        carry: tuple of floating-point tensors.
        xs: tuple of floating-point tensors with equal leading axis, of known or unknown size >= 1.

    Returns:
        The last carry, and the tuple of stacked `y`.
    """
    return _SCAN[keras.backend.backend()](step, carry, xs)


def loop(step: Step, carry: Tensors, xs: Tensors, reverse: bool = False) -> tuple[Tensors, Tensors]:
    """The same, last slice first if `reverse`, where no gradient is wanted or it is written by hand."""
    return _LOOP[keras.backend.backend()](step, carry, xs, reverse)


def native_loop(step: Step, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    """The same, differentiated as the backend does by itself.

    That keeps what every step computes, can be repeated for higher derivatives, and fails on TensorFlow under XLA.
    """
    if keras.backend.backend() != "jax":
        return loop(step, carry, xs)
    import jax

    return jax.lax.scan(step, carry, xs)  # through the places of `loop` a gradient would be quadratic in length


def _scan_jax(step: Step, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    import jax

    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), carry, xs)


def _scan_torch(step: Step, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    import torch

    split = _splitter(carry, xs)
    run = _flat(step, split)

    def forward(*tensors):
        carry, xs = split(tensors)
        before, ys = [], []
        for x in _rows(xs):
            before.append(carry)
            carry, y = step(carry, x)
            ys.append(y)
        ys = tuple(torch.stack(column) for column in zip(*ys, strict=True))
        return (*carry, *ys), (*(torch.stack(column) for column in zip(*before, strict=True)), *xs)

    def backward(residuals, gradients):
        before, items = split(residuals)
        dcarry, dys = gradients[: len(carry)], gradients[len(carry) :]
        dxs = []
        for given, dy in reversed(list(zip(_rows((*before, *items)), _rows(dys), strict=True))):
            dcarry, dx = split(vjp(run, given, (*dcarry, *dy)))
            dxs.append(dx)
        return (*dcarry, *(torch.stack(column[::-1]) for column in zip(*dxs, strict=True)))

    outputs = with_gradient(forward, backward)(*carry, *xs)
    return outputs[: len(carry)], outputs[len(carry) :]


def _rows(columns: Tensors) -> list[Tensors]:
    """The slices of stacked torch tensors along their leading axis."""
    return list(zip(*(column.unbind() for column in columns), strict=True))


def _scan_tensorflow(step: Step, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    split = _splitter(carry, xs)
    run = _flat(step, split)

    def forward(*tensors):
        carry, xs = split(tensors)

        def keep(carry, x):
            after, y = step(carry, x)
            return after, (*y, *carry)

        carry, ys = _loop_tensorflow(keep, carry, xs)
        ys, before = ys[: -len(carry)], ys[-len(carry) :]
        return (*carry, *ys), (*before, *xs)

    def backward(residuals, gradients):
        n = len(carry)
        before, items = split(residuals)

        def step_backward(dcarry, item):
            given, dy = item[: n + len(items)], item[n + len(items) :]
            return tuple(split(vjp(run, given, (*dcarry, *dy))))

        given = (*before, *items, *gradients[n:])
        dcarry, dxs = _loop_tensorflow(step_backward, tuple(gradients[:n]), given, reverse=True)
        return (*dcarry, *dxs)

    outputs = with_gradient(forward, backward)(*carry, *xs)
    return tuple(outputs[: len(carry)]), tuple(outputs[len(carry) :])


def _flat(step: Step, split: Callable) -> Callable[..., Tensors]:
    """The step as a function of its tensors one by one."""

    def run(*tensors):
        carry, y = step(*split(tensors))
        return (*carry, *y)

    return run


def _splitter(*groups: Tensors) -> Callable[[Sequence], list[tuple]]:
    """A function that cuts a sequence into groups of the same lengths."""
    borders = list(pairwise(accumulate(map(len, groups), initial=0)))
    return lambda tensors: [tuple(tensors[start:stop]) for start, stop in borders]


def _loop_tensorflow(step: Step, carry: Tensors, xs: Tensors, reverse: bool = False) -> tuple[Tensors, Tensors]:
    import tensorflow as tf

    if tf.executing_eagerly():
        return _loop_eagerly(step, carry, xs, reverse)
    size = xs[0].shape[0] or tf.shape(xs[0])[0]
    step = _traced_step(step, carry, xs)
    ys = step.structured_outputs[1]
    arrays = _places(ys, size, xs[-1])

    def body(i, carry, arrays):
        at = size - 1 - i if reverse else i
        carry, y = step(carry, tuple(x[at] for x in xs))
        return i + 1, carry, tuple(array.write(at, value) for array, value in zip(arrays, y, strict=True))

    _, carry, arrays = tf.while_loop(lambda i, *_: i < size, body, (0, carry, arrays), maximum_iterations=size)
    return carry, tuple(array.stack() for array in arrays)


def _places(ys: Tensors, size: Any, x: Any) -> Tensors:
    """TensorArrays for outputs like ys, which wait for x where all sizes are known."""
    import tensorflow as tf

    arrays = tuple(tf.TensorArray(y.dtype, size=size, element_shape=y.shape) for y in ys)
    if not (isinstance(size, int) and x.dtype.is_floating and all(y.shape.is_fully_defined() for y in ys)):
        return arrays
    zeros = (_zeros((size, *y.shape), y.dtype, x) for y in ys)
    return tuple(array.unstack(start) for array, start in zip(arrays, zeros, strict=True))


def _zeros(shape: tuple[int, ...], dtype: Any, x: Any) -> Any:
    """Zeros for what a loop puts out, not there before x is, of a gradient that of the output.

    XLA would take and clear memory for them, for all loops of a program, at once.
    """
    return ops.broadcast_to(after(x, ops.zeros((), keras.backend.standardize_dtype(dtype))), shape)


def _loop_eagerly(step: Step, carry: Tensors, xs: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    slices = list(zip(*(ops.unstack(x) for x in xs), strict=True))
    ys = []
    for x in reversed(slices) if reverse else slices:
        carry, y = step(carry, x)
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, tuple(ops.stack(column) for column in zip(*ys, strict=True))


def _loop_torch(step: Step, carry: Tensors, xs: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    """Outputs go where they stay while they are in the cache; autograd would keep a version of that place for each."""
    import torch

    if torch.is_grad_enabled():
        return _loop_eagerly(step, carry, xs, reverse)
    items = list(enumerate(_rows(xs)))
    columns = ()
    for i, x in reversed(items) if reverse else items:
        carry, ys = step(carry, x)
        columns = columns or tuple(y.new_empty((len(items), *y.shape)) for y in ys)
        for column, y in zip(columns, ys, strict=True):
            column[i] = y
    return carry, columns


def _traced_step(step: Step, carry: Tensors, xs: Tensors) -> Any:
    """The step as a graph, which knows dtypes and static shapes of what it returns."""
    import tensorflow as tf

    spec = lambda x: tf.TensorSpec(x.shape, x.dtype)  # noqa: E731
    carry_spec = tf.nest.map_structure(spec, carry)
    x_spec = tuple(tf.TensorSpec(x.shape[1:], x.dtype) for x in xs)
    return tf.function(step, autograph=False).get_concrete_function(carry_spec, x_spec)


def _loop_jax(step: Step, carry: Tensors, xs: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    import jax
    from jax.lax import dynamic_index_in_dim, dynamic_update_index_in_dim

    size = xs[0].shape[0]
    _, ys = jax.eval_shape(step, carry, tuple(x[0] for x in xs))
    places = tuple(_zeros((size, *y.shape), y.dtype, xs[-1]) for y in ys)

    def body(i, state):
        carry, places = state
        at = size - 1 - i if reverse else i
        carry, ys = step(carry, tuple(dynamic_index_in_dim(x, at, keepdims=False) for x in xs))
        return carry, tuple(dynamic_update_index_in_dim(*pair, at, 0) for pair in zip(places, ys, strict=True))

    return jax.lax.fori_loop(0, size, body, (carry, places))


_LOOP = {"jax": _loop_jax, "torch": _loop_torch, "tensorflow": _loop_tensorflow}
_SCAN = {"jax": _scan_jax, "torch": _scan_torch, "tensorflow": _scan_tensorflow}
