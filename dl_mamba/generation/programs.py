"""Functions of a model, compiled once: XLA on JAX and TensorFlow, a recorded list of kernels on torch.

Weights are arguments, never constants of a program, so that training or loading goes on between two calls.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras

from dl_mamba.layers.stacked import rows

Function = Callable[..., Any]


class Programs:
    """The compiled functions of one model, kept as long as it has the same `variables`."""

    def __init__(self, model: keras.Model) -> None:
        self.variables = list(model.variables)
        self._table: dict[Hashable, Any] = {}
        self._returned: tuple[Hashable, Any] | None = None

    @classmethod
    def of(cls, model: keras.Model) -> Programs:
        """Those of a model; new ones if its variables are no longer the same (quantized, LoRA)."""
        programs = model.__dict__.get("_dl_mamba_programs")  # past Keras' tracking of attributes
        variables = model.variables
        if programs is None or [*map(id, programs.variables)] != [*map(id, variables)]:
            programs = model.__dict__["_dl_mamba_programs"] = cls(model)
        return programs

    def compiled(
        self, key: Hashable, function: Function, also: Sequence[keras.Variable] = (), weights: bool = True
    ) -> Function:
        """The compiled form of a function of tensors; `key` must tell apart functions that differ.

        Args:
            key: hashable.
            function: takes and returns nested tensors.
            also: further variables that it reads and writes.
            weights: whether it reads the model's variables.
        """
        variables = self.variables if weights else []
        return self.kept(key, lambda: _COMPILE[keras.backend.backend()](function, variables, list(also)))

    def kept(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned at its first call for this key."""
        if key not in self._table:
            self._table[key] = make()
        return self._table[key]

    def lent(self, borrower: Any, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned, to one borrower at a time; the one that was last given back is kept for others."""
        before, thing = self._returned or (None, None)
        self._returned = None
        thing = thing if before == key else make()
        weakref.finalize(borrower, setattr, self, "_returned", (key, thing)).atexit = False
        return thing


def _compile_jax(function: Function, variables: list, also: list) -> Function:
    import jax

    @jax.jit
    def run(values, *args):
        mapping = list(zip([*variables, *also], values, strict=True))
        with keras.StatelessScope(state_mapping=[*mapping, *rows(mapping)]) as scope:
            result = function(*args)
        return result, [scope.get_current_value(variable) for variable in also]

    def call(*args):
        result, values = run([variable.value for variable in [*variables, *also]], *args)
        for variable, value in zip(also, values, strict=True):
            variable.assign(value)
        return result

    return call


def _compile_tensorflow(function: Function, variables: list, also: list) -> Function:
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def run(*args):
        mapping = [(variable, variable.value) for variable in [*variables, *also]]
        with keras.StatelessScope(state_mapping=[*mapping, *rows(mapping)]) as scope:
            result = function(*args)
        for variable in also:
            variable.assign(scope.get_current_value(variable))
        return result

    return run


def _compile_torch(function: Function, variables: list, also: list) -> Function:
    import torch

    return torch.no_grad()(function)


_COMPILE = {"jax": _compile_jax, "tensorflow": _compile_tensorflow, "torch": _compile_torch}
