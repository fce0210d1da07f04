"""Parity: a model loaded from a file of transformers computes what transformers computes, values and gradients."""

from __future__ import annotations

import os

import numpy as np
import published
import pytest
from harness import assert_close, numpy
from keras import ops
from model_harness import MODELS, SMALL_MODEL, perturb, projected, run, tokens, weight_gradients

import dl_mamba
from dl_mamba.models.pretrained import Pretrained
from dl_mamba.weights import Checkpoint
from dl_mamba.weights.tables import HEAD, weights_of

# transformers' initial values, perturbed: float32 noise of the logits stays below 1e-3 up to 4 layers. Options and
# lengths are tried on one layer, which compiles fast; depth, and no option at all, are tried apart.
THEIR_INITIAL_VALUES = 1e-3
# The authors' initial values, which ours are: below 5e-5 at any depth.
OUR_INITIAL_VALUES = 5e-5

MAMBA = {
    "d_inner is d_model": {"intermediate_size": 16},
    "d_inner from intermediate_size": {"intermediate_size": 40, "expand": 16},
    "biases": {"use_bias": True},
    "no convolution bias, two taps, odd rank": {"use_conv_bias": False, "conv_kernel": 2, "time_step_rank": 3},
    "untied, another epsilon": {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-2},
}
MAMBA2 = {
    "one group, tied": {"n_groups": 1, "tie_word_embeddings": True},
    "a group for each head": {"n_groups": 4},
    "biases": {"use_bias": True, "use_conv_bias": False},
    "finite step sizes": {"time_step_limit": (0.05, 0.2)},
    "head_dim is state_size, two taps": {"num_heads": 8, "head_dim": 4, "conv_kernel": 2},
}
FALCON_MAMBA = {
    "as released": {"intermediate_size": 32, "expand": 16, "tie_word_embeddings": False},
    "another epsilon": {"mixer_rms_eps": 1e-2, "use_bias": True},
}
GRID = {"mamba": MAMBA, "mamba2": MAMBA2, "falcon_mamba": FALCON_MAMBA}
CASES = [(kind, name) for kind, cases in GRID.items() for name in cases]


def ours(folder, **options) -> Pretrained:
    family = "mamba2" if Checkpoint(folder).config.__class__.__name__ == "Mamba2Config" else "mamba"
    return MODELS[family].from_pretrained(folder, **options)


def logits_of(model, hidden, folder):
    """Logits from the head in the folder, or from the embedding."""
    checkpoint = Checkpoint(folder)
    if checkpoint.tied:
        return ops.matmul(hidden, ops.transpose(model.pretrained_variables()["embedding/embeddings"].value))
    return ops.matmul(hidden, ops.convert_to_tensor(checkpoint.read(HEAD).copy()))


def values(model, ids, folder):
    def call(ids):
        hidden = model(ids)["last_hidden_state"]
        return hidden, logits_of(model, hidden, folder)

    return run(call, ids)


