"""Weights of equal layers in one variable for all of them, of which each layer has a slice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import keras
from keras import ops


class StackedVariable(keras.Variable):
    """One weight of several equal layers, (layers, *shape): what a loop over the layers reads and an optimizer updates.

    The variables that it is made of become its slices, in place: a layer goes on holding the same object.

    Args:
        variables: one of each layer, of equal shape and dtype; all learn, or none.

    Raises:
        ValueError: when it is asked whether it learns while a part of the slices does.

    Example:

    >>> import keras
    >>> from dl_mamba.layers.stacked import StackedVariable
    >>> layers = keras.layers.Dense(2), keras.layers.Dense(2)
    >>> for layer in layers:
    ...     layer.build((None, 3))
    >>> stacked = StackedVariable([layer._kernel for layer in layers])
    >>> _ = layers[1].kernel.assign(keras.ops.ones((3, 2)))
    >>> tuple(stacked.shape), float(keras.ops.convert_to_numpy(stacked)[1].sum())
    ((2, 3, 2), 6.0)
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        first = variables[0]
        self.slices: list[VariableSlice] = []
        super().__init__(
            ops.stack([variable.value for variable in variables]),
            dtype=first.dtype,
            trainable=first.trainable,
            autocast=first._autocast,
            name=first.name,
            layout=_stacked_layout(first._layout),
        )
        self._path = _path(variables)
        for index, variable in enumerate(variables):
            variable.__class__ = VariableSlice
            variable._become_slice(self, index)
        self.slices = list(variables)

    @property
    def trainable(self) -> bool:
        learn = {part._trainable for part in self.slices} or {self._trainable}
        if len(learn) > 1:
            raise ValueError(
                f"a part of the layers of {self.path} learns, but with scan_layers=True they share one variable; "
                "freeze whole blocks by dl_mamba.training.freeze, add adapters by dl_mamba.training.enable_lora, or "
                "build the model with scan_layers=False."
            )
        return learn.pop()

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for part in self.slices:
            part._trainable = bool(value)
        keras.Variable.trainable.fset(self, value)


class VariableSlice(keras.Variable):
    """The weight of one layer inside a `StackedVariable`: reads and writes its slice."""

    stacked: StackedVariable

    def _become_slice(self, stacked: StackedVariable, index: int) -> None:
        del self.__dict__["_value"]
        self.stacked, self._index = stacked, index

    def become_variable(self) -> None:
        """Hold the value oneself again."""
        value = self.value
        self.__class__ = keras.Variable
        del self.stacked, self._index
        self._initialize(value)

    @property
    def _value(self) -> Any:
        return self.stacked.value[self._index]

    def _direct_assign(self, value: Any) -> None:
        _ASSIGN[keras.backend.backend()](self.stacked, self._index, value)

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        if len({part._trainable for part in self.stacked.slices}) == 1:
            self.stacked.trainable = value


def _assign_jax(stacked: StackedVariable, index: int, value: Any) -> None:
    stacked.assign(_replaced()(stacked._value, index, value))


@cache
def _replaced() -> Any:
    """`values` with another row, in the memory of `values`."""
    import jax

    return jax.jit(lambda values, index, row: values.at[index].set(row), donate_argnums=0)


def _assign_tensorflow(stacked: StackedVariable, index: int, value: Any) -> None:
    stacked._value[index].assign(value)


def _assign_torch(stacked: StackedVariable, index: int, value: Any) -> None:
    import torch

    with torch.no_grad():
        stacked._value[index].copy_(value)


_ASSIGN = {"jax": _assign_jax, "tensorflow": _assign_tensorflow, "torch": _assign_torch}
Run = tuple[list[keras.Layer], list[StackedVariable]]  # equal layers, and their weights in the order of `variables`


def stack(layers: Sequence[keras.Layer]) -> None:
    """Give each run of neighbouring layers whose weights differ in their values alone one variable for each weight."""
    for _, run in groupby(layers, _kind):
        for variables in zip(*(layer.variables for layer in run), strict=True):
            StackedVariable(variables)


def unstack(layers: Sequence[keras.Layer]) -> None:
    """Give each layer variables of its own again."""
    for layer in layers:
        for variable in layer.variables:
            if isinstance(variable, VariableSlice):
                variable.become_variable()


def runs(layers: Sequence[keras.Layer]) -> list[Run] | None:
    """The runs that `stack` has made, or None if a layer has a variable of its own: it was quantized or adapted."""
    found: list[Run] = []
    for layer in layers:
        if not all(isinstance(variable, VariableSlice) for variable in layer.variables):
            return None
        stacked = whole(layer.variables)
        if found and [*map(id, found[-1][1])] == [*map(id, stacked)]:
            found[-1][0].append(layer)
        else:
            found.append(([layer], stacked))
    return found


def whole(variables: Iterable[keras.Variable]) -> list[keras.Variable]:
    """The variables, each slice replaced by what it is a slice of, without repetition."""
    found = (getattr(variable, "stacked", variable) for variable in variables)
    return list({id(variable): variable for variable in found}.values())


def slices(variable: keras.Variable) -> list[keras.Variable]:
    """The weights of single layers that a variable holds: itself, if it is no stack."""
    return variable.slices if isinstance(variable, StackedVariable) else [variable]


def rows(mapping: Iterable[tuple[keras.Variable, Any]]) -> list[tuple[keras.Variable, Any]]:
    """The slices of the stacks among variables, with their parts of given values."""
    stacks = [(variable, value) for variable, value in mapping if isinstance(variable, StackedVariable)]
    return [pair for variable, value in stacks for pair in zip(variable.slices, ops.unstack(value), strict=True)]


def track(model: keras.Layer) -> None:
    """Tell torch the parameters of a model whose layers were stacked or unstacked."""
    if keras.backend.backend() != "torch":
        return
    import torch

    for layer in model._flatten_layers():
        own = [variable for variable in layer.variables if not isinstance(variable, VariableSlice)]
        layer._torch_params = torch.nn.ParameterDict({variable.path: variable.value for variable in own})


def _kind(layer: keras.Layer) -> list[tuple]:
    return [(variable.name, tuple(variable.shape), variable.dtype, variable.trainable) for variable in layer.variables]


def _path(variables: Sequence[keras.Variable]) -> str:
    """The common path, with "0-23" where the first has "0" and the last "23"."""
    pairs = zip(variables[0].path.split("/"), variables[-1].path.split("/"), strict=True)
    return "/".join(a if a == b else f"{a}-{b}" for a, b in pairs)


def _stacked_layout(layout: Any) -> Any:
    if not isinstance(layout, keras.distribution.TensorLayout):
        return layout
    return keras.distribution.TensorLayout((None, *layout.axes), layout.device_mesh)
