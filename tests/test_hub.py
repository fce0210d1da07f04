"""Laws of the KerasHub adapters: they compute, train, write and read back what our own models do."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, numpy
from model_harness import FAMILIES, SMALL_MODEL, perturb, place, run, tokens

import dl_mamba
from dl_mamba.tokenizers import ByteTokenizer

keras_hub = pytest.importorskip("keras_hub", reason="the extra hub is not installed")

from dl_mamba.hub import HubBackbone, HubCausalLM, HubPreprocessor, HubTokenizer  # noqa: E402

# What KerasHub does on its own account: it makes a tf.data.Dataset of every array, and overrides `compile`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed, but will be ignored:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:`compile\(\)` was not called as part of model loading:UserWarning"),
]

MODELS = {"mamba": dl_mamba.MambaCausalLM, "mamba2": dl_mamba.Mamba2CausalLM}
ROWS = [tokens(5, seed=1), tokens(1, seed=2), tokens(3, seed=3)]
LENGTH = 9


def small_lm(family, **options):
    keras.utils.set_random_seed(0)
    return perturb(MODELS[family](**{**SMALL_MODEL[family], "num_layers": 1, **options}))


def task_of(model, preprocessor=None, **options):
    task = HubCausalLM(HubBackbone(model), preprocessor)
    task.compile(**{"sampler": "greedy", "run_eagerly": BACKEND == "tensorflow", **options})  # tracing takes longer
    return task


def text_lm(**options):
    return small_lm("mamba2", vocab_size=256, tokenizer=ByteTokenizer(), **options)


def text_task(model, end=None):
    return task_of(model, HubPreprocessor(HubTokenizer(model.tokenizer, end), sequence_length=12))


def padded(*rows):
    ids, mask = place(list(rows), LENGTH, "right", np.int32(7))
    return {"token_ids": ids, "padding_mask": mask}


def logits(task, x):
    return run(lambda x: task(x), {name: np.asarray(value, "int32") for name, value in x.items()})


@functools.cache
def greedy(family):
    """A task that no test changes, so that its programs are compiled once."""
    return task_of(small_lm(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_unlike_lengths_give_what_our_own_generate_gives_each_alone(family):
    came = greedy(family).generate(padded(*ROWS), stop_token_ids=None)
    assert came["padding_mask"].all()
    for row, ids in zip(ROWS, came["token_ids"], strict=True):
        alone = greedy(family).backbone.model.generate([row.tolist()], LENGTH - len(row))
        np.testing.assert_array_equal(ids, alone[0])


def test_beams_of_prompts_of_unlike_lengths_are_those_of_each_alone():
    task = task_of(small_lm("mamba2"), sampler="beam")
    came = task.generate(padded(*ROWS), stop_token_ids=None)["token_ids"]
    for row, ids in zip(ROWS, came, strict=True):
        np.testing.assert_array_equal(ids, task.generate(padded(row), stop_token_ids=None)["token_ids"][0])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="on JAX and torch the other tests run what users run")
def test_the_compiled_program_does_what_the_eager_one_does():
    model = small_lm("mamba2")
    for options in ({"stop_token_ids": None}, {"stop_token_ids": [0, 5]}):
        came, wanted = (task_of(model, run_eagerly=e).generate(padded(*ROWS), **options) for e in (False, True))
        for name in came:
            np.testing.assert_array_equal(came[name], wanted[name])


def test_a_prompt_without_room_stays_as_it_is():
    full = tokens(LENGTH)
    for rows in ([full, *ROWS[:2]], [full] * 3):
        came = greedy("mamba2").generate(padded(*rows), stop_token_ids=None)
        np.testing.assert_array_equal(came["token_ids"][0], full)


def test_a_row_ends_with_its_own_first_stop_token_and_keeps_its_padding_behind():
    free = greedy("mamba2").generate(padded(*ROWS), stop_token_ids=None)["token_ids"]
    stop = int(free[0, len(ROWS[0])])  # the first new token of row 0
    came = greedy("mamba2").generate(padded(*ROWS), stop_token_ids=[stop])
    for ids, mask, unstopped, row in zip(came["token_ids"], came["padding_mask"], free, ROWS, strict=True):
        new = np.flatnonzero(unstopped[len(row) :] == stop)
        end = len(row) + new[0] + 1 if len(new) else LENGTH
        np.testing.assert_array_equal(mask, np.arange(LENGTH) < end)
        np.testing.assert_array_equal(ids[:end], unstopped[:end])
        assert (ids[end:] == 7).all()
    assert came["padding_mask"][0].sum() == len(ROWS[0]) + 1


def test_the_logits_are_those_of_our_model_without_a_look_at_the_padding():
    model = small_lm("mamba2", tie_word_embeddings=False, pad_vocab_size_multiple=4)
    ids, mask = place([ROWS[0]], LENGTH, "left", np.int32(7))
    came = logits(task_of(model), {"token_ids": ids, "padding_mask": mask})
    wanted = run(lambda ids: model(ids)["logits"], ROWS[0][None])
    assert_close(came[:, -len(ROWS[0]) :], wanted, 1e-5)


def test_fit_with_the_defaults_of_kerashub_learns():
    task = HubCausalLM(HubBackbone(small_lm("mamba2")))
    task.run_eagerly = BACKEND == "tensorflow"
    x = padded(*ROWS)
    y = np.roll(x["token_ids"], -1, axis=1)
    weight = x["padding_mask"].astype("float32")
    shifted = logits(task, x).astype("float64")
    losses = np.log(np.exp(shifted).sum(-1)) - np.take_along_axis(shifted, y[..., None], axis=-1)[..., 0]
    before = [numpy(v.value) for v in task.trainable_variables]
    history = task.fit(x, y, sample_weight=weight, epochs=3, verbose=0).history
    np.testing.assert_allclose(history["loss"][0], (losses * weight).mean(), rtol=1e-5)
    assert history["loss"][2] < history["loss"][0]
    assert sorted(history) == ["loss", "sparse_categorical_accuracy"]
    assert all((numpy(v.value) != old).any() for v, old in zip(task.trainable_variables, before, strict=True))


def test_lora_trains_its_own_kernels_and_is_merged_into_the_preset(tmp_path):
    task, other = task_of(small_lm("mamba2")), HubBackbone(small_lm("mamba"))
    for backbone in (task.backbone, other):
        backbone.enable_lora(2)
    assert {v.path.split("/")[-2] for v in other.trainable_variables} == {"in_proj", "x_proj", "out_proj"}
    assert all("lora_kernel" in v.path for v in task.trainable_variables)
    task.compile(keras.optimizers.Adam(0.1), sampler="greedy", run_eagerly=BACKEND == "tensorflow")
    x, before = padded(*ROWS), logits(task, padded(*ROWS))
    task.fit(x, x["token_ids"], verbose=0)
    trained = logits(task, x)
    assert np.abs(trained - before).max() > 1e-3
    task.save_to_preset(str(tmp_path))
    again = keras_hub.models.CausalLM.from_preset(str(tmp_path))
    assert_close(logits(again, x), trained, 1e-5)
    assert not any("lora" in v.path for v in again.variables)


def test_text_goes_in_and_comes_out_as_in_our_own_generate_up_to_its_end():
    model = text_lm()
    ids = model.generate([list(b"The")], 9)[0]
    task = text_task(model)
    assert task.generate("The") == "The" + task.generate("The", strip_prompt=True) == ByteTokenizer().decode([ids])[0]
    assert text_task(model, end=ids[5]).generate(["The"]) == ByteTokenizer().decode(
        [ids[: ids.tolist().index(ids[5], 3)]]
    )


def test_fit_takes_texts_and_ends_them():
    task, texts = text_task(text_lm(), end=0), ["The state", "öl", "", "longer than there is room"]
    x, y, weight = keras.tree.map_structure(numpy, task.preprocessor(texts))
    np.testing.assert_array_equal(y[1], [*"öl".encode()[1:], *[0] * 10])
    np.testing.assert_array_equal(weight.sum(axis=1), [9, 3, 0, 12])
    wanted = HubCausalLM(task.backbone).evaluate(x, y, sample_weight=weight, verbose=0)[0]
    history = task.fit(texts, verbose=0).history
    np.testing.assert_allclose(history["loss"][0], wanted, rtol=1e-5)


READER = """
import sys, numpy as np, keras, keras_hub, dl_mamba.hub
data = dict(np.load(sys.argv[1] + "/inputs.npz"))
task = keras_hub.models.CausalLM.from_preset(sys.argv[1])
task.compile(sampler="greedy", run_eagerly=keras.backend.backend() == "tensorflow")
text = task.generate("The")
task.preprocessor = None
np.savez(sys.argv[1] + "/came.npz", logits=keras.ops.convert_to_numpy(task(data)), text=text)
"""


def test_a_preset_computes_the_same_in_a_new_process_on_another_backend(tmp_path):
    reader = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}[BACKEND]
    task = text_task(text_lm(tie_word_embeddings=False), end=3)
    task.save_to_preset(str(tmp_path))
    x = {name: value.astype("int32") for name, value in padded(*ROWS).items()}
    np.savez(tmp_path / "inputs.npz", **x)
    finished = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": reader},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    came = np.load(tmp_path / "came.npz")
    assert_close(came["logits"], logits(task, x), 1e-5)  # the project's bound for float32 across backends
    assert str(came["text"]) == task.generate("The")


def test_every_part_of_a_preset_is_found_from_the_class_of_kerashub(tmp_path):
    text_task(text_lm(), end=3).save_to_preset(str(tmp_path))
    hub = keras_hub.models
    parts = {hub.Backbone: HubBackbone, hub.CausalLMPreprocessor: HubPreprocessor, hub.Tokenizer: HubTokenizer}
    for base, ours in parts.items():
        assert type(base.from_preset(str(tmp_path))) is ours
    assert hub.Tokenizer.from_preset(str(tmp_path)).end_token_id == 3
    half = hub.CausalLM.from_preset(str(tmp_path), dtype="bfloat16")
    assert half.backbone.model.compute_dtype == half.backbone.compute_dtype == "bfloat16"
    assert half.backbone.model.tokenizer is None


def test_keras_files_hold_the_task_and_graphs_that_go_on_from_the_backbone(tmp_path):
    task = text_task(text_lm(), end=3)
    pooled = keras.layers.GlobalAveragePooling1D()(task.backbone.output)
    graph = keras.Model(task.backbone.input, keras.layers.Dense(2)(pooled))
    x = padded(*ROWS)
    for model in (task, graph):
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert_close(logits(again, x), logits(model, x), 1e-6)


BAD = [
    ([[1, 2]], "a dictionary of"),
    ({"token_ids": [[1, 2]]}, "a dictionary of"),
    ({"token_ids": [[1, 2], [3, 4]], "padding_mask": [[1, 1], [0, 0]]}, "row 1 of token_ids holds no token"),
    ({"token_ids": [[1, 11]], "padding_mask": [[1, 1]]}, "token_ids holds 11; ids from 0 to 10"),
    ({"token_ids": [[1, 2]], "padding_mask": [[0, 1]]}, "row 0 of padding_mask has padding before real tokens"),
    ({"token_ids": [[1, 2]], "padding_mask": [[1]]}, r"padding_mask has shape \(1, 1\)"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD)
def test_bad_prompts_are_refused_before_anything_is_computed(inputs, message, monkeypatch):
    task = greedy("mamba2")
    monkeypatch.setattr(HubCausalLM, "generate_step", lambda *args: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        task.generate(inputs, stop_token_ids=None)


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[1] / "docs" / "generation.md").read_text(encoding="utf-8")
    (block,) = re.findall(r'```python title="With keras-hub"\n(.*?)```', page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {"model": small_lm("mamba2", vocab_size=256, tokenizer=ByteTokenizer())})
