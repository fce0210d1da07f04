"""Files in, files out: what a table is read as, how it is split, and that results appear whole or not at all."""

import json

import keras
import numpy as np
import pandas
import pytest

from dl_mamba.heads.text_classifier import Classifier
from dl_mamba.pipelines import plots, prediction, training
from dl_mamba.pipelines.demo import run_demo
from dl_mamba.pipelines.errors import InputError, require
from dl_mamba.pipelines.files import check_destination
from dl_mamba.pipelines.recipe import TEXT, Recipe
from dl_mamba.pipelines.splits import class_names, stratified_split
from dl_mamba.pipelines.tables import Examples, read_examples
from dl_mamba.weights.publishing import published

ROWS = [("a fine film", "good"), ('so "so", really', "bad"), ("null", "bad"), ("déjà vu", "good")] * 3
SMALL = Recipe(options={"d_model": 8, "num_layers": 1, "d_state": 4, "headdim": 8}, epochs=2, batch_size=8)


@pytest.fixture
def eager(monkeypatch):
    """No compilation: these runs take a handful of steps."""
    compiled = keras.Model.compile
    monkeypatch.setattr(Classifier, "compile", lambda self, *a, **k: compiled(self, *a, **k, run_eagerly=True))


@pytest.fixture
def moods(tmp_path):
    path = tmp_path / "data" / "moods.csv"
    path.parent.mkdir()
    pandas.DataFrame(ROWS, columns=["text", "label"]).to_csv(path, index=False)
    return path


def _write(folder, name):
    """The same rows in each format that `train` takes."""
    frame = pandas.DataFrame(ROWS, columns=["text", "label"])
    path = folder / name
    if path.suffix == ".csv":
        frame.to_csv(path, index=False, header="bare" not in name)
    elif path.suffix == ".tsv":
        head = [] if "bare" in name else ["text\tlabel"]
        path.write_text("\n".join([*head, *("\t".join(row) for row in ROWS)]), encoding="utf-8")
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["a.csv", "bare.csv", "a.tsv", "bare.tsv", "a.jsonl", "a.parquet"])
def test_every_format_gives_the_same_examples(name, tmp_path):
    examples = read_examples(_write(tmp_path, name))
    assert examples.kind == "text"
    assert list(zip(examples.inputs, examples.labels, strict=True)) == ROWS


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nx,1\n", encoding="utf-8-sig")
    assert read_examples(path).inputs == ["x"]


def test_columns_are_taken_by_the_names_given(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label,review,stars\n9,fine,5\n9,poor,1\n")
    examples = read_examples(path, text_column="review", label_column="stars")
    assert (examples.inputs, examples.labels) == (["fine", "poor"], ["5", "1"])


@pytest.mark.parametrize("text", ["a,label,b\n1,up,2.5\n3,down,\n", "1,2.5,up\n3,,down\n"])
def test_columns_of_numbers_are_steps_and_empty_cells_are_missing(text, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    examples = read_examples(tmp_path / "a.csv")
    assert (examples.kind, examples.labels) == ("numbers", ["up", "down"])
    np.testing.assert_array_equal(np.stack(examples.inputs)[..., 0], [[1, 2.5], [3, np.nan]])


def test_data_to_predict_may_lack_labels(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "b.csv").write_text("1,2\n3,4\n")
    assert read_examples(tmp_path / "a.csv", labelled=False).labels is None
    assert np.stack(read_examples(tmp_path / "b.csv", labelled=False).inputs).shape == (2, 2, 1)


BAD_FILES = [
    ("a.csv", b"", "a.csv is empty"),
    ("a.jsonl", b"\n\n", "a.jsonl is empty"),
    ("a.csv", b"text,label\n", "a.csv has a header and no rows"),
    ("a.csv", b"review,label\nfine,1\n", "no column 'text' or 'sentence', .*name the text column with --text-column"),
    ("a.csv", b"text,stars\nfine,1\n", "no column 'label'; name the label column with --label-column"),
    ("a.csv", b"film,stars\nfine,1\n", "no column 'label'; .*Its columns are: film, stars"),
    ("a.csv", b"text,text,label\na,b,1\n", "names a column twice"),
    ("a.csv", b"text,label\nfine,1\ndull,\n", "row 2 of .*a.csv has no label"),
    ("a.csv", b"text,label\nfine,1\na,b,c,d\n", "a.csv is no readable CSV: .*line 3"),
    ("a.csv", b"text,label\nfine\xff\xfe,1\n", r"a.csv is not UTF-8 text \(byte \d+\)"),
    ("a.jsonl", b'{"text": "a", "label": 1}\n{oops\n', "a.jsonl is no readable JSONL: line 2"),
    ("a.jsonl", b"[1]\n", "line 1 is no object with named fields"),
    ("a.jsonl", b'{"text": 3, "label": 1}\n', "row 1 of .* has 3 where text is needed"),
    ("a.parquet", b"no parquet at all", "a.parquet"),
    ("a.xlsx", b"x", "a.xlsx ends in '.xlsx'; a file that ends in one of .csv, .tsv, .jsonl, .parquet is needed"),
    ("a.csv", None, "a.csv does not exist"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_a_file_that_does_not_fit_is_named_with_its_fault_in_one_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_examples(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_numbers_are_sorted_as_numbers_and_words_as_words():
    assert class_names(Examples("a", "text", ["", "", ""], ["10", "9", "-1"])) == ["-1", "9", "10"]
    assert class_names(Examples("a", "text", ["", ""], ["up", "10"])) == ["10", "up"]


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_split_is_a_partition_in_which_every_class_keeps_its_share(fraction):
    classes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 20, 1]))
    large, small = stratified_split(classes, fraction, seed=1)
    assert sorted([*large, *small]) == list(range(71))
    assert np.bincount(classes[small], minlength=3).tolist() == [50 * fraction, 20 * fraction, 0]
    np.testing.assert_array_equal(stratified_split(classes, fraction, seed=1)[1], small)
    assert set(stratified_split(classes, fraction, seed=2)[1]) != set(small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "huge"}, "'huge' is unknown.*mamba2-tiny"),
        ({"family": "mamba9"}, "'mamba9' is unknown"),
        ({"epochs": 0}, "epochs=0; a whole number >= 1"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0; a number > 0"),
        ({"dropout_rate": 1.0}, "dropout_rate=1.0; a number from 0 to below 1"),
    ],
)
def test_a_recipe_refuses_what_cannot_be_trained(changes, message):
    with pytest.raises(InputError, match=message):
        TEXT.adjusted(**changes)


