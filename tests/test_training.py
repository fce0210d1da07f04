"""Laws of training: compiled fit, half precision, weight decay, and the gradients of padded and packed rows."""

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, numpy
from keras import ops
from model_harness import (
    FAMILIES,
    MODELS,
    WITH_HEAD,
    own_path,
    place,
    projected,
    small_mixer,
    small_model,
    tokens,
    weight_gradients,
)

import dl_mamba
from dl_mamba.heads import NLPTaskConfig

pytestmark = pytest.mark.parametrize("family", FAMILIES)

GRADIENT = 1e-4  # the project's bound for gradients, relative to the largest value
JIT = BACKEND != "torch"  # torch runs eagerly


def next_token_model(family, **options):
    """From ids of unknown length to logits over the vocabulary at each token."""
    ids = keras.Input(shape=(None,), dtype="int32")
    backbone = MODELS[family](**{**small_model(family).config.to_dict(), **options})
    hidden = backbone(ids)["last_hidden_state"]
    return keras.Model(ids, keras.layers.Dense(11, dtype="float32")(hidden))


def compiled(model, optimizer, jit_compile=JIT):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit_compile)
    return model


def test_a_compiled_fit_learns_batches_of_two_lengths_by_heart(family):
    keras.utils.set_random_seed(0)
    model = compiled(next_token_model(family, num_layers=1), keras.optimizers.Adam(2e-2))
    assert model.jit_compile is JIT
    first = last = 0.0
    for length in (5, 9):
        ids, labels = tokens(4, length, seed=length), tokens(4, length, seed=length + 1)
        losses = model.fit(ids, labels, epochs=40, batch_size=4, verbose=0).history["loss"]
        first, last = losses[0], losses[-1]
        assert np.all(np.isfinite(losses))
        assert last < 0.5 * first, (
            f"length {length}: {first} -> {last}"
        )  # labels are random: only memory lowers the loss


def half_precision_model(family, policy):
    task = NLPTaskConfig("parity", "sequence_classification", num_classes=2, pooling="attention")
    config = small_model(family, num_layers=1).config
    with_policy = keras.DTypePolicy(policy)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(with_policy)
    try:
        return WITH_HEAD[family](config, task)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_two_hundred_steps_in_half_precision_stay_finite_and_learn(family, policy):
    keras.utils.set_random_seed(0)
    jit_compile = BACKEND == "jax"  # on TensorFlow a plain graph is traced in half of the time that XLA takes
    model = compiled(half_precision_model(family, policy), keras.optimizers.Adam(1e-2), jit_compile)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled is (policy == "mixed_float16")
    ids = tokens(800, 6)
    mask = (np.arange(6) < np.random.default_rng(1).integers(0, 7, (800, 1))).astype("int32")  # some rows are empty
    labels = np.where(mask.any(1), ids[:, 0] % 2, 0)
    losses = []
    history = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs["loss"]))
    model.fit({"input_ids": ids, "attention_mask": mask}, labels, batch_size=4, verbose=0, callbacks=[history])
    assert len(losses) == 200
    assert int(model.optimizer.iterations) >= 190  # the search for a loss scale may skip the first few steps
    assert np.all(np.isfinite(losses))
    for weight in model.weights:
        assert np.all(np.isfinite(numpy(weight.value))), weight.path
        assert weight.dtype == "float32" or "seed" in weight.path
    assert losses[-1] < 0.8 * losses[0]  # running means of the loss; chance stays at ln 2 = losses[0]


def test_only_the_weights_that_must_not_decay_are_left_as_they_are(family):
    model = small_model(family)
    optimizer = keras.optimizers.AdamW(learning_rate=0.1, weight_decay=0.5)
    dl_mamba.exclude_from_weight_decay(optimizer, model)
    before = {own_path(model, v): numpy(v.value) for v in model.trainable_variables}
    assert all(value.all() for value in before.values())  # a zero would not show decay
    optimizer.build(model.trainable_variables)
    optimizer.apply([ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    kept = set()
    for variable in model.trainable_variables:
        name, after = own_path(model, variable), numpy(variable.value)
        if np.array_equal(after, before[name]):
            kept.add(name)
        else:
            np.testing.assert_allclose(after, before[name] * (1 - 0.1 * 0.5), rtol=1e-6)  # float32 rounding
    in_a_mixer = ["A_log", "D", "dt_bias"] + (["norm/scale"] if family == "mamba2" else [])
    in_a_block = ["norm/scale", *(f"mixer/{name}" for name in in_a_mixer)]
    assert kept == {"final_norm/scale", *(f"layers/{i}/{name}" for i in range(2) for name in in_a_block)}


def test_an_optimizer_that_scales_the_loss_leaves_the_same_weights_undecayed(family):
    layer = small_mixer(family)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.1, weight_decay=0.5))
    dl_mamba.exclude_from_weight_decay(optimizer, layer)
    optimizer.build(layer.trainable_variables)
    before = [numpy(v.value) for v in layer.trainable_variables]
    after = values_after_a_step_without_gradient(optimizer, layer.trainable_variables)
    for variable, old, new in zip(layer.trainable_variables, before, after, strict=True):
        kept = np.array_equal(old, new)
        assert kept is (variable.name in ("A_log", "D", "dt_bias", "scale")), variable.path


