"""Every family of tasks through the commands: data in its format, one file, scores that its own answers bear out."""

import csv
import json
import re
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import dl_mamba
from dl_mamba.cli.app import app
from dl_mamba.heads import NLPTaskType, TaskModel, task_model
from dl_mamba.heads.task_model import reader_class
from dl_mamba.pipelines.recipe import TASK, TEXT
from dl_mamba.pipelines.task_specs import TaskSpec
from dl_mamba.tokenizers import ByteTokenizer

SMALL = {"d_model": 16, "num_layers": 1, "headdim": 8, "d_state": 4, "chunk_size": 16}
WORDS = (("the", "DET", 2, "det"), ("cat", "NOUN", 3, "nsubj"), ("sat", "VERB", 0, "root"))
TREE = "".join(f"{i}\t{w}\t_\t{tag}\t_\t_\t{head}\t{kind}\t_\t_\n" for i, (w, tag, head, kind) in enumerate(WORDS, 1))
TREE += "\n"


@pytest.fixture(autouse=True)
def _small_and_eager(monkeypatch):
    """Small models whose steps are not compiled; SIGTERM is pytest's own again afterwards."""
    for recipe in (TASK, TEXT):
        for name, value in SMALL.items():
            monkeypatch.setitem(recipe.options, name, value)
    compiled, built = TaskModel.compile, task_model.TaskModel.build

    def build(self, input_shape=None):
        built(self, input_shape)
        self.run_eagerly = True

    monkeypatch.setattr(TaskModel, "build", build)
    monkeypatch.setattr(TaskModel, "compile", lambda self, *a, **k: compiled(self, *a, **k, run_eagerly=True))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def _call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


QUESTIONS = _jsonl(
    {"question": "who?", "context": "it is Anna here", "answers": {"text": ["Anna"], "answer_start": [6]}},
    {"question": "who?", "context": "nobody came", "answers": {"text": [], "answer_start": []}},
)
RELATIONS = _jsonl(
    {"tokens": ["Anna", "runs", "Acme"], "relations": [{"from": 1, "to": 3, "label": "leads"}]},
    {"tokens": ["no", "one"], "relations": []},
)
# task, file name, content, options of train, scores that evaluate writes, fields of an answer
FAMILIES = [
    ("text_regression", "a.csv", "text,label\nfine,1.5\nbad,-1\nso so,0\nmore,2\n", (), {"pearson", "r2"}, {"value"}),
    ("topic_classification", "a.tsv", "text\tlabels\nfine\tx|y\nbad\ty\nno\tx\n", (), {"micro_f1", "ece"}, {"labels"}),
    ("text_matching", "a.csv", "text_a,text_b,label\na,b,no\nc,c,yes\nd,d,yes\n", (), {"accuracy", "ece"}, {"label"}),
    (
        "named_entity_recognition",
        "a.conll",
        "Anna B-PER\nMay I-PER\n\nin O\n\nRome B-LOC\n" * 2,
        (),
        {"entities"},
        {"tags"},
    ),
    ("part_of_speech_tagging", "a.conllu", TREE * 3, ("--causal",), {"accuracy", "macro_f1"}, {"tags"}),
    ("dependency_parsing", "a.conllu", TREE * 3, (), {"uas", "las"}, {"heads", "relations"}),
    ("relation_extraction", "a.jsonl", RELATIONS * 2, (), {"precision", "f1"}, {"relations"}),
    ("question_answering", "a.jsonl", QUESTIONS * 2, (), {"exact_match", "f1", "unanswerable"}, {"text", "start"}),
    (
        "multiple_choice",
        "a.jsonl",
        _jsonl({"question": "q", "choices": ["a", "b c"], "label": 1}) * 4,
        (),
        {"ece"},
        {"choice"},
    ),
    ("ranking", "a.jsonl", _jsonl({"choices": ["a", "b", "c"], "labels": [0, 2, 1]}) * 4, (), {"ndcg"}, {"order"}),
    ("masked_language_modeling", "a.txt", "the cat sat. " * 20, ("--max-length", 16), {"perplexity"}, {"tokens"}),
    (
        "text_summarization",
        "a.csv",
        "document,summary\nlong text,short\nmore text,less\n",
        (),
        {"perplexity"},
        {"text"},
    ),
]


# What differs between backends, the heads and `Resume`, is tested on each of them elsewhere; here it is the commands.
ON_TORCH = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="commands and files: the fastest backend runs all"
)
SHOWN = [family if family[0] == "text_matching" else pytest.param(*family, marks=ON_TORCH) for family in FAMILIES]


