"""The work of any Keras model, compiled as its backend does best: XLA on JAX and TensorFlow, eager on torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from benchmarks.case import Case
from benchmarks.contenders import Arrays, Work
from benchmarks.weights import cotangent, token_ids

ROWS = 256


def work_of(case: Case, model: keras.layers.Layer, output: Callable[[Any], Any], width: int | None = None) -> Work:
    """Prepare what `case.work` asks for.

    Args:
        case: what is measured.
        model: takes (batch, length) token ids.
        output: picks the (batch, length, width) tensor from what the model returns.
        width: d_model if None.
    """
    if case.work == "gradient":
        return _gradient(case, model, output, width or case.d_model)
    return _WORK[case.work](case, model, output)


def _forward(case: Case, model: keras.Model, output: Callable) -> Work:
    ids = keras.ops.convert_to_tensor(token_ids(case.batch, case.length, case.vocab_size))
    call = _FORWARD[case.backend](lambda x: output(model(x)), model)
    return Work(lambda: call(ids), lambda y: {"output": _numpy(y)})


def _gradient(case: Case, model: keras.layers.Layer, output: Callable, width: int) -> Work:
    ids = keras.ops.convert_to_tensor(token_ids(case.batch, case.length, case.vocab_size))
    weights = keras.ops.convert_to_tensor(cotangent((case.batch, case.length, width)))
    call = _GRADIENT[case.backend](lambda x: keras.ops.sum(output(model(x)) * weights), model)

    def results(gradients: Any) -> Arrays:
        by_name = {}
        for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
            parts = layers_of(variable)
            rows = gradient if hasattr(variable, "slices") else [gradient]
            by_name |= {_name(part): _numpy(row) for part, row in zip(parts, rows, strict=True)}
        return {f"gradient of {name}": by_name[name] for name in sorted(by_name) if case.op or "kernel" in name}

    return Work(lambda: call(ids), results)


def _step(case: Case, model: keras.Model, output: Callable) -> Work:
    ids = token_ids(case.batch, case.length, case.vocab_size)
    trained = _classifier(case, model, output)

    def run() -> Any:
        if not trained.optimizer.built:  # or TensorFlow traces the step twice
            trained.optimizer.build(trained.trainable_variables)
        return trained.train_on_batch(ids, ids[:, 0] % 2)

    return Work(run)


def _epoch(case: Case, model: keras.Model, output: Callable) -> Work:
    ids = token_ids(ROWS, case.length, case.vocab_size)
    batches = _BATCHES[case.backend](ids, ids[:, 0] % 2, case.batch)
    trained = _classifier(case, model, output)
    return Work(lambda: trained.fit(**batches, epochs=1, verbose=0))


def _arrays(ids: np.ndarray, labels: np.ndarray, size: int) -> dict[str, Any]:
    return {"x": ids, "y": labels, "batch_size": size}


def _untuned(ids: np.ndarray, labels: np.ndarray, size: int) -> dict[str, Any]:
    """The pipeline that Keras makes of arrays, but not tuned while it runs.

    Keras' own often ends an epoch not before the tuning thread looks again: after 10, 30, 70, 150, 310, 630 ms, ...
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    rows = tf.data.Dataset.from_tensor_slices((ids, labels)).shuffle(len(ids))
    return {"x": rows.batch(size).prefetch(2).with_options(options), "shuffle": False}


_BATCHES = {"jax": _arrays, "tensorflow": _untuned, "torch": _arrays}


def _classifier(case: Case, model: keras.Model, output: Callable) -> keras.Model:
    ids = keras.Input((case.length,), dtype="int32")
    pooled = keras.layers.GlobalAveragePooling1D()(output(model(ids)))
    trained = keras.Model(ids, keras.layers.Dense(2)(pooled))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained.compile(keras.optimizers.AdamW(1e-4), loss, jit_compile=case.backend != "torch")
    return trained


_WORK = {"forward": _forward, "step": _step, "epoch": _epoch}


def layers_of(variable: keras.Variable) -> list[keras.Variable]:
    """The weights of single layers that a variable holds; those of an earlier revision hold one."""
    return getattr(variable, "slices", [variable])


def _name(variable: keras.Variable) -> str:
    return variable.path.partition("/")[2]


def _numpy(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def on_jax(function: Callable, model: keras.Model) -> Callable:
    """A function that reads the model's variables, compiled with the variables as arguments."""
    import jax

    def stateless(values, *args):
        with keras.StatelessScope(list(zip(model.variables, values, strict=True))):
            return function(*args)

    compiled = jax.jit(stateless)
    return lambda *args: jax.block_until_ready(compiled([v.value for v in model.variables], *args))


def _gradient_on_jax(loss: Callable, model: keras.Model) -> Callable:
    import jax

    def stateless(values, x):
        with keras.StatelessScope(list(zip(model.trainable_variables, values, strict=True))):
            return loss(x)

    compiled = jax.jit(jax.grad(stateless))
    return lambda x: jax.block_until_ready(compiled([v.value for v in model.trainable_variables], x))


def on_tensorflow(function: Callable, model: keras.Model) -> Callable:
    """A function compiled by XLA."""
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def _gradient_on_tensorflow(loss: Callable, model: keras.Model) -> Callable:
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def gradient(x):
        with tf.GradientTape() as tape:
            value = loss(x)
        return [tf.convert_to_tensor(g) for g in tape.gradient(value, [v.value for v in model.trainable_variables])]

    return gradient


def on_torch(function: Callable, model: keras.Model) -> Callable:
    """A function without gradients, run eagerly."""
    import torch

    return torch.no_grad()(function)


def _gradient_on_torch(loss: Callable, model: keras.Model) -> Callable:
    import torch

    parameters = [v.value for v in model.trainable_variables]
    return lambda x: torch.autograd.grad(loss(x), parameters)


_FORWARD = {"jax": on_jax, "tensorflow": on_tensorflow, "torch": on_torch}
_GRADIENT = {"jax": _gradient_on_jax, "tensorflow": _gradient_on_tensorflow, "torch": _gradient_on_torch}
COMPILED = _FORWARD
