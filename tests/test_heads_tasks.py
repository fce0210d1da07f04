"""Every task type: built, one fit, the file; fields that are refused, labels that do not fit, heads from outside."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from harness import BACKEND, numpy
from head_harness import features_of, head_of, inputs_of, labels_of, task_of
from model_harness import SMALL_MODEL, WITH_HEAD, run

from dl_mamba.heads import (
    TASKS,
    NLPTaskConfig,
    NLPTaskType,
    SequenceClassificationHead,
    TaskHead,
    check_labels,
    compile_options,
    create_nlp_head,
    register_head,
    registry,
)
from dl_mamba.heads.losses import TaskLoss

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"num_layers": 1, **{k: v for k, v in SMALL_MODEL["mamba2"].items() if k != "num_layers"}}
ONE_OF_EACH_HEAD = {task.head: task_type for task_type, task in reversed(TASKS.items())}
VARIATIONS = {
    "crf": ("named_entity_recognition", {"use_crf": True}),
    "several labels": ("topic_classification", {"problem_type": "multi_label", "label_smoothing": 0.1}),
    "values": ("quality_scoring", {"num_classes": 2}),
    "cosine": ("duplicate_detection", {"similarity": "cosine"}),
    "dot": ("duplicate_detection", {"similarity": "dot", "hidden_size": 4}),
    "joint": ("natural_language_inference", {"encoding": "joint", "pooling": "attention"}),
    "untied": ("text_generation", {"tie_word_embeddings": False}),
    "unlabelled arcs": ("coreference_resolution", {"num_classes": None}),
}
CASES = {**{str(task_type): (str(task_type), {}) for task_type in TASKS}, **VARIATIONS}


def small(task, **options):
    keras.utils.set_random_seed(0)
    return WITH_HEAD["mamba2"]("tiny", task, **{**SMALL, **options})


def test_the_table_has_every_task_type_and_the_page_is_the_one_that_its_script_writes():
    assert set(TASKS) == set(NLPTaskType)
    spec = importlib.util.spec_from_file_location("tasks_table", ROOT / "docs" / "tasks_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    found = script.tried(text)
    assert text == script.page(found)
    assert {cell for task_type in TASKS for cell in found[task_type].values()} == {"equal"}


@pytest.mark.parametrize("case", CASES)
def test_a_task_is_built_and_comes_back_from_its_config(case):
    task = task_of(CASES[case][0], **CASES[case][1])
    assert NLPTaskConfig(**json.loads(json.dumps(task.to_dict()))) == task
    head = head_of(task)
    inputs = inputs_of(task)
    labels = labels_of(task, inputs)
    check_labels(task, labels, inputs["attention_mask"])
    output = run(head, features_of(inputs))
    assert output.shape == tuple(head.compute_output_spec(features_of(inputs)).shape)
    assert np.all(np.isfinite(output))
    assert len(head.decode(output)) == 2
    loss, metrics = (compile_options(task)[part] for part in ("loss", "weighted_metrics"))
    assert np.isfinite(run(loss, labels, output))
    assert metrics


def fitted(case):
    task = task_of(CASES[case][0], **CASES[case][1])
    model, inputs = small(task), inputs_of(task)
    model.compile(keras.optimizers.Adam(0.01), **compile_options(task), run_eagerly=BACKEND == "tensorflow")
    return model, inputs, model.fit(inputs, labels_of(task, inputs), verbose=0).history


# Types with the same head and defaults differ in nothing but their name; compiling each takes long but on torch.
FITTED = CASES if BACKEND == "torch" else [*ONE_OF_EACH_HEAD.values(), "crf"]


@pytest.mark.parametrize("case", FITTED)
def test_one_fit_changes_the_head_and_the_file_gives_the_same_outputs(case, tmp_path):
    task = task_of(CASES[case][0], **CASES[case][1])
    before = [numpy(v.value) for v in small(task).get_layer("task").trainable_variables]
    model, inputs, history = fitted(case)
    head = model.get_layer("task")
    assert all(np.isfinite(values).all() for values in history.values()), history
    assert len(history) >= 2
    after = [numpy(v.value) for v in head.trainable_variables]
    assert not before or any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.get_layer("task").config == head.config
    for came, wanted in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(came, wanted)


RELOAD = """
import pathlib, sys, keras, numpy, dl_mamba
for file in sorted(pathlib.Path(sys.argv[1]).glob("*.keras")):
    data = dict(numpy.load(file.with_suffix(".npz")))
    wanted = data.pop("y")
    output = keras.ops.convert_to_numpy(keras.models.load_model(file).predict_on_batch(data))
    print(file.stem, float(numpy.abs(output - wanted).max()))
