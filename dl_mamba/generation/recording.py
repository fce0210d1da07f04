"""A function of torch tensors as the list of kernels that it ran: called again, it pays for nothing but them.

A Keras model spends about as long in Python as in its kernels when it reads one token. The recording also leaves out
of the repeated part what depends on the weights alone, such as -exp(A_log); that is computed anew by `Recording.bound`.
"""

from __future__ import annotations

import operator
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
        from torch.utils import _pytree as pytree

        flat, structure = pytree.tree_flatten(args)
        graph, constants = torch.fx.Graph(), torch.nn.Module()
        with torch.no_grad():
            tensors = [tensor.detach() for tensor in flat]  # objects of their own, even if one came twice
            with _recorder(graph, constants, tensors) as recorder:
                outputs, self._outputs = pytree.tree_flatten(function(*pytree.tree_unflatten(tensors, structure)))
        graph.output([recorder.node(tensor) for tensor in outputs])
        graph.eliminate_dead_code()
        self._once, self._repeated = (torch.fx.GraphModule(constants, part) for part in _split(graph))
        self._flatten, self._unflatten = pytree.tree_leaves, pytree.tree_unflatten

    def bound(self) -> Callable[..., Any]:
        """The function for the present values of the weights."""
        import torch

        with torch.no_grad():
            weights = self._once.forward()

        def call(*args):
            return self._unflatten(self._repeated.forward(*self._flatten(args), *weights), self._outputs)

        return call


def _recorder(graph: Any, constants: Any, inputs: list[Any]) -> Any:
    """A context in which every kernel becomes a node; a tensor that comes from nowhere is a constant."""
    import torch
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.nodes: dict[int, Any] = {}
            self.alive: list[Any] = []  # an id must not be given to a second tensor
            for i, tensor in enumerate(inputs):
                self.keep(tensor, graph.placeholder(f"input_{i}"))

        def keep(self, tensor: Any, node: Any) -> None:
            self.nodes[id(tensor)] = node
            self.alive.append(tensor)

        def node(self, value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if id(value) not in self.nodes:
                name = f"constant_{len(self.alive)}"
                constants.register_buffer(name, value.detach())
                self.keep(value, graph.get_attr(name))
            return self.nodes[id(value)]

        def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
            node = graph.call_function(kernel, *pytree.tree_map(self.node, (tuple(args), kwargs or {})))
            result = kernel(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.keep(result, node)
            elif isinstance(result, tuple | list):
                for i, tensor in enumerate(result):
                    self.keep(tensor, graph.call_function(operator.getitem, (node, i)))
            return result

    return Recorder()


def _split(graph: Any) -> tuple[Any, Any]:
    """The part that needs weights only, and the part that takes its results behind the arguments."""
    import torch

    fixed = _fixed(graph)
    once, repeated = torch.fx.Graph(), torch.fx.Graph()
    made: dict[Any, Any] = {}
    for node in fixed:
        made[node] = once.node_copy(node, made.__getitem__)
    crossing = [node for node in fixed if any(user not in made for user in node.users)]
    once.output([made[node] for node in crossing])
    inside = {node: repeated.node_copy(node) for node in graph.nodes if node.op == "placeholder"}
    inside |= {node: repeated.placeholder(f"weight_{i}") for i, node in enumerate(crossing)}
    for node in graph.nodes:
        if node not in made and node not in inside:
            inside[node] = repeated.node_copy(node, inside.__getitem__)
    return once, repeated


def _fixed(graph: Any) -> list[Any]:
    """Nodes that depend on no argument, are not written to, and draw no random number, in order."""
    import torch

    written, fixed = set(), {}
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if node in written or (schema is not None and schema.is_mutable):
            written.update((node, *node.all_input_nodes))
    for node in graph.nodes:
        barred = node in written or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if node.op in ("call_function", "get_attr") and not barred and all(n in fixed for n in node.all_input_nodes):
            fixed[node] = None
    return list(fixed)
