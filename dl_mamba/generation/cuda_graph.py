"""A step of the decode loop as a CUDA graph: one call launches all of its kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import keras


class CudaGraph:
    """The kernels of `function(weights, carry, *rest) -> (carry, emitted)`, started without Python between them.

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

        self._structure, self._weights = args, [weight.detach().clone() for weight in weights]
        self._inputs = [leaf.detach().clone() for leaf in keras.tree.flatten(args)]
        own, beside = self._packed(), torch.cuda.Stream()
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
        _copy(self._inputs, keras.tree.flatten(args))
        self._graph.replay()
        return self._packed()[0], keras.tree.map_structure(lambda leaf: leaf.clone(), self._emitted)

    def _packed(self) -> Any:
        return keras.tree.pack_sequence_as(self._structure, self._inputs)


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
