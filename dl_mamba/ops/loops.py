"""A loop over the leading axis, and a function with a hand-written gradient, on each backend.

`keras.ops.scan` cannot take two inputs of unknown length on TensorFlow, and no loop of Keras can be differentiated on
all backends under XLA. The ops that need a loop therefore write their own gradient, so that `scan` below only ever runs
forward, and `with_gradient` ties the two halves together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

Tensors = tuple[Any, ...]
Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def scan(step: Step, carry: Tensors, xs: Tensors, reverse: bool = False) -> tuple[Tensors, Tensors]:
    """Run `carry, y = step(carry, x)` over the leading axis of `xs`, last slice first if `reverse`.

    Args:
        step: takes and returns tuples of tensors; shapes and dtypes of the carry must not change.
        carry: tuple of tensors.
        xs: tuple of tensors with equal leading axis, of known or unknown size >= 1.
        reverse: walk the leading axis backwards; `ys[i]` still belongs to `xs[i]`.

    Returns:
        The last carry, and the tuple of stacked `y`. No gradient is defined on TensorFlow under XLA.
    """
    return _SCAN[keras.backend.backend()](step, carry, xs, reverse)


def _scan_jax(step: Step, carry: Tensors, xs: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    import jax

    return jax.lax.scan(step, carry, xs, reverse=reverse)


def _scan_eagerly(step: Step, carry: Tensors, xs: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    slices = list(zip(*(ops.unstack(x) for x in xs), strict=True))
    ys = []
    for x in reversed(slices) if reverse else slices:
        carry, y = step(carry, x)
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, tuple(ops.stack(column) for column in zip(*ys, strict=True))


def _scan_tensorflow(step: Step, carry: Tensors, xs: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    import tensorflow as tf

    if tf.executing_eagerly():
        return _scan_eagerly(step, carry, xs, reverse)
    size = xs[0].shape[0] or tf.shape(xs[0])[0]
    specs = tf.nest.map_structure(lambda y: (y.dtype, y.shape), _trace_step(step, carry, xs))
    arrays = tuple(tf.TensorArray(dtype, size=size, element_shape=shape) for dtype, shape in specs)

    def body(i, carry, arrays):
        at = size - 1 - i if reverse else i
        carry, y = step(carry, tuple(x[at] for x in xs))
        return i + 1, carry, tuple(array.write(at, value) for array, value in zip(arrays, y, strict=True))

    _, carry, arrays = tf.while_loop(lambda i, *_: i < size, body, (0, carry, arrays), maximum_iterations=size)
    return carry, tuple(array.stack() for array in arrays)


def _trace_step(step: Step, carry: Tensors, xs: Tensors) -> Tensors:
    """Dtypes and static shapes of one `y`, without running the step."""
    import tensorflow as tf

    spec = lambda x: tf.TensorSpec(x.shape, x.dtype)  # noqa: E731
    carry_spec = tf.nest.map_structure(spec, carry)
    x_spec = tuple(tf.TensorSpec(x.shape[1:], x.dtype) for x in xs)
    return tf.function(step).get_concrete_function(carry_spec, x_spec).structured_outputs[1]


_SCAN = {"jax": _scan_jax, "torch": _scan_eagerly, "tensorflow": _scan_tensorflow}

Forward = Callable[..., tuple[Tensors, Tensors]]
Backward = Callable[[Tensors, Tensors], Tensors]


def with_gradient(forward: Forward, backward: Backward) -> Callable[..., Tensors]:
    """Make a function of tensors whose reverse-mode gradient is `backward`.

    Args:
        forward: `forward(*args)` -> `(outputs, residuals)`, both tuples. An argument may be None.
        backward: `backward(residuals, output_gradients)` -> one gradient for each argument, None for None.

    Returns:
        A function of the same arguments that returns `outputs`. It can be differentiated once.
    """
    return _WITH_GRADIENT[keras.backend.backend()](forward, backward)


def _with_gradient_jax(forward: Forward, backward: Backward) -> Callable[..., Tensors]:
    import jax

    function = jax.custom_vjp(lambda *args: forward(*args)[0])
    function.defvjp(forward, backward)
    return function


def _with_gradient_torch(forward: Forward, backward: Backward) -> Callable[..., Tensors]:
    import torch

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            outputs, residuals = forward(*args)
            ctx.save_for_backward(*residuals)
            return outputs

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *gradients):
            return backward(ctx.saved_tensors, gradients)

    def function(*args):
        return Function.apply(*args) if torch.is_grad_enabled() else forward(*args)[0]

    return function


def _with_gradient_tensorflow(forward: Forward, backward: Backward) -> Callable[..., Tensors]:
    import tensorflow as tf

    def function(*args):
        present = [arg is not None for arg in args]

        @tf.custom_gradient
        def run(*tensors):
            remaining = iter(tensors)
            outputs, residuals = forward(*(next(remaining) if here else None for here in present))

            def gradient(*gradients):
                return _select(backward(residuals, gradients), present)

            return outputs, gradient

        return run(*_select(args, present))

    return function


def _select(values: Sequence[Any], present: Sequence[bool]) -> list[Any]:
    return [value for value, here in zip(values, present, strict=True) if here]


_WITH_GRADIENT = {"jax": _with_gradient_jax, "torch": _with_gradient_torch, "tensorflow": _with_gradient_tensorflow}