def assert_parity(their, model, folder, ids, tolerance):
    hidden, logits = values(model, ids, folder)
    their_hidden, their_logits = published.outputs(their, ids)
    np.testing.assert_allclose(hidden, their_hidden, rtol=0, atol=tolerance)
    np.testing.assert_allclose(logits, their_logits, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(np.argmax(logits, -1), np.argmax(their_logits, -1))


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_every_option_gives_the_hidden_states_and_logits_of_transformers(kind, case, tmp_path):
    their = published.theirs(kind, num_hidden_layers=1, **GRID[kind][case])
    folder = published.saved(their, tmp_path)
    assert_parity(their, ours(folder), folder, tokens(2, 11, vocab_size=24), THEIR_INITIAL_VALUES)


@pytest.mark.parametrize("kind", MODELS)
def test_every_length_gives_the_hidden_states_and_logits_of_transformers(kind, tmp_path):
    their = published.theirs(kind, num_hidden_layers=1)
    folder = published.saved(their, tmp_path)
    model = ours(folder)
    for length in (1, 3, 4, 5):  # chunks have 4 tokens; the grid has 3 x 4 - 1
        assert_parity(their, model, folder, tokens(2, length, vocab_size=24), THEIR_INITIAL_VALUES)


@pytest.mark.parametrize("kind", MODELS)
def test_four_layers_of_transformers_give_its_hidden_states_and_logits(kind, tmp_path):
    their = published.theirs(kind, num_hidden_layers=4)
    folder = published.saved(their, tmp_path)
    assert_parity(their, ours(folder), folder, tokens(2, 7, vocab_size=24), THEIR_INITIAL_VALUES)


@pytest.mark.parametrize("family", MODELS)
def test_a_deep_model_of_ours_is_the_same_in_transformers(family, tmp_path):
    options = {**SMALL_MODEL[family], "vocab_size": 24, "d_model": 16, "num_layers": 24}
    model = perturb(MODELS[family](**options), size=0.02)
    model.save_pretrained(tmp_path)
    their, report = published.KINDS[family][1].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert_parity(their, ours(tmp_path), tmp_path, tokens(2, 9, vocab_size=24), OUR_INITIAL_VALUES)


GRADIENT_CASES = [
    ("mamba", {"use_bias": True}),
    ("mamba2", {"use_bias": True, "tie_word_embeddings": True, "time_step_limit": (0.05, 2.0)}),
    ("falcon_mamba", {"tie_word_embeddings": False}),
]


@pytest.mark.parametrize(("kind", "options"), GRADIENT_CASES)
def test_the_gradient_of_every_weight_is_that_of_transformers(kind, options, tmp_path):
    their = published.theirs(kind, **options)
    folder = published.saved(their, tmp_path)
    model, ids = ours(folder), tokens(2, 7, vocab_size=24)
    came = weight_gradients(model, lambda: projected(logits_of(model, model(ids)["last_hidden_state"], folder)))
    noise = np.random.default_rng(0).normal(size=(2, 7, 24)).astype("float32")  # what `projected` draws
    wanted = published.gradients(their, ids, noise)
    weights = weights_of(model.config, head=False)
    assert sorted(came) == sorted(weights)
    for name, weight in weights.items():
        gradient = weight.layout.to_ours(wanted[f"backbone.{weight.file_name}"], weight.shape)
        assert_close(came[name], gradient, 1e-3, name)  # float32 sums in another order


@pytest.mark.parametrize("kind", MODELS)
def test_what_transformers_gets_wrong_equals_a_full_forward(kind, tmp_path):
    """Several tokens behind a state, right padding, left padding with biases, limits of dt in decoding."""
    limits = {"time_step_limit": (0.05, 0.2)} if kind == "mamba2" else {}
    model = ours(published.saved(published.theirs(kind, num_hidden_layers=1, use_bias=True, **limits), tmp_path))
    ids = tokens(1, 9, vocab_size=24)
    mask = np.ones((1, 12), "int32")
    right, left = (np.pad(ids, ((0, 0), pad)) for pad in ((0, 3), (3, 0)))

    def call(ids, right, left):
        first = model({"input_ids": right, "attention_mask": mask * (np.arange(12) < 5)}, return_state=True)
        second = model(ids[:, 5:8], state=first["state"], return_state=True)
        third = model(ids[:, 8:], state=second["state"])
        padded = model({"input_ids": left, "attention_mask": mask * (np.arange(12) >= 3)})
        parts = (first["last_hidden_state"][:, :5], second["last_hidden_state"], third["last_hidden_state"])
        whole = model(ids)["last_hidden_state"]
        return whole, ops.concatenate(parts, axis=1), padded["last_hidden_state"][:, 3:]

    whole, *others = run(call, ids, right, left)
    for other in others:
        assert_close(other, whole, 1e-5)  # float32 rounding


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_a_model_of_the_shape_of_130m_gives_the_logits_of_transformers(family, tmp_path):
    model = perturb(MODELS[family].from_variant("130m"), size=0.005)
    model.save_pretrained(tmp_path)
    their = published.KINDS[family][1].from_pretrained(tmp_path)
    assert_parity(their, ours(tmp_path), tmp_path, tokens(1, 64, vocab_size=50277), OUR_INITIAL_VALUES)


LOGITS_OF_130M = """
    -55.6909 -69.7903 -49.8981 -51.7581 -57.6544 -57.9368 -56.9591 -57.9033 -54.6787 -55.9261
    -55.3011 -58.0765 -60.5642 -47.0176 -52.0344 -49.7836 -55.9463 -57.8957 -56.7627 -57.1080
    -57.3434 -58.3015 -57.7875 -58.7760 -59.6037 -59.0665 -58.7087 -52.9293 -53.4654 -57.3466
    -56.9294 -55.7314 -53.3141 -55.8171 -56.9879 -56.9121 -56.2139 -54.7198 -56.4134 -57.4825
"""


NETWORK = pytest.mark.skipif(
    os.environ.get("DL_MAMBA_NETWORK") != "1",
    reason="fetches 0.5 GB and more from the Hugging Face hub; set DL_MAMBA_NETWORK=1 where there is a network",
)


@NETWORK
@pytest.mark.parametrize("repository", ["state-spaces/mamba-130m-hf", "state-spaces/mamba-130m"])
def test_the_released_130m_gives_its_published_logits(repository):
    model = MODELS["mamba"].from_pretrained(repository)
    hidden = model(np.array([[8262, 849, 403, 368, 2509, 32]], "int32"))["last_hidden_state"]
    logits = numpy(ops.matmul(hidden, ops.transpose(model.pretrained_variables()["embedding/embeddings"])))
    wanted = np.array(LOGITS_OF_130M.split(), "float32")
    np.testing.assert_allclose(logits[0, 0, :40], wanted, rtol=0, atol=1e-3)  # as transformers' own test


TEXTS = [
    ("130m", "float32", "Hey how are you doing?", 10, "\n\nI'm so glad you're here."),
    ("130m", "float16", "Hello my name is", 10, " John and I am a newbie to the world"),
    ("790m", "float16", "Hello my name is", 10, "\n\nI am a\n\nI am a"),
]


@NETWORK
@pytest.mark.parametrize(("size", "dtype", "prompt", "count", "text"), TEXTS)
def test_the_released_models_write_their_published_texts(size, dtype, prompt, count, text):
    repository = f"state-spaces/mamba-{size}-hf"
    model = dl_mamba.MambaCausalLM.from_pretrained(repository, dtype=dtype)
    assert model.generate(prompt, count) == prompt + text
