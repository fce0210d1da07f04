"""A training step on torch as a CUDA graph: one call starts all kernels of forward pass, backward pass and update."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

PLAIN_STEPS = 2  # of a shape, before its step is captured: they compile kernels and make the optimizer's variables
SHAPES = 8  # batches of further shapes run as they are


def replaces(model: keras.Model) -> bool:
    """Whether the steps of this model shall be graphs: `compile(jit_compile=True)` on torch with an NVIDIA GPU."""
    if keras.backend.backend() != "torch" or not model.jit_compile:
        return False
    import torch

    return torch.cuda.is_available() and not torch.version.hip


class GraphedStep:
    """`model.train_step` of a batch; from the third batch of a shape on, a replay of its kernels.

    Every value that changes from step to step stays on the GPU, apart from the learning rate, which is computed before
    each replay. A step that reads a number from the GPU in order to decide what runs next (gradient accumulation, loss
    scaling) cannot be captured: it goes on as it is, with a warning. Source:
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    Args:
        model: compiled, with weights on the GPU.
        check: raises if a batch is wrong.
    """

    def __init__(self, model: keras.Model, check: Callable[[Any], None]) -> None:
        import torch

        self._model, self._optimizer, self._check = model, model.optimizer, check
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, Callable[[list], Any]] = {}
        self._constants: list[Any] = []  # that the graphs read
        self._steps: Counter[Hashable] = Counter()
        self._failed = False

    def __call__(self, batches: list[Any]) -> dict[str, Any]:
        import torch

        self._check(batches[0])
        batch = keras.tree.map_structure(_on_gpu, batches[0])
        given = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
        key = tuple((tuple(leaf.shape), leaf.dtype) for leaf in given), repr(keras.tree.map_structure(type, batch))
        if key not in self._graphs and self._steps[key] >= PLAIN_STEPS and len(self._graphs) < SHAPES:
            self._capture(key, batch)
        if key in self._graphs:
            return self._graphs[key](given)
        self._steps[key] += 1
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # where the capture will run: gradients remember their stream
            logs = self._model.train_step(batch)
        torch.cuda.current_stream().wait_stream(self._stream)
        return logs

    def _capture(self, key: Hashable, batch: Any) -> None:
        import torch

        if self._failed:
            return
        rate = ops.convert_to_tensor(self._optimizer.learning_rate).clone()
        batch = keras.tree.map_structure(lambda leaf: None if leaf is None else leaf.clone(), batch)
        inputs = [leaf for leaf in keras.tree.flatten(batch) if leaf is not None]
        self._model.zero_grad()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph, beside = torch.cuda.CUDAGraph(), _host_copies()
        capture = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="relaxed")
        try:
            with _learning_rate(self._optimizer, rate), beside, capture:
                logs = self._model.train_step(batch)
        except RuntimeError as error:
            self._failed = True
            reason = str(error).splitlines()[0]
            warnings.warn(f"jit_compile=True has no effect: the step cannot be a CUDA graph ({reason}).", stacklevel=4)
            return

        def replay(given: list) -> dict[str, Any]:
            rate.copy_(ops.convert_to_tensor(self._optimizer.learning_rate))
            torch._foreach_copy_(inputs, given)
            graph.replay()
            return {name: value.clone() for name, value in logs.items()}

        self._constants += beside.kept
        self._graphs[key] = replay


def _on_gpu(leaf: Any) -> Any:
    return None if leaf is None else ops.convert_to_tensor(leaf)


@contextmanager
def _learning_rate(optimizer: keras.optimizers.Optimizer, rate: Any) -> Iterator[None]:
    """Let the optimizer read its learning rate from a tensor: schedules decide on the host."""
    optimizer._get_current_learning_rate = lambda: rate
    try:
        yield
    finally:
        del optimizer._get_current_learning_rate


def _host_copies() -> Any:
    """A context in which numbers of the host reach the GPU on a stream of their own, since a graph may not wait."""
    import torch
    from torch.overrides import TorchFunctionMode

    class HostCopies(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[Any] = []
            self._stream = torch.cuda.Stream()

        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if function not in (torch.as_tensor, torch.tensor, torch.Tensor.to) or _is_on_gpu(args[0]):
                return function(*args, **kwargs)
            with torch.cuda.stream(self._stream):
                made = function(*args, **kwargs)
            self.kept.append(made)
            return made

    return HostCopies()


def _is_on_gpu(value: Any) -> bool:
    return getattr(value, "is_cuda", False)
