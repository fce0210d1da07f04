"""Laws of the language models: logits, the next-token loss, perplexity, scores, saving."""

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, numpy, relative_error
from keras import ops
from model_harness import FAMILIES, SMALL_MODEL, own_path, perturb, place, run, tokens

import dl_mamba

MODELS = {"mamba": dl_mamba.MambaCausalLM, "mamba2": dl_mamba.Mamba2CausalLM}


def small_lm(family, **options):
    return perturb(MODELS[family](**{**SMALL_MODEL[family], "num_layers": 1, **options}))


def forward(model, ids, mask=None):
    inputs = {"input_ids": ids} if mask is None else {"input_ids": ids, "attention_mask": mask}
    return run(lambda inputs: model(inputs)["logits"], inputs)


def token_loss(logits, targets):
    """-log softmax in float64."""
    logits = logits.astype("float64") - logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]


def shifted(model, ids):
    """Loss of every token but the first, (batch, length - 1)."""
    return token_loss(forward(model, ids)[:, :-1], ids[:, 1:])


def loss_of(model, x, y=None, weights=None):
    """The loss that `fit` would train on."""

    def compute(x, y, weights):
        return model.compute_loss(x, y, model(x), weights)

    return float(run(compute, x, y, weights))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_the_hidden_states_times_the_table_without_the_padding_of_the_vocabulary(family, tied):
    model = small_lm(family, pad_vocab_size_multiple=8, tie_word_embeddings=tied, num_layers=2)
    ids = tokens(2, 5)
    outputs = run(lambda ids: model(ids, return_state=True, output_hidden_states=True), ids)
    weights = {name: numpy(v.value) for name, v in model.pretrained_variables().items()}
    table = weights["embedding/embeddings"].T if tied else weights["lm_head/kernel"]
    assert table.shape == (8, 16)
    assert_close(outputs["logits"], (outputs["last_hidden_state"] @ table)[..., :11], 1e-5)
    assert len(outputs["state"]) == 2
    assert len(outputs["hidden_states"]) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_pretrained_variables_name_every_weight_once(family):
    model = small_lm(family, tie_word_embeddings=False, num_layers=2)
    names = model.pretrained_variables()
    assert len({id(v) for v in names.values()}) == len(model.weights) == len(names)
    assert {"embedding/embeddings", "final_norm/scale", "layers/1/mixer/in_proj/kernel", "lm_head/kernel"} <= set(names)
    backbone = model.backbone
    assert backbone.pretrained_variables().keys() == {own_path(backbone, v) for v in backbone.weights}
    assert names.keys() - backbone.pretrained_variables().keys() == {"lm_head/kernel"}


def test_a_symbolic_call_tells_shapes_and_dtypes():
    model = small_lm("mamba2", dtype="mixed_bfloat16")
    logits = model(keras.Input((None,), dtype="int32"))["logits"]
    assert (logits.shape, logits.dtype) == ((None, None, 11), "float32")
    assert numpy(model(tokens(1, 3))["logits"]).dtype == "float32"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_shifted_cross_entropy(family):
    model, ids = small_lm(family), tokens(3, 6)
    assert abs(loss_of(model, ids) - shifted(model, ids).mean()) < 1e-5


def test_ignored_labels_padding_and_weights_leave_the_mean_of_the_others():
    model, ids = small_lm("mamba"), tokens(3, 6)
    losses = shifted(model, ids)
    labels = ids.copy()
    labels[0, 2:4] = -100
    assert abs(loss_of(model, ids, labels) - np.delete(losses.ravel(), [1, 2]).mean()) < 1e-5
    weights = np.random.default_rng(0).uniform(size=(3, 6)).astype("float32")
    assert abs(loss_of(model, ids, None, weights) - np.average(losses, weights=weights[:, 1:])) < 1e-5
    by_row = np.array([0.0, 1.0, 2.0], "float32")
    assert abs(loss_of(model, ids, None, by_row) - np.average(losses.mean(1), weights=by_row)) < 1e-5
    assert loss_of(model, ids, np.full_like(ids, -100)) == 0.0


@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_padding_changes_no_loss_wherever_it_stands(side):
    model = small_lm("mamba2")
    rows = [tokens(n, seed=n) for n in (6, 3, 1)]
    padded, mask = place(rows, 9, side, 0)
    wanted = np.concatenate([shifted(model, row[None]).ravel() for row in rows]).mean()
    assert abs(loss_of(model, {"input_ids": padded, "attention_mask": mask}) - wanted) < 1e-5


def test_packed_documents_have_the_losses_of_separate_ones():
    model, ids = small_lm("mamba"), tokens(1, 7)
    segments = np.array([[0, 0, 0, 1, 1, 1, 1]], "int32")
    wanted = np.concatenate([shifted(model, ids[:, :3]), shifted(model, ids[:, 3:])], axis=1).mean()
    assert abs(loss_of(model, {"input_ids": ids, "segment_ids": segments}) - wanted) < 1e-5


