"""A function of torch tensors as the list of kernels that it ran: called again, it pays for nothing but them.

A Keras model spends about as long in Python as in its kernels when it reads one token. The recording also leaves out
of the repeated part what depends on the weights alone, such as -exp(A_log); that is computed anew by `Recording.bound`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Recording:
    """The kernels of `function(*args)`.

    Args:
        function: takes and returns nested tensors. It must run the same kernels whatever the values are.
        args: an example. Shapes and dtypes of later arguments must be the same.
    """

    def __init__(self, function: Callable[..., Any], args: tuple) -> None:
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx
        from torch.utils import _pytree as pytree

        flat, structure = pytree.tree_flatten(args)

        def flat_function(*tensors):
            outputs, self._outputs = pytree.tree_flatten(function(*pytree.tree_unflatten(list(tensors), structure)))
            return outputs

        with torch.no_grad():
            self._once, self._repeated = _split(make_fx(flat_function)(*flat))
        self._flatten, self._unflatten = pytree.tree_leaves, pytree.tree_unflatten

    def bound(self) -> Callable[..., Any]:
        """The function for the present values of the weights."""
        import torch

        with torch.no_grad():
            weights = self._once.forward()

        def call(*args):
            outputs = self._repeated.forward(*self._flatten(args), *weights)
            return self._unflatten(list(outputs), self._outputs)

        return call


def _split(traced: Any) -> tuple[Any, Any]:
    """The part that needs weights only, and the part that takes its results behind the arguments."""
    import torch

    fixed = _fixed(traced.graph)
    once, repeated = torch.fx.Graph(), torch.fx.Graph()
    made: dict[Any, Any] = {}
    for node in traced.graph.nodes:
        if node in fixed:
            made[node] = once.node_copy(node, made.__getitem__)
    crossing = [node for node in fixed if any(user not in fixed for user in node.users)]
    once.output([made[node] for node in crossing])
    inside = {node: repeated.node_copy(node) for node in traced.graph.nodes if node.op == "placeholder"}
    for i, node in enumerate(crossing):
        inside[node] = repeated.placeholder(f"weight_{i}")
    for node in traced.graph.nodes:
        if node not in fixed and node.op not in ("placeholder", "output"):
            inside[node] = repeated.node_copy(node, inside.__getitem__)
    (result,) = next(node for node in traced.graph.nodes if node.op == "output").args
    repeated.output([inside[node] for node in result])
    return torch.fx.GraphModule(traced, once), torch.fx.GraphModule(traced, repeated)


def _fixed(graph: Any) -> list[Any]:
    """Nodes that depend on no argument and are not written to, in order."""
    fixed: dict[Any, None] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output") or any(_writes(n) for n in (node, *node.users)):
            continue
        if all(source in fixed for source in node.all_input_nodes):
            fixed[node] = None
    return list(fixed)


def _writes(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
