"""Values and gradients of a function of named arrays, on the backend of this process, in float32 or float64."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()
Arrays = Mapping[str, np.ndarray]


def numpy(tensor: Any) -> np.ndarray:
    """A tensor of any backend, half precision widened."""
    return ops.convert_to_numpy(ops.cast(tensor, "float32" if "16" in str(tensor.dtype) else tensor.dtype))


@contextlib.contextmanager
def float64_enabled():
    """JAX computes in float64 only inside this scope; the other backends always can."""
    if BACKEND != "jax":
        yield
        return
    import jax

    with jax.enable_x64(True):
        yield


def values_and_gradients(
    function: Callable[..., tuple], arrays: Arrays, compiled: bool = False
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Outputs of `function(**arrays)`, and the gradients of their fixed random projection.

    Args:
        function: returns a tuple of floating-point tensors.
        arrays: named floating-point arrays; gradients are taken of each.
        compiled: optimised by XLA as users run it. Otherwise TensorFlow runs eagerly, and XLA compiles for JAX as
            fast as it can. On torch, which always runs eagerly, it changes nothing.
    """
    names, given = list(arrays), list(arrays.values())

    def loss_of(*tensors):
        outputs = function(**dict(zip(names, tensors, strict=True)))
        loss = 0.0
        for i, output in enumerate(outputs):
            weights = np.random.default_rng(i).normal(size=output.shape).astype(given[0].dtype)
            loss = loss + ops.sum(ops.multiply(ops.cast(output, given[0].dtype), ops.convert_to_tensor(weights)))
        return loss, outputs

    outputs, gradients = _RUN[BACKEND](loss_of, given, compiled)
    return [numpy(output) for output in outputs], dict(zip(names, (numpy(g) for g in gradients), strict=True))


@contextlib.contextmanager
def optimised_programs(wanted=True):
    """JAX compiles as it does for users, where the tests ask for less."""
    import jax

    jax.config.update("jax_disable_most_optimizations", not wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def _run_jax(loss_of, given, compiled):
    import jax

    run = jax.value_and_grad(loss_of, argnums=tuple(range(len(given))), has_aux=True)
    with optimised_programs(compiled):
        (_, outputs), gradients = jax.jit(run)(*given)  # eager JAX would compile op by op, which takes longer
    return outputs, gradients


def _run_torch(loss_of, given, compiled):
    import torch

    tensors = [torch.tensor(array, requires_grad=True) for array in given]
    loss, outputs = loss_of(*tensors)
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, gradients, strict=True)]
    return [output.detach() for output in outputs], gradients


def _run_tensorflow(loss_of, given, compiled):
    import tensorflow as tf

    def run(*tensors):
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss, outputs = loss_of(*tensors)
        return outputs, tape.gradient(loss, tensors, unconnected_gradients="zero")

    tensors = [tf.constant(array) for array in given]
    return (tf.function(run, jit_compile=True) if compiled else run)(*tensors)


_RUN = {"jax": _run_jax, "torch": _run_torch, "tensorflow": _run_tensorflow}


def relative_error(came: Any, wanted: Any) -> float:
    """Largest difference, relative to the largest value wanted."""
    came, wanted = np.asarray(came, "float64"), np.asarray(wanted, "float64")
    assert came.shape == wanted.shape, f"{came.shape} is not {wanted.shape}"
    return float(np.max(np.abs(came - wanted), initial=0.0) / max(np.max(np.abs(wanted), initial=0.0), 1e-30))


def assert_close(came: Any, wanted: Any, tolerance: float, what: str = "value") -> None:
    """Finite, and within a relative tolerance."""
    assert np.all(np.isfinite(came)), f"{what} is not finite"
    error = relative_error(came, wanted)
    assert error <= tolerance, f"{what} differs by {error:.2e} of its largest value; {tolerance:.0e} is allowed"


def assert_laws_hold(came: tuple, wanted: tuple, values: float = 1e-5, gradients: float = 1e-4) -> None:
    """Compare (outputs, gradients) pairs; the defaults are the bounds of the project's numerics."""
    for i, (a, b) in enumerate(zip(came[0], wanted[0], strict=True)):
        assert_close(a, b, values, f"output {i}")
    assert came[1].keys() == wanted[1].keys()
    for name in wanted[1]:
        assert_close(came[1][name], wanted[1][name], gradients, f"gradient of {name}")


def exact_products():
    """On JAX products of float32 in float32, where a GPU takes tf32 unless told otherwise."""
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.default_matmul_precision("highest")
