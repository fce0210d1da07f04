"""Backbones whose blocks run as one loop: the same results, in a program that holds one block."""

import itertools

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, numpy
from keras import ops
from model_harness import FAMILIES, SMALL_MODEL, own_path, projected, run, small_model, tokens, weight_gradients

import dl_mamba
from dl_mamba import training
from dl_mamba.layers.stacked import slices

pytestmark = pytest.mark.parametrize("family", FAMILIES)

VALUES, GRADIENTS = 1e-5, 1e-4  # the bounds of the project's numerics: XLA orders the two programs differently
MASK = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], "int32")
SEGMENTS = np.array([[0, 0, 1, 1, 2], [0, 1, 1, 1, 1]], "int32")
compiling = pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing: it takes the blocks one by one")


def pair(family, **options):
    """The same model with and without the loop."""
    plain, scanned = (small_model(family, scan_layers=scan, **{"num_layers": 3, **options}) for scan in (False, True))
    copy(plain, scanned)
    return plain, scanned


def copy(source, target):
    values = source.pretrained_variables()
    for name, variable in target.pretrained_variables().items():
        variable.assign(numpy(values[name].value))


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
    assert len(scanned.trainable_variables) == len(scanned.variables) / 2
    assert_same_gradients(plain, scanned)
    _train_adapters(plain, scanned)
    assert_same_gradients(plain, scanned)


def _train_adapters(*models):
    for model in models:
        training.enable_lora(model, rank=2)
        for variable in itertools.chain(*map(slices, model.trainable_variables)):
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
    for backbone in pair(family, dtype="mixed_bfloat16", num_layers=2):
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


def test_a_weight_of_all_blocks_is_one_variable(family):
    plain, scanned = pair(family)
    for name, weight in plain.pretrained_variables().items():
        assert_close(numpy(scanned.pretrained_variables()[name].value), numpy(weight.value), 0, name)
    stacked = [variable for variable in scanned.trainable_variables if len(slices(variable)) == 3]
    assert len(plain.trainable_variables) == 3 * len(stacked) + 2
    assert scanned.count_params() == plain.count_params()
    assert all("/layers/0-2/" in variable.path for variable in stacked)
    kernel = scanned.blocks[1].mixer.out_proj.kernel
    before = numpy(slices(kernel.stacked)[2].value)
    kernel.assign(np.full(kernel.shape, 7.0, "float32"))
    assert (numpy(kernel.stacked.value)[1] == 7.0).all()
    assert_close(numpy(scanned.blocks[2].mixer.out_proj.kernel), before, 0)
    if BACKEND == "torch":
        assert sum(parameter.numel() for parameter in scanned.parameters()) == plain.count_params()


def test_files_hold_the_blocks_one_by_one(family, tmp_path):
    plain, scanned = pair(family)
    wanted = {name: numpy(weight.value) for name, weight in plain.pretrained_variables().items()}
    for source, target in (plain, scanned), (scanned, plain):
        source.save_weights(tmp_path / "model.weights.h5")
        for variable in target.variables:
            variable.assign(np.zeros(variable.shape, "float32"))
        target.load_weights(tmp_path / "model.weights.h5")
        for name, weight in target.pretrained_variables().items():
            assert_close(numpy(weight.value), wanted[name], 0, name)
    scanned.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.variables) == len(scanned.variables)
    came, wanted = (run(model, tokens(2, 5))["last_hidden_state"] for model in (again, scanned))
    assert_close(came, wanted, 0)


def test_rates_and_decay_of_single_blocks(family):
    """Three steps of the same gradients."""
    plain, scanned = pair(family)
    rng = np.random.default_rng(0)
    for model in (plain, scanned):
        model.optimizer = training.recipe(model, steps=9, learning_rate=0.1, layer_decay=0.5, weight_decay=0.3)
        model.optimizer.build(model.trainable_variables)
    for _ in range(3):
        gradients = {name: rng.normal(size=v.shape) for name, v in plain.pretrained_variables().items()}
        for model in (plain, scanned):
            names = [[own_path(model, part) for part in slices(v)] for v in model.trainable_variables]
            rows = [
                np.reshape([gradients[n] for n in same], v.shape)
                for same, v in zip(names, model.trainable_variables, strict=True)
            ]
            model.optimizer.apply([ops.convert_to_tensor(row, "float32") for row in rows])
    values = plain.pretrained_variables()
    for name, variable in scanned.pretrained_variables().items():
        assert_close(numpy(variable.value), numpy(values[name].value), VALUES, name)


def test_a_compiled_fit_keeps_to_the_rates_of_single_blocks(family):
    kind = {"mamba": dl_mamba.MambaCausalLM, "mamba2": dl_mamba.Mamba2CausalLM}[family]
    plain, scanned = (kind(**{**SMALL_MODEL[family], "num_layers": 3}, scan_layers=scan) for scan in (False, True))
    copy(plain, scanned)
    losses = []
    for model in (plain, scanned):
        model.compile(training.recipe(model, steps=6, learning_rate=0.1, layer_decay=0.3), jit_compile=False)
        losses.append(model.fit(tokens(4, 5), batch_size=2, epochs=3, shuffle=False, verbose=0).history["loss"])
    assert losses[0][-1] < losses[0][0]
    assert_close(np.array(losses[1]), np.array(losses[0]), 1e-4)  # six steps of AdamW on rounded gradients


def test_a_frozen_part_of_shared_weights_is_refused(family):
    model = small_model(family, scan_layers=True)
    model.blocks[0].mixer.in_proj.trainable = False
    with pytest.raises(
        ValueError, match="layers/0-1/mixer/in_proj/kernel learns.*freeze whole blocks by dl_mamba.train"
    ):
        _ = model.trainable_variables
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    assert len(model.trainable_variables) == len(model.variables)


def test_it_generates_the_same_tokens(family):
    kind = {"mamba": dl_mamba.MambaCausalLM, "mamba2": dl_mamba.Mamba2CausalLM}[family]
    plain, scanned = (kind(**SMALL_MODEL[family], scan_layers=scan) for scan in (False, True))
    copy(plain, scanned)
    came, wanted = (numpy(model.generate(tokens(2, 5), 6)) for model in (scanned, plain))
    assert_close(came, wanted, 0)
    assert_close(scanned.score(tokens(2, 5)).total, plain.score(tokens(2, 5)).total, VALUES)


def test_the_option_is_part_of_the_config(family):
    model = small_model(family, scan_layers=True)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert again.scan_layers
    assert not getattr(dl_mamba, type(model).__name__).from_variant("tiny", num_layers=1).scan_layers
