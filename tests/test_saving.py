"""Laws of files: what is loaded equals what was saved, bit for bit here, and to float32 rounding on another backend."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, numpy
from keras import ops
from model_harness import (
    BLOCKS,
    FAMILIES,
    MODELS,
    SMALL_MIXER,
    WITH_HEAD,
    perturb,
    place,
    small_mixer,
    small_model,
    tokens,
)

from dl_mamba.heads import NLPTaskConfig

EXTRA = {"mamba": {}, "mamba2": {"d_ssm": 8, "D_has_hdim": True, "ngroups": 2, "dt_limit": (0.0, 0.9)}}
TASK = NLPTaskConfig("mood", "sentiment_analysis", 2, dropout_rate=0.0, hidden_size=4, pooling="attention")


def batch():
    ids, mask = place([tokens(6), tokens(3, seed=1)], 6, "left", filler=np.int32(0))
    return {"input_ids": ids, "attention_mask": mask.astype("int32")}


def features():
    return np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")


def backbone(family):
    return small_model(family, bias=True, pad_vocab_size_multiple=4, **EXTRA[family])


def classifier(family):
    return perturb(WITH_HEAD[family](backbone(family), TASK))


def stack_of_layers(family):
    """Blocks and a mixer on numbers, as a user of the functional API builds them."""
    x = keras.Input((None, 6))
    block = BLOCKS[family](**SMALL_MIXER[family], norm_epsilon=1e-4)
    y = small_mixer(family, conv_bias=False)(block(keras.layers.Masking()(x)))
    return perturb(keras.Model(x, y))


KINDS = {"backbone": (backbone, batch), "classifier": (classifier, batch), "layers": (stack_of_layers, features)}


def outputs(model, inputs):
    result = model(keras.tree.map_structure(ops.convert_to_tensor, inputs))
    return numpy(result["last_hidden_state"] if isinstance(result, dict) else result)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_keras_file_gives_back_the_model_bit_for_bit(family, kind, tmp_path):
    build, inputs = KINDS[kind]
    model = build(family)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is type(model)
    assert [v.path for v in again.weights] == [v.path for v in model.weights]
    for came, wanted in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(came, wanted)
    np.testing.assert_array_equal(outputs(again, inputs()), outputs(model, inputs()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_weights_file_gives_back_every_weight_bit_for_bit(family, kind, tmp_path):
    build, _ = KINDS[kind]
    model, other = build(family), build(family)
    perturb(other, seed=1)
    model.save_weights(tmp_path / "w.weights.h5")
    other.load_weights(tmp_path / "w.weights.h5")
    for came, wanted in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(came, wanted)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_half_precision_model_comes_back_with_its_policy_and_bits(family, policy, tmp_path):
    model = small_model(family, dtype=policy)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.dtype_policy.name for layer in again._flatten_layers()] == [
        layer.dtype_policy.name for layer in model._flatten_layers()
    ]
    for came, wanted in zip(again.weights, model.weights, strict=True):
        assert came.dtype == wanted.dtype
        np.testing.assert_array_equal(numpy(came.value), numpy(wanted.value), came.path)


def test_weights_of_another_architecture_are_refused_by_name(tmp_path):
    small_model("mamba2", conv_bias=False).save_weights(tmp_path / "w.weights.h5")
    with pytest.raises(ValueError, match=r"conv1d has the weights \['bias', 'kernel'\]; the file holds"):
        small_model("mamba2").load_weights(tmp_path / "w.weights.h5")


def test_a_model_goes_on_training_after_it_is_loaded(tmp_path):
    model = classifier("mamba2")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, run_eagerly=BACKEND == "tensorflow")  # tracing takes longer
    labels = np.array([0, 1])
    model.fit(batch(), labels, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    losses = [one.fit(batch(), labels, epochs=3, verbose=0).history["loss"] for one in (model, again)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)  # the same operations, up to float32 rounding


READER = """
import sys, numpy as np, keras, dl_mamba
folder = sys.argv[1]
data = np.load(folder + "/inputs.npz")
batch = {name: data[name] for name in ("input_ids", "attention_mask")}
results = {}
for name in sys.argv[2:]:
    model = keras.models.load_model(f"{folder}/{name}.keras")
    model.run_eagerly = keras.backend.backend() == "tensorflow"  # tracing takes longer than one eager call
    results[name] = model.predict(data["features"] if "layers" in name else batch, verbose=0)
np.savez(f"{folder}/{keras.backend.backend()}.npz", **results)
"""


@pytest.mark.parametrize("reader", sorted({"jax", "tensorflow", "torch"} - {BACKEND}))
def test_a_file_written_here_computes_the_same_in_a_new_process_on_another_backend(reader, tmp_path):
    wanted = {}
    for family in FAMILIES:
        for kind in ("classifier", "layers"):  # a classifier holds a backbone
            build, inputs = KINDS[kind]
            model = build(family)
            model.save(tmp_path / f"{family}_{kind}.keras")
            wanted[f"{family}_{kind}"] = outputs(model, inputs())
    np.savez(tmp_path / "inputs.npz", features=features(), **batch())
    finished = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path), *wanted],
        env={**os.environ, "KERAS_BACKEND": reader},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    came = np.load(tmp_path / f"{reader}.npz")
    for name in wanted:
        assert_close(came[name], wanted[name], 1e-5, name)  # the project's bound for float32 across backends


def test_the_classes_belong_to_the_package_dl_mamba():
    for family in FAMILIES:
        name = MODELS[family].__name__
        assert keras.saving.get_registered_name(MODELS[family]) == f"dl_mamba>{name}"