@pytest.mark.parametrize(("task", "name", "content", "options", "scores", "fields"), SHOWN)
def test_a_task_is_trained_scored_and_asked_from_the_command_line(
    task, name, content, options, scores, fields, tmp_path
):
    data, out, report = tmp_path / name, tmp_path / "m.keras", tmp_path / "report"
    data.write_text(content)
    result = _call("train", "--task", task, "--data", data, "--out", out, "--epochs", 1, *options)
    assert result.exit_code == 0, (result.stderr, result.exception)
    result = _call("evaluate", out, "--data", data, "--out", report)
    assert result.exit_code == 0, (result.stderr, result.exception)
    found = json.loads((report / "metrics.json").read_text())
    assert scores <= set(found["scores"])
    asked = tmp_path / "asked.jsonl" if task == "masked_language_modeling" else data
    if asked != data:
        asked.write_text(_jsonl({"text": "the [MASK] sat"}))
    result = _call("predict", out, "--data", asked, "--max-new-tokens", 2)
    assert result.exit_code == 0, (result.stderr, result.exception)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(fields <= set(answer) for answer in answers)
    _scores_are_those_of_the_answers(task, answers, found["scores"], report)


def _scores_are_those_of_the_answers(task, answers, scores, report):
    if task == "text_regression":
        assert scores["mean_absolute_error"] == pytest.approx(
            np.mean([abs(a["value"] - y) for a, y in zip(answers, (1.5, -1, 0, 2), strict=True)]), abs=1e-5
        )
    elif task == "text_matching":
        assert scores["accuracy"] == np.mean(
            [a["label"] == y for a, y in zip(answers, ("no", "yes", "yes"), strict=True)]
        )
        rows = list(csv.DictReader((report / "classes.csv").read_text().splitlines()))
        assert [(row["class"], row["support"]) for row in rows] == [("no", "1"), ("yes", "2")]
        assert (report / "confusion.png").stat().st_size
        assert (report / "calibration.png").stat().st_size
    elif task == "part_of_speech_tagging":
        given = [tag for answer in answers for tag in answer["tags"]]
        assert scores["accuracy"] == pytest.approx(np.mean(np.array(given) == ["DET", "NOUN", "VERB"] * 3))
    elif task == "dependency_parsing":
        assert all(answer["heads"].count(0) == 1 for answer in answers)
        assert scores["uas"] == pytest.approx(np.mean([answer["heads"] == np.array([2, 3, 0]) for answer in answers]))
    elif task == "question_answering":
        assert scores["unanswerable"]["exact_match"] == np.mean([answer["text"] == "" for answer in answers[1::2]])


@ON_TORCH
def test_several_tasks_share_a_backbone_and_each_is_asked_by_its_name(tmp_path):
    (tmp_path / "moods.csv").write_text("review,stars\nfine,good\npoor,bad\nso fine,good\nso poor,bad\n")
    (tmp_path / "names.conll").write_text("Anna B\nsings O\n\n" * 3)
    (tmp_path / "tasks.toml").write_text(
        '[[task]]\nname = "mood"\ntask_type = "sentiment_analysis"\ndata = "moods.csv"\ntext_column = "review"\n'
        'label_column = "stars"\nloss_weight = 0.5\n'
        '[[task]]\nname = "names"\ntask_type = "named_entity_recognition"\ndata = "names.conll"\nuse_crf = true\n'
    )
    out = tmp_path / "both.keras"
    result = _call("train", "--tasks", tmp_path / "tasks.toml", "--out", out, "--epochs", 1, "--resume")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert not out.with_suffix(".resume.npz").exists()
    metrics = json.loads(out.with_suffix(".metrics.json").read_text())
    assert {"mood_accuracy", "names_viterbi_accuracy"} <= set(metrics["valid"])
    assert metrics["tasks"][0]["loss_weight"] == 0.5
    result = _call("predict", out, "fine", "--task", "mood")
    assert json.loads(result.stdout)["label"] in ("good", "bad")
    result = _call("predict", out, "fine")
    assert result.exit_code == 2
    assert "one of this model's tasks is needed: mood, names" in result.stderr
    result = _call("evaluate", out, "--data", tmp_path / "names.conll", "--out", tmp_path / "r", "--task", "names")
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "calibration" not in result.stdout  # a chain has no probability of each tag


@pytest.fixture
def checkpoint(tmp_path):
    model = dl_mamba.Mamba2(256, 16, 1, headdim=8, d_state=4)
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf", model


