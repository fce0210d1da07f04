"""A quantized model comes back from its `.keras` file with the same answers, whatever holds its layers."""

import keras
import numpy as np
import pytest
from harness import assert_close
from keras import ops
from model_harness import SMALL_MODEL, perturb, run, tokens

import dl_mamba
from dl_mamba.heads import NLPTaskConfig, create_multi_task_nlp_head

pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method"),
    pytest.mark.filterwarnings("ignore:Invalid quantization mode"),  # an embedding stays as it is under float8
]


def language_model(family="mamba2", **options):
    make = {"mamba": dl_mamba.MambaCausalLM, "mamba2": dl_mamba.Mamba2CausalLM}[family]
    return perturb(make(**SMALL_MODEL[family], **options)), tokens(2, 5)


def classifier():
    encoder = dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=1, d_state=4)
    tasks = [
        NLPTaskConfig("mood", "sentiment_analysis", 2, hidden_size=4),
        NLPTaskConfig("tags", "token_classification", 3),
    ]
    inputs = keras.Input((None,), dtype="int32")
    outputs = create_multi_task_nlp_head(tasks)({"last_hidden_state": encoder(inputs)["last_hidden_state"]})
    return keras.Model(inputs, outputs), tokens(2, 5)


def series_model():
    inputs = keras.Input((None, 3))
    x = keras.layers.Dense(8)(inputs)
    x = dl_mamba.Mamba2ResidualBlock(d_model=8, headdim=4, d_state=4)(x)
    x = dl_mamba.MambaLayer(d_model=8, d_state=4)(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x)), np.random.default_rng(0).normal(size=(2, 5, 3)).astype(
        "float32"
    )


def answers(model, inputs):
    return [ops.convert_to_numpy(x) for x in keras.tree.flatten(run(model, inputs))]


def modes(model):
    return sorted((part.path, part.quantization_mode) for part in model._flatten_layers() if part.quantization_mode)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize("make", [lambda: language_model(tie_word_embeddings=False), classifier, series_model])
def test_a_quantized_model_comes_back_from_its_file(make, mode, tmp_path):
    model, inputs = make()
    model.quantize(mode)
    wanted = answers(model, inputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert modes(loaded) == modes(model)
    for came, want in zip(answers(loaded, inputs), wanted, strict=True):
        assert_close(came, want, 1e-6)


def test_tied_logits_of_an_int8_model_come_back():
    model, inputs = language_model("mamba")
    model.quantize("int8")
    loaded = type(model).from_config(model.get_config())
    loaded.set_weights(model.get_weights())
    assert_close(answers(loaded, inputs)[0], answers(model, inputs)[0], 1e-6)


def test_adapters_of_a_quantized_model_come_back(tmp_path):
    model, inputs = language_model("mamba")
    model.quantize("int8")
    dl_mamba.training.enable_lora(model, rank=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.trainable_variables) == len(model.trainable_variables) > 0
    assert_close(answers(loaded, inputs)[0], answers(model, inputs)[0], 1e-6)


def test_an_adapter_of_a_quantized_embedding_is_refused():
    model, _ = language_model("mamba")
    model.quantize("int8")
    with pytest.raises(ValueError, match="the embedding is quantized; adapt it before"):
        dl_mamba.training.enable_lora(model, rank=1, targets=["embedding"])


def test_a_config_that_names_a_missing_part_says_which_exist():
    config = dl_mamba.MambaLayer(d_model=8).get_config() | {"quantized": {"nowhere": {"mode": "int8", "config": None}}}
    layer = dl_mamba.MambaLayer.from_config(config)
    with pytest.raises(ValueError, match="no part 'nowhere' to quantize; it has .*in_proj"):
        layer.build_from_config({"input_shape": (None, None, 8)})