def values_after_a_step_without_gradient(optimizer, variables):
    gradients = [ops.zeros(v.shape) for v in variables]
    if BACKEND == "jax":  # where Keras scales a loss in stateless code only
        state = [v.value for v in optimizer.variables]
        return [numpy(value) for value in optimizer.stateless_apply(state, gradients, [v.value for v in variables])[0]]
    optimizer.apply(gradients, variables)
    return [numpy(v.value) for v in variables]


def test_weight_decay_is_excluded_inside_a_functional_model_and_a_single_layer(family):
    names = {"A_log", "D", "dt_bias", "scale"}
    model = WITH_HEAD[family](small_model(family).config, NLPTaskConfig("t", "spam_detection", num_classes=2))
    found = dl_mamba.no_weight_decay_variables(model)
    assert {v.name for v in found} == names
    assert len(found) == len([v for v in model.weights if v.name in names]) == len({id(v) for v in found})
    layer = small_mixer(family)
    assert {v.name for v in dl_mamba.no_weight_decay_variables(layer)} == {v.name for v in layer.weights} & names


def test_weight_decay_cannot_be_excluded_where_it_would_have_no_effect(family):
    del family
    optimizer = keras.optimizers.AdamW(weight_decay=0.1)
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(ValueError, match="'plain' holds no built Mamba layer"):
        dl_mamba.exclude_from_weight_decay(optimizer, plain)
    model = small_model("mamba")
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="built"):
        dl_mamba.exclude_from_weight_decay(optimizer, model)


def tensors(inputs):
    return {name: ops.convert_to_tensor(value) for name, value in inputs.items()}


def assert_gradients_close(came, wanted):
    assert came.keys() == wanted.keys()
    for name in wanted:
        assert np.abs(wanted[name]).max() > 0, name
        assert_close(came[name], wanted[name], GRADIENT, name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_gradient(family, side):
    model = small_model(family)
    row = tokens(4)
    ids, mask = place([row], 7, side, filler=np.int32(10))
    where = np.flatnonzero(mask[0])
    padded = tensors({"input_ids": ids, "attention_mask": mask.astype("int32")})
    alone = tensors({"input_ids": row[None]})
    start = int(where[0])
    came = weight_gradients(model, lambda: projected(model(padded)["last_hidden_state"][:, start : start + 4]))
    assert_gradients_close(came, weight_gradients(model, lambda: projected(model(alone)["last_hidden_state"])))


def test_packing_changes_no_gradient(family):
    model = small_model(family)
    documents = [tokens(3), tokens(4, seed=1)]
    numbers = np.repeat([[5, 6]], [3, 4], axis=1).astype("int32")
    packed = tensors({"input_ids": np.concatenate(documents)[None], "segment_ids": numbers})
    apart = [tensors({"input_ids": d[None]}) for d in documents]

    def loss_apart():
        hidden = [model(inputs)["last_hidden_state"] for inputs in apart]
        return projected(ops.concatenate(hidden, axis=1))

    came = weight_gradients(model, lambda: projected(model(packed)["last_hidden_state"]))
    assert_gradients_close(came, weight_gradients(model, loss_apart))


def test_a_frozen_model_keeps_its_weights(family):
    model = next_token_model(family)
    backbone = next(layer for layer in model.layers if isinstance(layer, MODELS[family]))
    backbone.trainable = False
    before = backbone.get_weights()
    compiled(model, "sgd", jit_compile=False)
    model.run_eagerly = BACKEND == "tensorflow"  # tracing takes longer than one eager step
    model.fit(tokens(2, 4), tokens(2, 4, seed=1), verbose=0)
    for came, wanted in zip(backbone.get_weights(), before, strict=True):
        np.testing.assert_array_equal(came, wanted)