def test_a_pretrained_start_with_adapters_leaves_the_rest_of_the_backbone_as_it_is(checkpoint, tmp_path):
    folder, pretrained = checkpoint
    data, out = tmp_path / "a.csv", tmp_path / "m.keras"
    data.write_text("text_a,text_b,label\na,b,no\nc,c,yes\nd,d,yes\n")
    targets = ("--lora-target", "embedding", "--lora-target", "out_proj")
    options = ("--init", folder, "--lora", 2, *targets, "--epochs", 4, "--valid", data)  # a later epoch is the best
    result = _call("train", "--task", "paraphrase_detection", "--data", data, "--out", out, *options)
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "weights" in result.stdout
    model = keras.saving.load_model(out, compile=False)
    backbone = next(layer for layer in model._flatten_layers() if isinstance(layer, dl_mamba.Mamba2))
    changed = {
        name.split("/")[-2]
        for name, variable in backbone.pretrained_variables().items()
        if not np.allclose(
            *(keras.ops.convert_to_numpy(v) for v in (variable, pretrained.pretrained_variables()[name]))
        )
    }
    assert changed == {"embedding", "out_proj"}


@ON_TORCH
def test_a_class_for_each_text_starts_from_pretrained_weights_too(checkpoint, tmp_path, monkeypatch):
    from dl_mamba.heads.text_classifier import Classifier

    compiled = keras.Model.compile
    monkeypatch.setattr(Classifier, "compile", lambda self, *a, **k: compiled(self, *a, **k, run_eagerly=True))
    data, out = tmp_path / "a.csv", tmp_path / "m.keras"
    data.write_text("text,label\n" + "fine,good\npoor,bad\n" * 3)
    result = _call(
        "train", "--task", "spam_detection", "--data", data, "--out", out, "--init", checkpoint[0], "--epochs", 1
    )
    assert result.exit_code == 0, (result.stderr, result.exception)
    result = _call("evaluate", out, "--data", data, "--out", tmp_path / "report")
    assert result.exit_code == 0, (result.stderr, result.exception)
    scores = json.loads((tmp_path / "report" / "metrics.json").read_text())["scores"]
    labels = [line.split("\t")[0] for line in _call("predict", out, *["fine", "poor"] * 3).stdout.splitlines()]
    assert scores["accuracy"] == np.mean(
        [given == wanted for given, wanted in zip(labels, ["good", "bad"] * 3, strict=True)]
    )


@ON_TORCH
def test_a_task_that_continues_texts_generates_as_a_language_model(tmp_path):
    data, out = tmp_path / "a.txt", tmp_path / "m.keras"
    data.write_text("the cat sat. " * 30)
    options = ("--max-length", 32, "--epochs", 1)
    result = _call("train", "--task", "text_generation", "--data", data, "--out", out, *options)
    assert result.exit_code == 0, (result.stderr, result.exception)
    predicted = _call("predict", out, "the cat", "--max-new-tokens", 3)
    generated = _call("generate", "--model", out, "--prompt", "the cat", "--max-new-tokens", 3)
    assert generated.exit_code == 0, (generated.stderr, generated.exception)
    new = generated.stdout.removesuffix("\n").removeprefix("the cat")
    assert json.loads(predicted.stdout)["text"] == new


PAIRS = "text_a,text_b,label\na,b,no\nc,c,yes\n"
BAD = [
    ("named_entity_recognition", "a.conll", "Anna B\nMay\n", "line 2 has 'May'; a token and its tag are needed"),
    (
        "named_entity_recognition",
        "a.jsonl",
        _jsonl({"tokens": ["a", "b", "c"], "tags": ["O", "B"]}),
        "row 1 of a.jsonl: it has 3 tokens and 2 tags",
    ),
    ("named_entity_recognition", "a.conll", "Anna O\n", "one label only, 'O'"),
    (
        "question_answering",
        "a.jsonl",
        _jsonl({"context": "Anna", "answer": "Bob", "answer_start": 9}),
        "row 1 of a.jsonl: its answer 'Bob' does not stand at letter 9",
    ),
    (
        "question_answering",
        "a.jsonl",
        _jsonl({"context": "Anna", "answer": "Anna"}),
        "row 1 of a.jsonl has an answer and no answer_start",
    ),
    ("question_answering", "a.json", "{}", "it is no SQuAD file"),
    ("text_matching", "a.csv", "text_a,label\na,no\n", "row 1 of a.csv has None as its text_b"),
    ("text_matching", "a.csv", "text_a,text_b,label\na,b,no\n,c,yes\n", "row 2 of a.csv has '' as its text_a"),
    ("text_matching", "a.csv", "text_a,text_b\na,b\n", "row 1 of a.csv has no label; the field label is needed"),
    ("text_matching", "a.csv", PAIRS + "d,e,maybe\n", "num_classes=3 does not fit similarity='cosine'"),
    (
        "text_regression",
        "a.csv",
        "text,label\nfine,good\n",
        "row 1 of a.csv: could not convert string to float: 'good'",
    ),
    (
        "multiple_choice",
        "a.jsonl",
        _jsonl({"choices": ["a", "b"], "label": 2}),
        "the number of the right choice, 0 to 1, is needed",
    ),
    ("multiple_choice", "a.csv", "question,label\na,0\n", "has None as its choices; a list is needed"),
    ("dependency_parsing", "a.conllu", TREE.replace("\t3\tnsubj", "\t9\tnsubj"), "the head of its word 2 is 9"),
    ("dependency_parsing", "a.conllu", "not a tree\n", "it is no CoNLL-U"),
    (
        "relation_extraction",
        "a.jsonl",
        RELATIONS.replace('"to": 3', '"to": 4'),
        "leads outside the words, which are 1 to 3",
    ),
    ("text_summarization", "a.csv", "document,summary\nlong,\n", "row 1 of a.csv has '' as its completion"),
    ("text_generation", "a.csv", "stars\n1\n", "row 1 of a.csv has None as its prompt"),
    ("no_such_task", "a.csv", PAIRS, "no_such_task"),
]