def test_fit_on_ids_learns_to_count_and_reports_loss_and_perplexity():
    keras.utils.set_random_seed(0)
    model = MODELS["mamba2"](**{**SMALL_MODEL["mamba2"], "num_layers": 1})
    ids = (np.arange(8)[None] + np.arange(32)[:, None]).astype("int32") % 11
    model.compile(keras.optimizers.Adam(3e-2))
    history = model.fit(ids, batch_size=16, epochs=15, verbose=0).history
    assert history["loss"][-1] < 0.3 < history["loss"][0]
    assert history["perplexity"][-1] < 1.4
    found = model.evaluate({"input_ids": ids, "attention_mask": np.ones_like(ids)}, verbose=0, return_dict=True)
    assert relative_error(found["perplexity"], np.exp(found["loss"])) < 1e-3
    assert model.generate(ids[:1, :3], 4)[0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_mixed_precision_trains():
    model = small_lm("mamba", dtype="mixed_float16" if BACKEND != "torch" else "mixed_bfloat16")
    model.compile(keras.optimizers.Adam(1e-3))
    assert np.isfinite(model.fit(tokens(4, 6), verbose=0).history["loss"][0])


def test_a_loss_given_to_compile_is_refused():
    model = small_lm("mamba")
    model.compile("sgd", loss="mse", run_eagerly=BACKEND != "jax")
    with pytest.raises(ValueError, match="was compiled with a loss, but has its own"):
        model.fit(tokens(2, 4), tokens(2, 4), verbose=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_log_likelihoods_in_pieces_of_any_length(family, monkeypatch):
    monkeypatch.setattr("dl_mamba.models.scoring.CHUNK", 4)
    model = small_lm(family)
    rows = [tokens(n, seed=n) for n in (9, 2, 1)]
    wanted = [np.pad(-shifted(model, row[None])[0], (1, 0)) for row in rows]
    for side in ("left", "right"):
        padded, mask = place(rows, 10, side, 0)
        score = model.score(padded, mask)
        assert score.tokens.shape == (3, 10)
        assert not score.tokens[~mask].any()
        assert_close(score.tokens[mask], np.concatenate(wanted), 1e-5)
        assert_close(score.total, [row.sum() for row in wanted], 1e-5)
    assert_close(model.score([row.tolist() for row in rows]).total, score.total, 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_keras_file_brings_back_logits_and_tokenizer(family, tmp_path):
    model = small_lm(family, tie_word_embeddings=False, tokenizer=dl_mamba.tokenizers.ByteTokenizer(max_length=7))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    ids = tokens(2, 4)
    np.testing.assert_array_equal(forward(again, ids), forward(model, ids))
    assert again.tokenizer.max_length == 7
    assert again.get_config() == model.get_config()


def test_from_variant_has_the_released_parameter_count():
    config = dl_mamba.variants.load("mamba-tiny")
    model = dl_mamba.MambaCausalLM.from_variant("tiny")
    assert model.count_params() == config.num_parameters
    assert dl_mamba.MambaCausalLM.from_variant("tiny", vocab_size=10, tie_word_embeddings=False).config.vocab_size == 10


def test_a_state_carries_gradients_from_piece_to_piece():
    model, ids = small_lm("mamba"), tokens(1, 6)

    def halves(ids):
        first = model(ids[:, :3], return_state=True)
        return ops.concatenate([first["logits"], model(ids[:, 3:], state=first["state"])["logits"]], axis=1)

    assert_close(run(halves, ids), forward(model, ids), 1e-5)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_logits_of_a_model_quantized_to_int8_stay_close_and_int4_says_why_not():
    model, ids = small_lm("mamba"), tokens(2, 5)
    wanted = forward(model, ids)
    model.quantize("int8")
    projections = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)]
    assert {layer.quantization_mode for layer in projections} == {"int8"}
    assert relative_error(forward(model, ids), wanted) < 0.1  # 8 bits in the embedding, twice, and in four projections
    other = small_lm("mamba")
    other.quantize("int4")
    with pytest.raises(ValueError, match="quantized to 'int4'.*choose 'int8'"):
        other(ids)


@pytest.mark.parametrize("vocab_size", [24, 21])
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_logits_of_any_number_of_rows_are_the_product_with_the_embedding(rows, vocab_size):
    model = small_lm("mamba2", vocab_size=vocab_size, pad_vocab_size_multiple=1)
    hidden = np.random.default_rng(0).normal(size=(rows, model.config.d_model)).astype("float32")
    wanted = hidden.astype("float64") @ ops.convert_to_numpy(model.backbone.embedding.embeddings).T
    assert_close(numpy(model.logits(ops.convert_to_tensor(hidden))), wanted, 1e-6)
