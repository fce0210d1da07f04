"""The command line: one clear line and exit code 2 for a mistake, no file left; results where they are asked for."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import keras
import pytest
from typer.testing import CliRunner

import dl_mamba
from dl_mamba import variants
from dl_mamba.backend import choose_backend
from dl_mamba.cli.app import app
from dl_mamba.heads.text_classifier import Classifier
from dl_mamba.ops.kernels.availability import unavailable

GOOD = "text,label\n" + "".join(f"fine {i},good\npoor {i},bad\n" for i in range(6))


@pytest.fixture(autouse=True)
def _keeps_signals():
    """The command answers SIGTERM in its own way; pytest gets its own back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def eager(monkeypatch):
    compiled = keras.Model.compile
    monkeypatch.setattr(Classifier, "compile", lambda self, *a, **k: compiled(self, *a, **k, run_eagerly=True))


def _call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _file(folder, text=GOOD, name="data.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


BAD_TRAINING = [
    (b"", (), "is empty"),
    ("text,stars\nfine,1\n", (), "has no column 'label'"),
    ("text,label\nfine,1\ndull,1\n", (), "has one class only, '1'"),
    (b"text,label\n\xff\xfe,1\n", (), "is not UTF-8 text"),
    (GOOD, ("--variant", "huge"), "'huge' is unknown"),
    (GOOD, ("--family", "rnn"), "'rnn' is unknown"),
    (GOOD, ("--pooling", "sum"), "pooling='sum' is unknown"),
    (GOOD, ("--epochs", "0"), "epochs=0"),
    (GOOD, ("--text-column", "review"), "has no column 'review'"),
    (GOOD, ("--valid", "nowhere.csv"), "nowhere.csv does not exist"),
]


@pytest.mark.parametrize(("content", "options", "message"), BAD_TRAINING)
def test_bad_input_to_train_is_one_line_exit_code_2_and_no_file(content, options, message, tmp_path):
    data, out = _file(tmp_path, content), tmp_path / "model.keras"
    result = _call("train", "--data", data, "--out", out, *options)
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if not line.startswith("backend:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


@pytest.mark.parametrize(
    ("out", "message"),
    [("no/model.keras", "does not exist; create it"), ("model.h5", "choose a name that ends in .keras")],
)
def test_a_bad_place_for_the_model_is_refused_before_training(out, message, tmp_path):
    result = _call("train", "--data", _file(tmp_path), "--out", tmp_path / out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


@pytest.mark.usefixtures("eager")
def test_what_train_writes_predict_reads(tmp_path):
    out = tmp_path / "model.keras"
    result = _call("train", "--data", _file(tmp_path), "--out", out, "--epochs", 1, "--baseline")
    assert result.exit_code == 0, result.stderr
    assert "valid accuracy" in result.stdout
    assert "bag of words" in result.stdout
    assert "epoch 1/1: accuracy" in result.stderr
    result = _call("predict", out, "fine", "poor")
    assert result.exit_code == 0, result.stderr
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[2] for row in rows] == ["fine", "poor"]
    assert all(row[0] in ("good", "bad") and 0.5 <= float(row[1]) <= 1 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.keras", "x"), "nowhere.keras does not exist"),
        (("nowhere.keras",), "give either texts or a data file"),
    ],
)
def test_bad_input_to_predict_is_one_line_and_exit_code_2(arguments, message):
    result = _call("predict", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.fixture
def checkpoint(tmp_path):
    """A small model in the format of transformers."""
    model = dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=3)
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def test_convert_goes_around_all_formats_and_inspect_names_each_tensor(checkpoint, tmp_path):
    steps = [("a", "--format", "mamba_ssm"), ("b.keras",), ("c",)]
    source = checkpoint
    for name, *options in steps:
        result = _call("convert", source, tmp_path / name, *options)
        assert result.exit_code == 0, result.stderr
        source = tmp_path / name
    assert (source / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    result = _call("inspect", tmp_path / "a")
    assert result.exit_code == 0, result.stderr
    for part in ("mamba_ssm: config.json and pytorch_model.bin", "tied head", "3x  backbone.layers.{i}.mixer.in_proj"):
        assert part in result.stdout
    assert "dropped: the embedding again" in result.stdout
    _call("convert", checkpoint, tmp_path / "half", "--dtype", "bfloat16")
    assert "bfloat16 [11, 8]" in _call("inspect", tmp_path / "half").stdout


BAD_CONVERSIONS = [
    (("hf", "x", "--format", "onnx"), "format='onnx' is unknown; choose one of hf, mamba_ssm, keras"),
    (("hf", "x", "--dtype", "int8"), "dtype='int8' is unknown"),
    (("hf", "x.keras", "--dtype", "int8"), "dtype='int8' is unknown"),
    (("hf", "hf"), "choose another folder"),
    (("hf", "no/x.keras"), "does not exist; create it"),
    (("hf", "x", "--format", "keras"), "choose a name that ends in .keras"),
    (("x.keras", "x"), "x.keras does not exist"),
    (("bad.keras", "x"), "bad.keras is no .keras file"),
    (("nowhere", "x"), "nowhere is neither a folder nor the name of a repository"),
    (("empty", "x"), "empty holds none of config.json"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CONVERSIONS)
def test_bad_input_to_convert_is_one_line_exit_code_2_and_no_file(
    arguments, message, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    _file(tmp_path, "no zip", "bad.keras")
    before = sorted(path.name for path in tmp_path.iterdir())
    result = _call("convert", *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.fixture
def language_model(tmp_path):
    """A language model of bytes, in a .keras file."""
    model = dl_mamba.MambaCausalLM(256, 8, 1, d_state=4, dt_rank=2, tokenizer=dl_mamba.tokenizers.ByteTokenizer())
    model.save(tmp_path / "lm.keras")
    return model


@pytest.mark.usefixtures("eager_generation")
def test_generate_prints_the_prompt_and_what_follows_and_counts_tokens(language_model, tmp_path):
    result = _call("generate", "--model", tmp_path / "lm.keras", "--prompt", "Hi", "--max-new-tokens", 5)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == language_model.generate("Hi", 5) + "\n"
    assert "5 tokens, the first after " in result.stderr
    drawn = ["--temperature", 0.9, "--top-k", 9, "--seed", 3, "--max-new-tokens", 5]
    result = _call("generate", "--model", tmp_path / "lm.keras", "--prompt", "Hi", *drawn)
    sampler = dl_mamba.generation.Sampler(temperature=0.9, top_k=9)
    assert result.stdout == language_model.generate("Hi", 5, sampler, seed=3) + "\n"


@pytest.mark.usefixtures("eager_generation")
def test_a_checkpoint_of_256_tokens_without_tokenizer_reads_bytes(language_model, tmp_path):
    language_model.tokenizer = None
    language_model.save_pretrained(tmp_path / "bytes")
    result = _call("generate", "--model", tmp_path / "bytes", "--prompt", "Hi", "--max-new-tokens", 5)
    assert result.exit_code == 0, result.stderr
    language_model.tokenizer = dl_mamba.tokenizers.ByteTokenizer()
    assert result.stdout == language_model.generate("Hi", 5) + "\n"


BAD_GENERATION = [
    (("nowhere.keras",), "nowhere.keras does not exist"),
    (("classifier.keras",), "holds a Sequential; a MambaCausalLM, Mamba2CausalLM or TaskModel is needed"),
    (("lm.keras", "--max-new-tokens", "0"), "max_new_tokens=0; an integer >= 1 is needed"),
    (("lm.keras", "--top-p", "2"), "top_p=2.0; a number > 0 and <= 1 is needed"),
    (("lm.keras", "--tokenizer", "empty"), "empty gives no tokenizer"),
    (("lm.keras", "--tokenizer", "bpe.json"), "bpe.json does not exist; a tokenizer.json or the folder of one"),
    (("hf", "--dtype", "int8"), "dtype='int8' is unknown"),
    (("hf",), "there is no tokenizer.json beside the weights, and the model's 11 tokens"),
    (("empty",), "empty holds none of config.json"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_GENERATION)
def test_bad_input_to_generate_is_one_line_and_exit_code_2(
    arguments, message, language_model, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).save("classifier.keras")
    result = _call("generate", "--prompt", "Hi", "--model", *arguments)
    assert result.exit_code == 2
    assert not result.stdout
    assert message in result.stderr.splitlines()[-1]


def test_inspect_shows_the_tensors_that_do_not_fit_and_exits_with_2(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "use_bias": True, "num_hidden_layers": 2}))
    result = _call("inspect", checkpoint)
    assert result.exit_code == 2
    assert "layers/{i}/mixer/in_proj/bias" in result.stdout
    for problem in ("layers.0.mixer.in_proj.bias [32] is missing", "layers.2.norm.weight is no weight of this config"):
        assert problem in result.stderr


def test_variants_lists_every_size():
    result = _call("variants")
    assert result.exit_code == 0
    assert [name for name in variants.names() if name not in result.stdout] == []
    assert "mamba-130m" not in _call("variants", "--family", "mamba2").stdout
    assert _call("variants", "--family", "rnn").exit_code == 2


def test_info_names_backend_versions_and_implementations():
    result = _call("info")
    assert result.exit_code == 0
    for expected in (keras.__version__, keras.backend.backend(), "implementations of ssd", "reference, chunked"):
        assert expected in result.stdout


@pytest.mark.skipif(unavailable() is None, reason="the kernels can run here")
def test_info_says_why_there_are_no_kernels_to_check():
    result = _call("info", "--check")
    assert result.exit_code == 2
    assert f"Error: there are no kernels to check: {unavailable()}." in result.stderr


def test_help_lists_the_commands():
    result = _call("--help")
    assert [
        name
        for name in ("demo", "train", "predict", "convert", "inspect", "variants", "info")
        if name not in result.stdout
    ] == []


def test_a_backend_that_the_user_names_is_kept(monkeypatch):
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert choose_backend() == ("torch", "KERAS_BACKEND names it")


@pytest.mark.parametrize(
    ("configured", "installed", "expected"),
    [
        (None, ("torch", "jax"), "jax"),
        (None, ("jax", "tensorflow"), "tensorflow"),
        ("tensorflow", ("torch",), "torch"),
        ("torch", ("torch", "jax"), "torch"),
        ("torch", ("tensorflow",), "tensorflow"),
    ],
)
def test_without_a_wish_an_installed_backend_is_chosen(configured, installed, expected, tmp_path, monkeypatch):
    if configured:
        (tmp_path / "keras.json").write_text(f'{{"backend": "{configured}"}}')
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    assert choose_backend()[0] == expected
    assert os.environ["KERAS_BACKEND"] in (expected, "")


def test_without_any_backend_the_extras_are_named(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "")
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'no backend is installed: pip install "dl-mamba\[jax\]"'):
        choose_backend()


def test_a_killed_training_leaves_no_file(tmp_path):
    command = [sys.executable, "-m", "dl_mamba.cli", "train", "--data", str(_file(tmp_path)), "--epochs", "100000"]
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    options = {"env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--patience", "100000", "--out", str(tmp_path / "model.keras")], **options) as run:
        try:
            before = list(itertools.takewhile(lambda line: not line.startswith("epoch 1/"), run.stderr))
            time.sleep(0.2)
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]
    if keras.backend.backend() != "tensorflow":  # whose lines would stand among ours
        assert [line.split(":")[0] for line in before] == ["backend"]
