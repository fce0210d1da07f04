"""Backbones whose blocks run as one loop: the same results, in a program that holds one block."""

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close
from keras import ops
from model_harness import FAMILIES, projected, run, small_model, tokens, weight_gradients

import dl_mamba
from dl_mamba import training

pytestmark = pytest.mark.parametrize("family", FAMILIES)

VALUES, GRADIENTS = 1e-5, 1e-4  # the bounds of the project's numerics: XLA orders the two programs differently
MASK = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], "int32")
SEGMENTS = np.array([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]], "int32")
compiling = pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing: it takes the blocks one by one")


def pair(family, **options):
    """The same model with and without the loop."""
    plain, scanned = (small_model(family, num_layers=3, scan_layers=scan, **options) for scan in (False, True))
    scanned.set_weights(plain.get_weights())
    return plain, scanned


def inputs():
    arrays = {"input_ids": tokens(2, 5), "attention_mask": MASK, "segment_ids": SEGMENTS}
    return {name: ops.convert_to_tensor(array) for name, array in arrays.items()}


def assert_same_gradients(plain, scanned):
    came, wanted = (
        weight_gradients(model, lambda model=model: projected(model(inputs())["last_hidden_state"]))
        for model in (scanned, plain)
    )
    assert came.keys() == wanted.keys()
    for name in wanted:
        assert np.abs(wanted[name]).max() > 0, name
        assert_close(came[name], wanted[name], GRADIENTS, name)


def test_every_output_is_the_same(family):
    plain, scanned = pair(family)
    came, wanted = (run(lambda x, m=m: m(x, output_hidden_states=True), inputs()) for m in (scanned, plain))
    assert len(came["hidden_states"]) == len(wanted["hidden_states"]) == 4
    for i, (a, b) in enumerate(zip(came["hidden_states"], wanted["hidden_states"], strict=True)):
        assert_close(a, b, VALUES, f"hidden_states[{i}]")
    assert_close(came["last_hidden_state"], wanted["last_hidden_state"], VALUES)


def test_every_gradient_is_the_same(family):
    assert_same_gradients(*pair(family))


def test_with_adapters_and_frozen_blocks(family):
    plain, scanned = pair(family)
    for model in (plain, scanned):
        training.freeze(model, num_blocks=2)
    assert len(scanned.trainable_variables) < len(scanned.variables) / 2
    assert_same_gradients(plain, scanned)
    _train_adapters(plain, scanned)
    assert_same_gradients(plain, scanned)


def _train_adapters(*models):
    for model in models:
        training.enable_lora(model, rank=2)
        for variable in model.trainable_variables:
            variable.assign(np.random.default_rng(0).normal(size=variable.shape, scale=0.3).astype("float32"))


def test_a_state_takes_the_blocks_one_by_one(family):
    plain, scanned = pair(family)
    for model in (plain, scanned):
        model.first = run(lambda x, m=model: m(x, return_state=True), tokens(2, 5))
    came, wanted = (run(lambda x, s, m=m: m(x, state=s), tokens(2, 2), m.first["state"]) for m in (scanned, plain))
    assert_close(came["last_hidden_state"], wanted["last_hidden_state"], VALUES)


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_quantized_blocks_run_one_by_one(family):
    plain, scanned = pair(family)
    for model in (plain, scanned):
        model.quantize("int8")
    came, wanted = (run(model, tokens(2, 5)) for model in (scanned, plain))
    assert_close(came["last_hidden_state"], wanted["last_hidden_state"], VALUES)
    _train_adapters(plain, scanned)
    assert_same_gradients(plain, scanned)


def test_fit_compiles_it_and_takes_the_same_steps(family):
    losses = []
    for backbone in pair(family, dtype="mixed_bfloat16"):
        ids = keras.Input((None,), dtype="int32")
        logits = keras.layers.Dense(2, kernel_initializer="ones")(backbone(ids)["last_hidden_state"][:, -1])
        model = keras.Model(ids, logits)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=BACKEND != "torch")
        rows = tokens(8, 6)
        losses.append(model.fit(rows, rows[:, -1] % 2, batch_size=4, epochs=4, shuffle=False, verbose=0))
    plain, scanned = (history.history["loss"] for history in losses)
    assert plain[-1] < plain[0]
    np.testing.assert_allclose(scanned, plain, rtol=1e-4)


@compiling
def test_the_program_holds_one_block(family):
    assert _products(family, 2, scan_layers=True) == _products(family, 5, scan_layers=True)
    assert _products(family, 2, scan_layers=False) < _products(family, 5, scan_layers=False)


def _products(family, num_layers, **options):
    """Matrix products in the traced program of a gradient."""
    model = small_model(family, num_layers=num_layers, **options)
    loss = lambda: projected(model(ops.convert_to_tensor(tokens(1, 5)))["last_hidden_state"])  # noqa: E731
    return {"jax": _products_jax, "tensorflow": _products_tensorflow}[BACKEND](model, loss)


def _products_jax(model, loss):
    import jax

    def loss_of(values):
        with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
            return loss()

    return str(jax.make_jaxpr(jax.grad(loss_of))([v.value for v in model.variables])).count("dot_general")


def _products_tensorflow(model, loss):
    import tensorflow as tf

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            value = loss()
        return tape.gradient(value, [v.value for v in model.trainable_variables])

    graph = gradients.get_concrete_function().graph.as_graph_def()
    functions = {function.signature.name: function.node_def for function in graph.library.function}

    def products(nodes):
        """Those of a function count at each of its calls: one function may be that of all layers."""
        called = [functions[v.func.name] for node in nodes for v in node.attr.values() if v.func.name in functions]
        return sum("MatMul" in node.op or node.op == "Einsum" for node in nodes) + sum(map(products, called))

    return products(graph.node)


def test_the_option_is_part_of_the_config(family):
    model = small_model(family, scan_layers=True)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert again.scan_layers
    assert not getattr(dl_mamba, type(model).__name__).from_variant("tiny", num_layers=1).scan_layers
