"""Milliseconds of a function on a GPU, from torch or JAX: what the GPU needs, and what a caller waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

Inputs = dict[str, Any]


def forward_of(op: Callable, inputs: Inputs) -> Callable[[], Any]:
    """A call of the op of which no gradient is wanted."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.no_grad()(lambda: op(**inputs))
    import jax

    compiled = jax.jit(lambda given: op(**given))
    return lambda: compiled(inputs)


def both_of(op: Callable, inputs: Inputs) -> Callable[[], Any]:
    """The op, and its gradients with respect to every input."""
    if keras.backend.backend() == "torch":
        import torch

        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
        gradient = torch.randn_like(op(**inputs))
        return lambda: torch.autograd.grad(op(**leaves), list(leaves.values()), gradient)
    import jax

    def both(given, gradient):
        result, backward = jax.vjp(lambda given: op(**given), given)
        return result, backward(gradient)  # without its result XLA would leave the op itself out

    result = jax.eval_shape(lambda given: op(**given), inputs)
    gradient = keras.ops.cast(keras.random.normal(result.shape), result.dtype)
    compiled = jax.jit(both)
    return lambda: compiled(inputs, gradient)


def on_gpu(function: Callable[[], Any]) -> float:
    """Torch: a replayed CUDA graph, caches flushed between replays. JAX: calls back to back, at least 0.05 ms."""
    return _ON_GPU[keras.backend.backend()](function)


def waited(function: Callable[[], Any], repeats: int = 15) -> float:
    """Median from the call until its result is there."""
    _wait(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        _wait(function())
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def _wait(result: Any) -> None:
    if keras.backend.backend() == "torch":
        import torch

        torch.cuda.synchronize()
    else:
        import jax

        jax.block_until_ready(result)


def _graph_of_torch(function):
    import torch
    from triton.testing import do_bench

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return do_bench(graph.replay, warmup=10, rep=60, return_mode="median")


def _back_to_back_on_jax(function, count=20):
    _wait(function())
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(count):
            result = function()
        _wait(result)
        times.append((time.perf_counter() - start) / count)
    return 1e3 * float(np.median(times))


_ON_GPU = {"torch": _graph_of_torch, "jax": _back_to_back_on_jax}
