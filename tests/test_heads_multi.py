"""Laws of several tasks on one backbone, and of reading in both directions."""

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, numpy
from head_harness import inputs_of, labels_of, task_of
from model_harness import FAMILIES, SMALL_MODEL, WITH_HEAD, perturb, run, small_model, tokens

from dl_mamba.heads import BidirectionalEncoder, compile_options, create_multi_task_nlp_head
from dl_mamba.heads.bidirectional import reverse

FORWARD = 1e-5
SMALL = {**SMALL_MODEL["mamba2"], "num_layers": 1}
TASKS = [
    task_of("topic_classification", "topic", loss_weight=0.5, label_smoothing=0.1),
    task_of("named_entity_recognition", "names", use_crf=True, loss_weight=2.0),
    task_of("question_answering", "answer"),
    task_of("text_regression", "score"),
]
EAGER = BACKEND == "tensorflow"  # tracing takes longer


def model_of(tasks, **options):
    keras.utils.set_random_seed(0)
    return perturb(WITH_HEAD["mamba2"]("tiny", tasks, **{**SMALL, **options}), size=0.1)


def labels(inputs, missing=()):
    """Labels of all tasks; those of the missing ones say that there are none."""
    found = {task.name: labels_of(task, inputs) for task in TASKS}
    for name in missing:
        nothing = np.nan if found[name].dtype.kind == "f" else -100
        found[name] = np.full_like(found[name], nothing)
    return found


@pytest.fixture(scope="module")
def scored():
    """A compiled model, its outputs, and the losses and metrics of its tasks."""
    model, inputs, options = model_of(TASKS), inputs_of(TASKS[0]), compile_options(TASKS)
    model.compile("sgd", **options, run_eagerly=EAGER)
    return model, run(model, inputs), options


@pytest.mark.parametrize("missing", [(), ("names", "score"), tuple(task.name for task in TASKS)])
def test_the_loss_of_several_tasks_is_the_weighted_sum_of_their_own(scored, missing):
    (model, outputs, options), inputs = scored, inputs_of(TASKS[0])
    wanted = labels(inputs, missing)
    alone = {name: float(run(loss, wanted[name], outputs[name])) for name, loss in options["loss"].items()}
    assert all((alone[name] == 0.0) == (name in missing) for name in alone)
    score = model.evaluate(inputs, wanted, verbose=0, return_dict=True)
    total = sum(task.loss_weight * alone[task.name] for task in TASKS)
    assert score["loss"] == pytest.approx(total, rel=FORWARD)
    for name, loss in alone.items():
        assert score[f"{name}_loss"] == pytest.approx(loss, rel=FORWARD)
    assert score.keys() >= {"topic_accuracy", "names_viterbi_accuracy", "answer_exact_match"}


def test_a_row_without_a_label_and_one_of_weight_0_leave_the_loss_of_the_others(scored):
    (_, outputs, options), wanted = scored, labels(inputs_of(TASKS[0]))
    for name, loss in options["loss"].items():
        hidden = wanted[name].copy()
        hidden[1] = np.nan if hidden.dtype.kind == "f" else -100
        alone = run(loss, wanted[name][:1], outputs[name][:1])
        weighed = run(loss, wanted[name], outputs[name], np.array([1.0, 0.0], "float32"))
        assert weighed == pytest.approx(alone, rel=FORWARD), name
        assert run(loss, hidden, outputs[name]) == pytest.approx(alone, rel=FORWARD), name


def test_several_tasks_train_together_but_for_those_without_labels_and_come_back_from_their_file(tmp_path):
    model, inputs = model_of(TASKS, bidirectional=True), inputs_of(TASKS[0])
    heads = model.get_layer("tasks").heads
    before = {name: [numpy(v.value) for v in head.trainable_variables] for name, head in heads.items()}
    model.compile(keras.optimizers.SGD(0.1), **compile_options(TASKS), run_eagerly=EAGER)
    model.fit(inputs, labels(inputs, missing=("names", "answer")), verbose=0)
    for name, head in heads.items():
        after = [numpy(v.value) for v in head.trainable_variables]
        same = all(np.array_equal(a, b) for a, b in zip(before[name], after, strict=True))
        assert same == (name in ("names", "answer")), name
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("tasks").configs == model.get_layer("tasks").configs
    for came, wanted in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(came, wanted)
    assert {n: loss.get_config() for n, loss in again.loss.items()} == {
        n: x.get_config() for n, x in model.loss.items()
    }