def test_the_published_files_appear_together_or_not_at_all(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt), published(tmp_path) as staging:  # noqa: PT012 - the block is the subject
        (staging / "a.txt").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    with published(tmp_path) as staging:
        (staging / "a.txt").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_destination_is_checked_before_the_work(tmp_path):
    for path, message in [
        ("a.h5", "choose a name that ends in .keras"),
        ("no/a.keras", "the folder .*no does not exist"),
    ]:
        with pytest.raises(InputError, match=message):
            check_destination(tmp_path / path)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(InputError, match=r'drawing needs matplotlib.*pip install "dl-mamba\[plots\]"'):
        require("matplotlib", "drawing")


@pytest.mark.usefixtures("eager")
def test_a_run_leaves_model_metrics_and_curve_and_the_model_predicts_raw_text(moods, tmp_path):
    out = tmp_path / "moods.keras"
    outcome = training.train(moods, test=moods, out=out, recipe=SMALL, baseline=True)
    names = {"moods.keras", "moods.metrics.json", "moods.curve.png"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == names
    metrics = json.loads((tmp_path / "moods.metrics.json").read_text())
    assert metrics == json.loads(json.dumps(outcome.metrics))
    assert metrics["classes"] == ["bad", "good"]
    assert metrics["baseline"] == {"scored_on": "test", "accuracy": 1.0}
    assert (tmp_path / "moods.curve.png").read_bytes().startswith(b"\x89PNG")
    found = prediction.predict(out, data=moods, out=tmp_path / "found.csv")
    assert found.accuracy == pytest.approx(metrics["test"]["accuracy"])
    table = pandas.read_csv(tmp_path / "found.csv")
    # 1e-5: the file's model runs compiled, the other one eagerly.
    expected = outcome.model.classify([text for text, _ in ROWS]).probabilities
    np.testing.assert_allclose(table.filter(like="probability_"), expected, atol=1e-5)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_cut_off_leaves_no_file(error, moods, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise error

    with pytest.raises(error):
        training.train(moods, out=tmp_path / "a.keras", recipe=SMALL, callbacks=[Stop()])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.usefixtures("eager")
def test_a_failure_while_saving_keeps_the_older_model(moods, tmp_path, monkeypatch):
    (tmp_path / "a.keras").write_text("older")

    def fail(*arguments):
        raise RuntimeError("disk")

    monkeypatch.setattr(plots, "draw_learning_curve", fail)
    with pytest.raises(RuntimeError, match="disk"):
        training.train(moods, out=tmp_path / "a.keras", recipe=SMALL, epochs=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.keras", "data"]
    assert (tmp_path / "a.keras").read_text() == "older"


@pytest.mark.usefixtures("eager")
def test_a_run_that_was_cut_off_goes_on_to_the_same_end(moods, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 5:
                raise KeyboardInterrupt

    def run(name, callbacks=(), **options):
        return training.train(moods, out=tmp_path / name, recipe=SMALL, epochs=4, callbacks=callbacks, **options)

    whole = run("whole.keras")
    with pytest.raises(KeyboardInterrupt):
        run("cut.keras", [Stop()], resume=True)
    assert (tmp_path / "cut.resume.npz").is_file()
    with pytest.raises(InputError, match="is the state of another run: recipe="):
        run("cut.keras", seed=5, resume=True)
    cut = run("cut.keras", resume=True)
    assert cut.metrics["history"] == whole.metrics["history"]
    for left, right in zip(cut.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert not (tmp_path / "cut.resume.npz").exists()


@pytest.mark.usefixtures("eager")
def test_equal_seeds_train_equal_models(moods, tmp_path):
    histories = [
        training.train(moods, out=tmp_path / "a.keras", recipe=SMALL, seed=seed).metrics["history"]["loss"]
        for seed in (1, 1, 2)
    ]
    assert histories[0] == histories[1] != histories[2]


def test_a_damaged_or_foreign_model_file_is_refused(tmp_path):
    (tmp_path / "text.keras").write_text("not a model")
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).save(tmp_path / "foreign.keras")
    for name, message in [("text.keras", "is no .keras file"), ("foreign.keras", "holds a Sequential")]:
        with pytest.raises(InputError, match=message):
            prediction.load_trained(tmp_path / name)


@pytest.mark.slow
def test_the_demo_reads_digits_and_a_new_process_agrees(tmp_path):
    report = run_demo(tmp_path)
    assert report.accuracy >= 0.96
    assert report.agrees
