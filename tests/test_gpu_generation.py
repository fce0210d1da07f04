"""Decoding on a GPU: what the CUDA graph of torch, or the compiled loop of JAX, writes is what single steps write."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from harness import BACKEND, exact_products, numpy
from model_harness import FAMILIES, tokens
from test_causal_lm import small_lm

import dl_mamba
from dl_mamba.generation import Greedy, decoding
from dl_mamba.layers import one_token
from dl_mamba.ops.kernels.availability import unavailable

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))]
NEW = 40  # more than RECORD_FROM


@pytest.fixture
def singly(monkeypatch):
    """A function that generates without recordings, graphs, or kernels."""

    def generate(model, *args, **options):
        with monkeypatch.context() as patch, dl_mamba.ops.implementation_scope("chunked"):
            patch.setattr(decoding, "RECORD_FROM", 10_000)
            return model.generate(*args, **options)

    return generate


def lm(family, **options):
    return small_lm(family, d_model=64, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 4, 12])
def test_greedy_tokens_are_those_of_single_steps_prompt_after_prompt(family, batch, singly):
    model = lm(family, num_layers=2)
    for seed in range(3):
        ids = tokens(batch, 5 + seed, seed=seed)
        np.testing.assert_array_equal(model.generate(ids, NEW), singly(model, ids, NEW))


def test_weights_changed_between_two_requests_are_used(singly):
    model, ids = lm("mamba2"), tokens(1, 4)
    before = model.generate(ids, NEW)
    for variable in model.variables:
        variable.assign(-variable)
    after = model.generate(ids, NEW)
    assert (before != after).any()
    np.testing.assert_array_equal(after, singly(model, ids, NEW))


def test_two_streams_at_once_do_not_mix(singly):
    model, prompts = lm("mamba2"), [tokens(1, 4, seed=1), tokens(1, 6, seed=2)]
    wanted = [singly(model, ids, NEW)[0, ids.shape[1] :] for ids in prompts]
    streams = [model.generate(ids, NEW, stream=True) for ids in prompts]
    came = [np.concatenate(rows) for rows in zip(*zip(*streams, strict=True), strict=True)]
    for a, b in zip(came, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_end_token_a_stop_string_and_a_memory_end_rows_where_single_steps_do(singly):
    model, ids = lm("mamba", vocab_size=256), tokens(4, 5)
    free = singly(model, ids, NEW)
    end = int(free[0, 20])
    for options in (
        {"eos_token_id": end},
        {"sampler": "top_p", "seed": 3},
        {"eos_token_id": end, "return_state": True},
    ):
        came, wanted = model.generate(ids, NEW, **options), singly(model, ids, NEW, **options)
        if "return_state" in options:
            again = model.generate(None, NEW, state=came[1])
            np.testing.assert_array_equal(again, singly(model, None, NEW, state=wanted[1]))
            came, wanted = came[0], wanted[0]
        np.testing.assert_array_equal(came, wanted)
    model.tokenizer = dl_mamba.tokenizers.ByteTokenizer()
    text = singly(model, "The", NEW)
    stop = text[10:12]
    assert model.generate("The", NEW, stop=stop) == singly(model, "The", NEW, stop=stop)
    assert "".join(model.generate("The", NEW, stream=True)) == text[3:]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2**-7)])  # x, B and dt are rounded
@pytest.mark.parametrize("rows", [1, 5, 8, 9, 70])
def test_a_token_in_few_kernels_is_that_of_the_block(rows, dtype, tolerance):
    options = {"d_model": 96, "headdim": 16, "d_state": 16}
    block, exact = (dl_mamba.Mamba2ResidualBlock(**options, dtype=kind) for kind in (dtype, "float32"))
    random = np.random.default_rng(rows)
    for layer in (block, exact):
        layer.build((None, None, 96))
    for variable, copy in zip(block.variables, exact.variables, strict=True):
        variable.assign(variable + 0.1 * random.normal(size=variable.shape))
        copy.assign(keras.ops.cast(variable, "float32"))
    x = keras.ops.convert_to_tensor(random.normal(size=(rows, 4, 96)).astype("float32"))
    _, state = block(x[:, :3], return_state=True)
    wide = [keras.ops.cast(part, "float32") for part in state]
    with dl_mamba.ops.implementation_scope("chunked"), exact_products():
        wanted = exact(x[:, 3:], state=wide, return_state=True)
    with one_token.fused():
        assert one_token.fits(block, x[:, 3:], None, state, None)
        came = block(x[:, 3:], state=state, return_state=True)
    own = block(x[:, 3:], state=state, return_state=True)
    for a, b, c in zip(*map(keras.tree.flatten, (came, wanted, own)), strict=True):
        missed = np.linalg.norm(numpy(a) - numpy(b))
        # where much of a state cancels, the block's own operations miss by more than a rounding as well
        assert missed <= max(tolerance * np.linalg.norm(numpy(b)), 1.25 * np.linalg.norm(numpy(c) - numpy(b)))


@pytest.mark.skipif(BACKEND != "torch", reason="CUDA graphs are torch's")
def test_a_graph_really_runs_and_serves_the_next_request():
    model, ids = lm("mamba2"), tokens(1, 4)
    model.generate(ids, NEW)
    first = decoding.Programs.of(model)._returned[1]
    model.generate(ids, NEW)
    assert type(first).__name__ == "CudaGraph"
    assert decoding.Programs.of(model)._returned[1] is first


@pytest.mark.parametrize(("rows", "size"), [(1, 50277), (3, 8192), (64, 11)])
@pytest.mark.parametrize("ends", [[-1], [3, 7]])
def test_the_kernel_of_the_greedy_choice_takes_the_first_of_the_largest(rows, size, ends):
    random = np.random.default_rng(rows)
    logits = np.round(2 * random.normal(size=(rows, size + 5))).astype("float32")  # with many of equal size
    logits[-1] = -np.inf
    logits = keras.ops.convert_to_tensor(logits)[:, :size]
    numbers = {"end": np.array(ends, "int32"), "pad": np.array(9, "int32")}
    numbers = {name: keras.ops.convert_to_tensor(value) for name, value in numbers.items()}
    done = keras.ops.convert_to_tensor(random.random(rows) < 0.4)
    came, _ = Greedy().choose(logits, {"done": done}, numbers, None)
    with dl_mamba.ops.implementation_scope("chunked"):
        wanted, _ = Greedy().choose(logits, {"done": done}, numbers, None)
    for name in ("token", "real", "done"):
        np.testing.assert_array_equal(numpy(came[name]), numpy(wanted[name]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2**-7)])
def test_logits_and_embedding_of_a_token_are_those_of_the_model(dtype, tolerance):
    model = lm("mamba2", dtype=dtype, vocab_size=1003)
    exact = lm("mamba2", vocab_size=1003)
    for variable, copy in zip(model.variables, exact.variables, strict=True):
        copy.assign(keras.ops.cast(variable, "float32"))
    ids = keras.ops.convert_to_tensor(np.array([[4], [0], [1002]], "int32"))
    hidden = keras.random.normal((3, 64))
    with dl_mamba.ops.implementation_scope("chunked"), exact_products():
        wanted = exact.logits(hidden), exact.backbone._embedded(ids)
    with one_token.fused():
        hidden = keras.ops.cast(hidden, dtype)
        assert one_token.product_fits(hidden, model.backbone.embedding.embeddings)
        assert one_token.embedding_fits(model.backbone.embedding, ids)
        came = model.logits(hidden), model.backbone._embedded(ids)
    for a, b in zip(came, wanted, strict=True):
        a, b = numpy(keras.ops.cast(a, "float32")), numpy(b)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("rows", [2, 20])
def test_states_in_bfloat16_are_those_of_float32_rounded(rows):
    block = dl_mamba.Mamba2ResidualBlock(d_model=96, headdim=16, d_state=16)
    random = np.random.default_rng(rows)
    draw = lambda *shape: keras.ops.convert_to_tensor(random.normal(size=shape).astype("float32"))  # noqa: E731
    x, state = draw(rows, 1, 96), block.initial_state(rows)
    half = keras.ops.cast(draw(*state.ssm.shape), "bfloat16")
    with one_token.fused():
        y, kept = block(x, state=state._replace(ssm=half), return_state=True)
        wanted, exact = block(x, state=state._replace(ssm=keras.ops.cast(half, "float32")), return_state=True)
    assert keras.backend.standardize_dtype(kept.ssm.dtype) == "bfloat16"
    np.testing.assert_allclose(numpy(y), numpy(wanted), rtol=0, atol=1e-5)  # a state read rounded is off by 3e-3
    rounded = keras.ops.cast(exact.ssm, "bfloat16")
    np.testing.assert_array_equal(*(numpy(keras.ops.cast(part, "float32")) for part in (kept.ssm, rounded)))