@pytest.mark.parametrize("jit", [False, True])
def test_a_compiled_program_gives_the_loss_of_the_eager_one(jit):
    if BACKEND != "tensorflow" and jit == (BACKEND == "torch"):
        pytest.skip("torch runs eagerly, for compiling takes minutes; JAX compiles in any case")
    tasks = TASKS[:2]
    model, inputs = model_of(tasks), inputs_of(TASKS[0])
    wanted = {task.name: labels_of(task, inputs) for task in tasks}
    options = compile_options(tasks)
    outputs = run(model, inputs)
    alone = sum(t.loss_weight * float(numpy(options["loss"][t.name](wanted[t.name], outputs[t.name]))) for t in tasks)
    model.compile(keras.optimizers.SGD(0.0), **options, jit_compile=jit)
    history = model.fit(inputs, wanted, verbose=0).history
    assert history["loss"][0] == pytest.approx(alone, rel=1e-4)  # XLA adds in another order


def test_a_pair_and_a_single_text_share_a_backbone():
    tasks = [task_of("natural_language_inference", "pair"), task_of("topic_classification", "topic")]
    model = model_of(tasks)
    inputs = inputs_of(tasks[0])
    outputs = run(model, inputs)
    assert {name: output.shape for name, output in outputs.items()} == {"pair": (2, 3), "topic": (2, 3)}
    other = {**inputs, "pair_input_ids": (inputs["pair_input_ids"] + 1) % 11}
    changed = run(model, other)
    np.testing.assert_array_equal(changed["topic"], outputs["topic"])
    assert not np.allclose(changed["pair"], outputs["pair"])


def test_tasks_that_cannot_stand_together_are_named():
    topic = task_of("topic_classification", "topic")
    cases = [
        ([topic, task_of("text_regression", "topic")], {}, ("2 tasks have the name 'topic'",)),
        ([topic, task_of("multiple_choice", "story")], {}, ("'story'", "'topic'", "two models")),
        ([], {}, ("no task was given",)),
        ([topic, "spam"], {}, ("task_config is a str",)),
        (task_of("text_generation", "text"), {"bidirectional": True}, ("'text'", "masked_language_modeling")),
        (topic, {"share_weights": True}, ("share_weights=True", "bidirectional=True")),
        (task_of("text_generation", "text", vocab_size=7), {}, ("vocab_size=7", "11")),
    ]
    for tasks, options, words in cases:
        with pytest.raises(ValueError, match=".") as caught:
            WITH_HEAD["mamba2"]("tiny", tasks, **SMALL, **options)
        assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(ValueError, match="2 tasks have the name 'topic'"):
        create_multi_task_nlp_head([topic, topic])


def test_reversal_turns_real_tokens_alone_and_undoes_itself():
    mask = np.random.default_rng(0).random((6, 7)) < 0.6
    mask[0], mask[1] = True, False
    x = np.random.default_rng(1).normal(size=(6, 7, 2)).astype("float32")
    turned = run(reverse, x, mask)
    for row in range(6):
        np.testing.assert_array_equal(turned[row][mask[row]], x[row][mask[row]][::-1])
        np.testing.assert_array_equal(turned[row][~mask[row]], x[row][~mask[row]])
    np.testing.assert_array_equal(run(reverse, turned, mask), x)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_second_direction_reads_the_row_backwards(family, shared):
    forward = small_model(family)
    backward = None if shared else perturb(small_model(family, name="backward"), seed=3)
    encoder = BidirectionalEncoder(forward, backward)
    ids = tokens(2, 5)
    both = run(lambda x: encoder(x)["last_hidden_state"], ids)
    alone = run(lambda x: forward(x)["last_hidden_state"], ids)
    turned = run(lambda x: (backward or forward)(x)["last_hidden_state"], ids[:, ::-1].copy())
    assert_close(both, np.concatenate([alone, turned[:, ::-1]], axis=-1), FORWARD)
    assert encoder.count_params() == (1 if shared else 2) * forward.count_params()


@pytest.mark.parametrize("shared", [False, True])
def test_a_given_backbone_starts_both_directions_and_is_saved_once_or_twice(shared, tmp_path):
    task, backbone = task_of("named_entity_recognition"), small_model("mamba")
    model = WITH_HEAD["mamba"](backbone, task, bidirectional=True, share_weights=shared)
    encoder = model.get_layer("bidirectional")
    assert encoder.left_to_right is backbone
    if not shared:
        for came, wanted in zip(encoder.right_to_left.get_weights(), backbone.get_weights(), strict=True):
            np.testing.assert_array_equal(came, wanted)
    inputs = inputs_of(task)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.count_params() == model.count_params()
    np.testing.assert_array_equal(run(again, inputs), run(model, inputs))


def test_the_right_context_reaches_a_token_in_two_directions_only():
    ids = tokens(1, 6)
    other = ids.copy()
    other[0, -1] = (ids[0, -1] + 1) % 11
    for bidirectional in (False, True):
        model = model_of(task_of("named_entity_recognition"), bidirectional=bidirectional)
        first, second = (run(model, {"input_ids": x, "attention_mask": np.ones_like(x)})[0, 0] for x in (ids, other))
        assert np.array_equal(first, second) != bidirectional