@pytest.mark.parametrize(("task", "name", "content", "message"), BAD)
def test_data_that_do_not_fit_a_task_are_named_by_row_before_anything_is_computed(
    task, name, content, message, tmp_path
):
    (tmp_path / name).write_text(content)
    result = _call("train", "--task", task, "--data", tmp_path / name, "--out", tmp_path / "m.keras")
    assert result.exit_code == 2, result.exception
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--task", "text_matching", "--lora", 0), "lora: rank=0"),
        (("--task", "text_matching", "--lora-target", "embedding"), "without `lora`"),
        (("--task", "text_matching", "--baseline"), "leave out --baseline"),
        (
            ("--task", "text_matching", "--init", "nowhere", "--variant", "tiny"),
            "cannot be chosen with a pretrained start",
        ),
        (("--task", "text_matching", "--max-length", 0), "max_length=0"),
        (("--tasks", "tasks.toml"), "leave out: data"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message, tmp_path):
    (tmp_path / "a.csv").write_text(PAIRS)
    result = _call("train", "--data", tmp_path / "a.csv", "--out", tmp_path / "m.keras", *options)
    assert result.exit_code == 2, result.exception
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[task]]\ntask_type = 'spam_detection'\n", "has no data"),
        ("[[task]]\ndata = 'a.csv'\n", "task 1 of"),
        ("[[task]]\ntask_type = 'text_matching'\ndata = 'a.csv'\n" * 2, "two tasks with the name 'text_matching'"),
        (
            "[[task]]\ntask_type = 'text_matching'\ndata = 'a.csv'\nlayers = 3\n",
            "the field 'layers', which no task has",
        ),
        ("[[task]]\ntask_type = 'text_matching'\ndata = 'a.csv'\nuse_crf = true\n", "use_crf=True is not used by"),
        ("task = 1\n", "has no tasks"),
    ],
)
def test_a_file_of_tasks_that_does_not_fit_is_refused(content, message, tmp_path):
    (tmp_path / "a.csv").write_text(PAIRS)
    (tmp_path / "tasks.toml").write_text(content)
    result = _call("train", "--tasks", tmp_path / "tasks.toml", "--out", tmp_path / "m.keras")
    assert result.exit_code == 2, result.exception
    assert message in result.stderr


@ON_TORCH
def test_labels_that_a_model_does_not_know_are_named_before_scoring(tmp_path):
    data, out = tmp_path / "a.csv", tmp_path / "m.keras"
    data.write_text(PAIRS * 1 + "d,e,no\n")
    assert _call("train", "--task", "text_matching", "--data", data, "--out", out, "--epochs", 1).exit_code == 0
    data.write_text(PAIRS + "d,e,maybe\n")
    result = _call("evaluate", out, "--data", data, "--out", tmp_path / "report")
    assert result.exit_code == 2
    assert (
        "row 3 of a.csv: the label 'maybe' is unknown to the task 'text_matching'; it knows 'no', 'yes'"
        in result.stderr
    )
    assert not (tmp_path / "report").exists()


PAGE = (Path(__file__).parents[1] / "docs" / "data_formats.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'```(\w+) title="(\w+)"\n(.*?)```', PAGE, re.DOTALL)


@pytest.mark.parametrize(("ending", "task", "content"), BLOCKS, ids=[f"{task}-{ending}" for ending, task, _ in BLOCKS])
def test_the_data_of_the_page_on_formats_are_read(ending, task, content, tmp_path):
    data = tmp_path / f"data.{ending}"
    data.write_text(content)
    spec = TaskSpec(task, data=data)
    train = spec.records()["train"]
    config = spec.config(train)
    assert train.rows(reader_class(config)(config, ByteTokenizer()))


def test_the_page_on_formats_names_every_task():
    assert {str(task) for task in NLPTaskType} <= set(re.findall(r"\w+", PAGE))
