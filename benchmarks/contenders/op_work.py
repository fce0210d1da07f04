"""The work of one op: the same inputs for every contender, and gradients of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from benchmarks.case import Case
from benchmarks.contenders import Arrays, Work
from benchmarks.contenders.keras_work import work_of
from benchmarks.contenders.parameters import config_of
from benchmarks.weights import cotangent


def inputs(case: Case) -> Arrays:
    """Inputs of `case.op` by name, at the sizes of a layer of the model; all float32."""
    config, tokens, rng = config_of(case), (case.batch, case.length), np.random.default_rng(0)
    if case.op == "selective_scan":
        channels, state = (config.d_inner,), (config.d_inner, config.d_state)
        shapes = {"x": (*tokens, *channels), "dt": (*tokens, *channels), "A": state}
        shapes |= dict.fromkeys("BC", (*tokens, config.d_state))
    elif case.op == "ssd":
        shapes = {"x": (*tokens, config.nheads, config.headdim), "dt": (*tokens, config.nheads), "A": (config.nheads,)}
        shapes |= dict.fromkeys("BC", (*tokens, config.ngroups, config.d_state))
    elif case.op == "causal_conv1d":
        channels = (config.d_inner + 2 * config.ngroups * config.d_state,)
        shapes = {"x": (*tokens, *channels), "weight": (config.d_conv, *channels), "bias": channels}
    else:
        channels = (config.d_inner,)
        shapes = {"x": (*tokens, *channels), "weight": channels, "z": (*tokens, *channels)}
    arrays = {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}
    if "dt" in arrays:
        arrays["dt"] -= 4.0  # steps of about 0.02 after the softplus, as released models have
        arrays["A"] = -np.exp(arrays["A"])
    return arrays


class Inputs(keras.layers.Layer):
    """An op whose inputs are variables, so that they are passed and differentiated like the weights of a model."""

    def __init__(self, arrays: Mapping[str, np.ndarray], function: Callable):
        super().__init__()
        self.function = function
        self.names = list(arrays)
        for name, array in arrays.items():
            setattr(self, name, self.add_weight(shape=array.shape, name=name))
            getattr(self, name).assign(array)

    def call(self, ids: Any) -> Any:
        return self.function(**{name: getattr(self, name).value for name in self.names})


def on_keras(case: Case, function: Callable) -> Work:
    """Work of a function of the inputs by name that computes with Keras."""
    arrays = inputs(case)
    return work_of(case, Inputs(arrays, function), lambda y: keras.ops.reshape(y, (*y.shape[:2], -1)), width(arrays))


def on_torch(case: Case, function: Callable, same: bool = True) -> Work:
    """Work of a function of the inputs by name that computes with torch; `same` if its results are those of our op."""
    import torch

    from benchmarks.contenders.torch_work import DEVICE

    arrays = inputs(case)
    given = {name: torch.from_numpy(array).to(DEVICE).requires_grad_() for name, array in arrays.items()}
    if case.work == "forward":
        run = torch.no_grad()(lambda: function(**given))
        return Work(run, lambda y: {"output": y.flatten(2).cpu().numpy()} if same else {})
    weights = torch.from_numpy(cotangent((case.batch, case.length, width(arrays)))).to(DEVICE)

    def gradient() -> Arrays:
        loss = (function(**given).flatten(2) * weights).sum()
        return dict(zip(given, torch.autograd.grad(loss, list(given.values()), allow_unused=True), strict=True))

    def results(gradients: Arrays) -> Arrays:
        return {f"gradient of {name}": gradient.cpu().numpy() for name, gradient in gradients.items()} if same else {}

    return Work(gradient, results)


def width(arrays: Arrays) -> int:
    """Channels of the op's output."""
    return math.prod(arrays["x"].shape[2:])
