"""A function of torch tensors as the list of kernels that it ran: called again, it pays for nothing but them.

A Keras model spends about as long in Python as in its kernels when it reads one token. The recording also leaves out
of the repeated part what depends on the weights alone, such as -exp(A_log); `Recording.weights` computes that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from dl_mamba.ops.kernels import launch


class Recording:
    """The kernels of `function(*args)`.

    Args:
        function: takes and returns nested tensors. It must run the same kernels whatever the values are.
        args: an example. Shapes and dtypes of later arguments must be the same.
        captured: the repeated part becomes a CUDA graph. Its kernels may write a new state over the old one, which
            then is gone, and begin with what is there already before the kernel ahead of them has ended.
    """

    def __init__(self, function: Callable[..., Any], args: tuple, captured: bool = False) -> None:
        import torch

        flat = keras.tree.flatten(args)  # dictionaries in the order of their keys, however they were made
        graph, constants = torch.fx.Graph(), torch.nn.Module()
        with torch.no_grad():
            tensors = [tensor.detach() for tensor in flat]  # objects of their own, even if one came twice
            with _recorder(graph, constants, tensors) as recorder, _launches_to(recorder):
                outputs = function(*keras.tree.pack_sequence_as(args, tensors))
        self._outputs = keras.tree.map_structure(lambda tensor: 0, outputs)
        graph.output([recorder.node(tensor) for tensor in keras.tree.flatten(outputs)])
        graph.eliminate_dead_code()
        fixed = _fixed(graph)
        if captured:
            _let_loose(graph, fixed)
        self._once, self._repeated = (torch.fx.GraphModule(constants, part) for part in _split(graph, fixed))

    def weights(self) -> Sequence[Any]:
        """What depends on the weights alone, for their present values."""
        import torch

        with torch.no_grad():
            return self._once.forward()

    def __call__(self, weights: Sequence[Any], *args: Any) -> Any:
        outputs = self._repeated.forward(*keras.tree.flatten(args), *weights)
        return keras.tree.pack_sequence_as(self._outputs, outputs)


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
            node.meta["memory"] = tensor.untyped_storage().data_ptr()
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
            return self.record(kernel, args, kwargs or {})

        def record(self, kernel: Callable, args: Sequence, kwargs: dict) -> Any:
            node = graph.call_function(kernel, *pytree.tree_map(self.node, (tuple(args), kwargs)))
            result = kernel(*args, **kwargs)
            if isinstance(result, torch.Tensor):
                self.keep(result, node)
            elif isinstance(result, tuple | list):
                for i, tensor in enumerate(result):
                    self.keep(tensor, graph.call_function(operator.getitem, (node, i)))
            return result

    return Recorder()


@contextmanager
def _launches_to(recorder: Any) -> Iterator[None]:
    """Let launches of Triton's kernels, which torch does not dispatch, become nodes too."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    start = launch._LAUNCH["torch"]

    def recorded(kernel, grid, inputs, outputs, options, over, early):
        fixed = [None if isinstance(value, torch.Tensor) else value for value in inputs]

        def again(*tensors, **rights):
            remaining = iter(tensors)
            inputs = [next(remaining) if v is None else v for v in fixed]
            return start(kernel, grid, inputs, outputs, options, over, early, **rights)

        tensors = [i for i, value in enumerate(fixed) if value is None]
        again.over, again.early = ([tensors.index(i) for i in places] for places in (over, early or ()))
        with _disable_current_modes():
            return recorder.record(again, [value for value in inputs if isinstance(value, torch.Tensor)], {})

    launch._LAUNCH["torch"] = recorded
    try:
        yield
    finally:
        launch._LAUNCH["torch"] = start


def _let_loose(graph: Any, fixed: list[Any]) -> None:
    """Let kernels write over states that nothing else reads, and begin early with weights and arguments."""
    there = {*fixed, *(node for node in graph.nodes if node.op == "placeholder")}
    for node in graph.nodes:
        over, early = ([node.args[i] for i in getattr(node.target, name, ())] for name in ("over", "early"))
        reuse = over and all(source.op == "placeholder" and [*source.users] == [node] for source in over)
        overlap = early and all(source in there for source in early)
        node.kwargs = {**node.kwargs, **({"reuse": True} if reuse else {}), **({"overlap": True} if overlap else {})}


def _split(graph: Any, fixed: list[Any]) -> tuple[Any, Any]:
    """The part that needs weights only, and the part that takes its results behind the arguments."""
    import torch

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

    written = {node.meta.get("memory") for kernel in graph.nodes for node in _written_by(kernel)}
    fixed: dict[Any, None] = {}
    for node in graph.nodes:
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        barred = drawn or node.meta.get("memory") in written or _written_by(node)
        if node.op in ("call_function", "get_attr") and not barred and all(n in fixed for n in node.all_input_nodes):
            fixed[node] = None
    return list(fixed)


def _written_by(kernel: Any) -> list[Any]:
    """The nodes into whose memory a node of a graph writes."""
    import torch

    found: list[Any] = []
    schema = getattr(kernel.target, "_schema", None)
    for i, argument in enumerate(schema.arguments if schema else ()):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kernel.args[i] if i < len(kernel.args) else kernel.kwargs.get(argument.name)
            torch.fx.node.map_arg(given, found.append)
    return found
