"""Weights by name: how a layer with raw weights stores them, and which ones an optimizer must not decay."""

from __future__ import annotations

from typing import Any

import keras

from dl_mamba.layers.stacked import whole


class NamedVariables:
    """Mixin for layers with raw weights: `.keras` and `.weights.h5` files hold them under their names."""

    no_weight_decay: tuple[str, ...] = ()

    def save_own_variables(self, store: Any) -> None:
        for variable in self._own_variables():
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        variables = {variable.name: variable for variable in self._own_variables()}
        if set(store.keys()) != set(variables):
            raise ValueError(
                f"layer {self.path} has the weights {sorted(variables)}; the file holds {sorted(store.keys())} for it. "
                "Build the model with the options that it was saved with."
            )
        for name, variable in variables.items():
            variable.assign(store[name])

    def _own_variables(self) -> list[keras.Variable]:
        return self._trainable_variables + self._non_trainable_variables


def no_weight_decay_variables(model: keras.Layer) -> list[keras.Variable]:
    """The weights of a built model that weight decay would harm: every A_log, D, dt_bias and norm scale.

    Args:
        model: a built model or layer. With `scan_layers=True` a weight stands for that of all blocks.

    Example:

    >>> import dl_mamba
    >>> model = dl_mamba.Mamba(vocab_size=11, d_model=16, num_layers=1)
    >>> sorted(v.path.split("/", 1)[1] for v in dl_mamba.no_weight_decay_variables(model))
    ['final_norm/scale', 'layers/0/mixer/A_log', 'layers/0/mixer/D', 'layers/0/mixer/dt_bias', 'layers/0/norm/scale']
    """
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, NamedVariables)]
    return whole(v for layer in layers for v in layer._own_variables() if v.name in layer.no_weight_decay)


def exclude_from_weight_decay(optimizer: keras.optimizers.Optimizer, model: keras.Layer) -> None:
    """Tell an optimizer not to decay A_log, D, dt_bias and the norm scales of a model.

    Args:
        optimizer: an optimizer that is not built yet, so call this before `fit`.
        model: a built model, plain or functional, that contains Mamba layers.

    Raises:
        ValueError: the model holds no such weights, or the optimizer is built.

    Example:

    >>> import dl_mamba, keras
    >>> model = dl_mamba.Mamba(vocab_size=11, d_model=16, num_layers=1)
    >>> optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1)
    >>> dl_mamba.exclude_from_weight_decay(optimizer, model)
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # a LossScaleOptimizer leaves the decay to another
    if optimizer.built:
        raise ValueError(f"optimizer {optimizer.name!r} is built; exclude weights before `fit`.")
    variables = no_weight_decay_variables(model)
    if not variables:
        raise ValueError(
            f"model {model.name!r} holds no built Mamba layer; build it first, e.g. by calling it on a batch."
        )
    optimizer.exclude_from_weight_decay(var_list=variables)
