"""A step of the decode loop as a CUDA graph: one call launches all of its kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import keras


class CudaGraph:
    """The kernels of `function(weights, carry, *rest) -> (carry, emitted)`, started without Python between them.

    Carry and emitted are dictionaries, and nobody writes into the rest.

    A graph reads and writes fixed memory, so the new carry is copied over the old one inside the graph, and a carry
    that came out of a call is gone at the next one. Source:
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.

    Args:
        function: takes and returns nested CUDA tensors; the two carries have the same structure, shapes and dtypes.
        weights: tensors that are the same at each call, until `renew`.
        args: an example of the others.
    """

    def __init__(self, function: Callable[..., tuple[Any, Any]], weights: Sequence[Any], args: tuple) -> None:
        import torch

        self._weights = [weight.detach().clone() for weight in weights]
        self._own = own = keras.tree.map_structure(lambda leaf: leaf.detach().clone(), args)
        self._given: tuple[Any, ...] = (None,) * len(args[1:])  # what lies in `own` already
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(beside):  # libraries allocate at their first call, a graph may not
            function(self._weights, *own)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            carry, self._emitted = function(self._weights, *own)
            _copy(keras.tree.flatten(own[0]), keras.tree.flatten(carry))

    def renew(self, weights: Sequence[Any]) -> CudaGraph:
        """The graph with other values of the weights."""
        _copy(self._weights, weights)
        return self

    def __call__(self, *args: Any) -> tuple[Any, Any]:
        _fill(self._own[0], args[0])
        for own, came, given in zip(self._own[1:], args[1:], self._given, strict=True):
            if came is not given:
                _fill(own, came)
        self._given = args[1:]
        self._graph.replay()
        return {**self._own[0]}, {name: tensor.clone() for name, tensor in self._emitted.items()}


def _fill(own: Any, came: Any) -> None:
    """Copy what is not the same, without a walk through all of a state that is."""
    if own is came:
        return
    if isinstance(own, dict):
        for key, value in own.items():
            _fill(value, came[key])
    else:
        _copy(keras.tree.flatten(own), keras.tree.flatten(came))


def _copy(targets: list[Any], sources: list[Any]) -> None:
    """Copy tensors that are not the same, in one kernel for each dtype."""
    import torch

    groups: dict[Any, tuple[list, list]] = defaultdict(lambda: ([], []))
    for target, source in zip(targets, sources, strict=True):
        if target is source:
            continue
        groups[target.dtype][0].append(target)
        groups[target.dtype][1].append(source)
    for pair in groups.values():
        torch._foreach_copy_(*pair)
