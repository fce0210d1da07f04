"""Functions whose gradient is written by hand, or runs them again, on each backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import keras
from keras import ops

Tensors = tuple[Any, ...]
Forward = Callable[..., tuple[Tensors, Tensors]]
Backward = Callable[[Tensors, Tensors], Tensors]


def with_gradient(
    forward: Forward, backward: Backward, outputs: Callable[..., Tensors] | None = None
) -> Callable[..., Tensors]:
    """Make a function of tensors whose reverse-mode gradient is `backward`.

    Args:
        forward: `forward(*args)` -> `(outputs, residuals)`, both tuples. An argument may be None.
        backward: `backward(residuals, output_gradients)` -> one gradient for each argument, None for None.
        outputs: `outputs(*args)` -> what `forward` returns first, for calls of which no gradient is wanted.

    Returns:
        A function of the same arguments that returns `outputs`. It can be differentiated once.
    """
    outputs = outputs or (lambda *args: forward(*args)[0])
    return _WITH_GRADIENT[keras.backend.backend()](forward, backward, outputs)


def _with_gradient_jax(forward: Forward, backward: Backward, outputs: Callable) -> Callable[..., Tensors]:
    import jax

    function = jax.custom_vjp(outputs)
    function.defvjp(forward, backward)
    return function


def _with_gradient_torch(forward: Forward, backward: Backward, outputs: Callable) -> Callable[..., Tensors]:
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
        return Function.apply(*args) if torch.is_grad_enabled() else outputs(*args)

    return function


def _with_gradient_tensorflow(forward: Forward, backward: Backward, outputs: Callable) -> Callable[..., Tensors]:
    import tensorflow as tf

    forward, backward = _traced_once(forward), _traced_once(backward)

    def function(*args):
        present = [arg is not None for arg in args]

        @tf.custom_gradient
        def run(*tensors):
            remaining = iter(tensors)
            outputs, residuals = forward(*(next(remaining) if here else None for here in present))

            def gradient(*gradients):
                return _select(backward(residuals, gradients), present)

            return outputs, gradient

        return run(*map(tf.convert_to_tensor, _select(args, present)))  # it takes no variables

    return function


def _traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of which a graph holds one trace for all calls with tensors of the same shapes.

    `tf.function` alone would take the trace of an unknown size for a known one, forward or backward only.
    """
    import tensorflow as tf

    @cache
    def traced(_: Any) -> Any:
        return tf.function(function, autograph=False)

    def run(*args: Any) -> Any:
        if tf.executing_eagerly():
            return function(*args)
        kind = lambda x: None if x is None else (tuple(x.shape), x.dtype)  # noqa: E731
        return traced(tf.nest.map_structure(kind, args))(*args)

    return run


def _select(values: Sequence[Any], present: Sequence[bool]) -> list[Any]:
    return [value for value, here in zip(values, present, strict=True) if here]


_WITH_GRADIENT = {"jax": _with_gradient_jax, "torch": _with_gradient_torch, "tensorflow": _with_gradient_tensorflow}


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(*args)` -> tensor, of which the gradient keeps the arguments alone and runs it again.

    Args:
        function: of floating-point tensors, of which some may be None. It may read no other tensor.
    """

    def backward(args, gradients):
        args = tuple(None if arg is None else after(gradients[0], arg) for arg in args)
        return vjp(lambda *args: (function(*args),), args, gradients)

    differentiable = with_gradient(lambda *args: ((function(*args),), args), backward)
    return lambda *args: differentiable(*args)[0]


def after(gradient: Any, x: Any) -> Any:
    """x, which is not there before the gradient is.

    XLA's CPU compiler would take what was computed from x before, and keep it, for what is to be computed again; or
    compute it as soon as it can, before the first of all gradients. Both ends of the gradient count: it may be joined
    of parts. The zero is a quotient, which XLA computes once; other readers of x would go on reading the gradient.
    """
    if keras.backend.backend() == "torch":
        return x
    flat = ops.ravel(gradient)
    ends = ops.sum(flat[:1]) + ops.sum(flat[-1:])
    zero = ops.where(ops.isnan(ends), ends, 0.0) / (1.0 + ops.abs(ends))
    return x + ops.cast(zero, x.dtype)


def vjp(function: Callable[..., Tensors], inputs: Tensors, gradients: Tensors) -> Tensors:
    """Gradients of the inputs of `function(*inputs)`, from those of its outputs.

    They are zeros for an input that it ignores, None for one that is None.
    """
    present = [tensor is not None for tensor in inputs]
    filled = lambda tensors: (next(tensors) if here else None for here in present)  # noqa: E731
    run = lambda *tensors: function(*filled(iter(tensors)))  # noqa: E731
    found = _VJP[keras.backend.backend()](run, tuple(_select(inputs, present)), gradients)
    return tuple(filled(iter(found)))


def _vjp_jax(function: Callable[..., Tensors], inputs: Tensors, gradients: Tensors) -> Tensors:
    import jax

    return jax.vjp(function, *inputs)[1](gradients)


def _vjp_torch(function: Callable[..., Tensors], inputs: Tensors, gradients: Tensors) -> Tensors:
    import torch

    with torch.enable_grad():
        inputs = tuple(t.detach().requires_grad_() for t in inputs)
        outputs = function(*inputs)
    return torch.autograd.grad(outputs, inputs, gradients, allow_unused=True, materialize_grads=True)


def _vjp_tensorflow(function: Callable[..., Tensors], inputs: Tensors, gradients: Tensors) -> Tensors:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(*inputs)
    return tape.gradient(outputs, inputs, gradients, unconnected_gradients="zero")


_VJP = {"jax": _vjp_jax, "torch": _vjp_torch, "tensorflow": _vjp_tensorflow}