"""


def test_every_head_is_read_by_a_process_that_imports_no_more_than_dl_mamba(tmp_path):
    cases = [*ONE_OF_EACH_HEAD.values(), "crf", "joint"] if BACKEND == "torch" else ["crf", "joint", "multiple_choice"]
    for number, case in enumerate(cases):
        task = task_of(CASES[case][0], **CASES[case][1])
        model, inputs = small(task), inputs_of(task)
        model.save(tmp_path / f"{number}.keras")
        np.savez(tmp_path / f"{number}.npz", y=run(model, inputs), **inputs)
    command = [sys.executable, "-c", RELOAD, str(tmp_path)]
    result = subprocess.run(
        command, env={**os.environ, "KERAS_BACKEND": BACKEND}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    found = dict(line.split() for line in result.stdout.splitlines())
    assert len(found) == len(cases)
    assert all(float(difference) < 1e-4 for difference in found.values()), found  # eager and compiled round apart


@pytest.mark.parametrize(
    ("task_type", "fields"),
    [
        ("spam_detection", {"num_classes": 2, "use_crf": True}),
        ("spam_detection", {"num_classes": 2, "vocab_size": 100}),
        ("spam_detection", {"num_classes": 2, "max_length": 100}),
        ("question_answering", {"num_classes": 2}),
        ("question_answering", {"pooling": "mean"}),
        ("named_entity_recognition", {"num_classes": 2, "similarity": "dot"}),
        ("named_entity_recognition", {"num_classes": 2, "pooling": "max"}),
        ("multiple_choice", {"num_classes": 4}),
        ("text_generation", {"hidden_size": 4}),
        ("text_generation", {"label_names": ("a", "b")}),
        ("text_generation", {"num_labels": 3}),
        ("dependency_parsing", {"num_classes": 4, "encoding": "joint"}),
        ("text_similarity", {"tie_word_embeddings": False}),
        ("question_answering", {"problem_type": "regression"}),
    ],
)
def test_a_field_without_use_is_refused_by_name(task_type, fields):
    refused = list(fields)[-1]
    with pytest.raises(ValueError, match=f"{refused}=.* is not used by {task_type}"):
        NLPTaskConfig("t", task_type, **fields)


@pytest.mark.parametrize(
    ("task_type", "fields", "words"),
    [
        ("text_regression", {"label_smoothing": 0.1}, ("label_smoothing=0.1", "regression")),
        ("sequence_labeling", {"num_classes": 3, "use_crf": True, "label_smoothing": 0.1}, ("label_smoothing", "CRF")),
        ("text_similarity", {"num_classes": 3}, ("num_classes=3", "'cosine'", "learned")),
        ("sequence_labeling", {"num_classes": 3, "problem_type": "regression"}, ("'regression'", "single_label")),
        ("relation_extraction", {}, ("num_classes=None", "relations")),
        ("spam_detection", {"num_classes": 2, "num_labels": 3}, ("num_labels=3", "num_classes=2")),
        ("spam_detection", {"num_classes": 2, "loss_weight": -1.0}, ("loss_weight=-1.0", ">= 0")),
        ("question_answering", {"max_length": 0}, ("max_length=0", ">= 1")),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named(task_type, fields, words):
    with pytest.raises(ValueError, match=".") as caught:
        NLPTaskConfig("t", task_type, **fields)
    assert all(word in str(caught.value) for word in words), caught.value


def test_num_labels_is_another_name_of_num_classes():
    assert NLPTaskConfig("t", "spam_detection", num_labels=2) == NLPTaskConfig("t", "spam_detection", num_classes=2)
    assert NLPTaskConfig("t", "spam_detection", num_classes=2).num_labels == 2


MASK = np.array([[1, 1, 1, 0], [0, 1, 1, 0]])


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        (task_of("topic_classification"), [0, 3], ("'task'", "row 1 has 3", "0 to 2")),
        (task_of("sequence_labeling"), [[0, 1, 2, -100], [0, 0, 7, 0]], ("row 1, position 2 has 7",)),
        (task_of("topic_classification"), [-100, 1], ("row 0 has no label",)),
        (task_of("text_regression"), [np.nan, np.nan], ("no row has a label",)),
        (task_of("topic_classification"), [0, 1, 2], ("3 rows", "2 texts")),
        (task_of("question_answering"), [[0, 1], [1, 3]], ("row 1 names position 3", "no real token")),
        (task_of("question_answering"), [[2, 1], [1, 2]], ("row 0 has [2, 1]", "ends before it starts")),
        (task_of("dependency_parsing"), [[[0, 0]] * 4, [[0, 0], [0, 0], [4, 0], [0, 0]]], ("row 1 names position 3",)),
        (task_of("dependency_parsing"), [[[0, 2]] * 4] * 2, ("relation 2", "0 to 1")),
        (
            task_of("topic_classification", problem_type="multi_label"),
            [[0, 1, 1], [0, 2, 0]],
            ("row 1, class 1 has 2",),
        ),
    ],
)
def test_a_label_that_does_not_fit_is_named_with_its_row(task, labels, words):
    with pytest.raises(ValueError, match=".") as caught:
        check_labels(task, np.array(labels), MASK)
    assert all(word in str(caught.value) for word in words), caught.value


def test_labels_of_several_tasks_are_looked_at_one_by_one():
    tasks = [task_of("topic_classification", "topic"), task_of("text_regression", "score")]
    check_labels(tasks, {"topic": np.array([0, -100]), "score": np.array([np.nan, 1.0])}, MASK)
    with pytest.raises(ValueError, match=r"labels are \['topic'\]; .*'score'.*-100"):
        check_labels(tasks, {"topic": np.array([0, 1])}, MASK)
    with pytest.raises(ValueError, match="'topic': row 0 has 4"):
        check_labels(tasks, {"topic": np.array([4, 1]), "score": np.zeros(2)}, MASK)


def test_a_label_out_of_range_stops_a_visible_run_and_poisons_a_compiled_one():
    loss = TaskLoss("softmax", name="topic")
    with pytest.raises(ValueError, match="'topic': row 1 has 3; 0 to 2"):
        loss(np.array([0, 3]), np.zeros((2, 3), "float32"))
    from dl_mamba.heads.losses import smoothed_cross_entropy

    losses = run(smoothed_cross_entropy, np.zeros((2, 3), "float32"), np.array([0, 3], "int32"))
    np.testing.assert_array_equal(np.isnan(losses), [False, True])


@pytest.fixture
def registered():
    before = dict(registry._tasks)
    yield
    registry._tasks.clear()
    registry._tasks.update(before)


def test_a_head_of_ones_own_is_found_by_its_task_type_and_saved(registered, tmp_path):
    @register_head("irony_detection", num_classes=2)
    class IronyHead(SequenceClassificationHead):
        fields = ("num_classes", "pooling", "problem_type")

    task = NLPTaskConfig("task", "irony_detection")
    assert type(create_nlp_head(task)) is IronyHead
    with pytest.raises(ValueError, match="hidden_size=4 is not used by irony_detection"):
        NLPTaskConfig("task", "irony_detection", hidden_size=4)
    model, inputs = small(task), inputs_of(task_of("spam_detection"))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.get_layer("task")) is IronyHead
    np.testing.assert_array_equal(run(again, inputs), run(model, inputs))
    with pytest.raises(ValueError, match="'irony_detection' belongs to IronyHead; give OtherHead another name"):

        @register_head("irony_detection")
        class OtherHead(TaskHead):
            pass

    with pytest.raises(ValueError, match="'spam_detection' belongs to SequenceClassificationHead"):
        register_head("spam_detection")(IronyHead)
    with pytest.raises(ValueError, match="is no TaskHead"):
        register_head("another_detection")(keras.layers.Dense)
    with pytest.raises(ValueError, match=r"a name is needed: @register_head\('my_task'\)"):
        register_head(IronyHead)


def test_a_head_of_ones_own_says_what_it_lacks(registered):
    @register_head("bare_task")
    class BareHead(TaskHead):
        def call(self, inputs, mask=None):
            return inputs["last_hidden_state"][:, 0]

    task = NLPTaskConfig("task", "bare_task")
    assert BareHead.make_metrics(task) == []
    with pytest.raises(NotImplementedError, match="BareHead has no make_loss; write it, or give `compile` a loss"):
        compile_options(task)
    with pytest.raises(NotImplementedError, match="BareHead has no decode"):
        BareHead(task).decode(np.ones((1, 2)))


def test_another_package_plugs_a_head_in_by_an_entry_point(registered, tmp_path, monkeypatch):
    (tmp_path / "sarcasm_heads.py").write_text(
        "from dl_mamba.heads import SequenceClassificationHead\n"
        "class SarcasmHead(SequenceClassificationHead):\n    '''Of another package.'''\n"
    )
    info = tmp_path / "sarcasm_heads-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sarcasm-heads\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dl_mamba.heads]\nsarcasm_detection = sarcasm_heads:SarcasmHead\n")
    with pytest.raises(ValueError, match="'sarcasm_detection' is unknown"):
        NLPTaskConfig("t", "sarcasm_detection", num_classes=2)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="'poetry' is unknown; .*'spam_detection'.*'sarcasm_detection'"):
        NLPTaskConfig("t", "poetry", num_classes=2)
    head = create_nlp_head(NLPTaskConfig("t", "sarcasm_detection", num_classes=2))
    assert type(head) is sys.modules["sarcasm_heads"].SarcasmHead
