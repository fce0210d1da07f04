"""A run of `dl-mamba train --resume` killed at any moment ends with the weights of one that was not, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
from conftest import PROGRAMS
from harness import BACKEND

RUN = """
import io, itertools, json, os, signal, sys, traceback
import keras, matplotlib.pyplot, numpy as np, tensorflow  # once for all runs
from dl_mamba.cli.app import app
from dl_mamba.pipelines.progress import RichProgress
from dl_mamba.pipelines.recipe import TASK, TEXT

PLACES = {
    "batch": (RichProgress, "on_train_batch_end", ""),
    "state": (np, "savez", ""),
    "rename": (os, "replace", ".partial"),
    "model": (os, "replace", ".metrics.json"),
    "unlink": (os, "unlink", ".resume.npz"),
}
options, *moments = json.loads(sys.argv[1])
for recipe in (TASK, TEXT):
    recipe.options.update(d_model=16, num_layers=1, headdim=8, d_state=4, chunk_size=16)
tensorflow.config.run_functions_eagerly(keras.backend.backend() == "tensorflow")  # tracing takes longer


def half_a_file(original, file, **arrays):
    whole = io.BytesIO()
    original(whole, **arrays)
    file.write(whole.getvalue()[: whole.tell() // 2])
    file.flush()


def dies(moment, number):
    owner, name, about = PLACES[moment]
    original, calls = getattr(owner, name), itertools.count(1)

    def replacement(*arguments, **others):
        if str(arguments[0]).endswith(about) and next(calls) == number:
            if moment == "state":
                half_a_file(original, *arguments, **others)
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **others)

    setattr(owner, name, replacement)


def train(out, moment=None, number=0):
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        epochs = json.loads(str(np.load("m.resume.npz")["kept"]))["epoch"] if os.path.exists("m.resume.npz") else None
        return print("ended", json.dumps([status, epochs, os.path.exists("m.keras")]), flush=True)
    if moment:
        dies(moment, number)
    try:
        app(["train", *options.split(), "--out", out, "--resume"], standalone_mode=False)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


train("whole.keras")
for moment, number in moments:
    train("m.keras", moment, number)
train("m.keras")
"""

# What the process is killed in, the number of that call, and how many epochs the state that the next one finds holds.
MOMENTS = [
    ("batch", 2, None),  # of 4 batches an epoch
    ("batch", 6, 1),
    ("state", 1, 1),  # half of the file of the second epoch is written
    ("rename", 2, 2),  # that of the third one is written and not yet in its place
    ("model", 1, 3),  # the epochs are over, and one of the files of the result stands in its place
    ("unlink", 1, 3),  # all of them do
]
MOMENTS = MOMENTS if BACKEND == "torch" else MOMENTS[1:3]  # each run compiles anew

TASKS = """
[[task]]
name = "words"
task_type = "masked_language_modeling"
data = "words.txt"
[[task]]
name = "mood"
task_type = "sentiment_analysis"
data = "moods.csv"
"""
RUNS = {
    "several tasks": "--tasks tasks.toml --batch-size 4",
    "one class a text": "--task spam_detection --data moods.csv --batch-size 2",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tasks.toml").write_text(TASKS)
    (tmp_path / "words.txt").write_text("the cat sat. " * 12)
    (tmp_path / "moods.csv").write_text("text,label\n" + "so fine,good\nso poor,bad\n" * 5)
    return tmp_path


def weights_of(path):
    found = {}
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file, h5py.File(file) as weights:
        weights.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


@pytest.mark.parametrize("kind", RUNS if BACKEND == "torch" else ["several tasks"])
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(kind, folder):
    moments = [f"{RUNS[kind]} --epochs 3 --max-length 16", *((moment, number) for moment, number, _ in MOMENTS)]
    # A process that forks must have one thread; what one run has compiled the next one reads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": os.environ.get(PROGRAMS, "")}
    command = [sys.executable, "-c", RUN, json.dumps(moments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    ended = [json.loads(line.removeprefix("ended ")) for line in result.stdout.splitlines() if line.startswith("ended")]
    killed = [[-signal.SIGKILL, epochs, moment in ("model", "unlink")] for moment, _, epochs in MOMENTS]
    assert ended == [[0, None, False], *killed, [0, None, True]], result.stderr
    histories = [json.loads((folder / f"{name}.metrics.json").read_text())["history"] for name in ("whole", "m")]
    assert histories[0] == histories[1]
    whole, resumed = weights_of(folder / "whole.keras"), weights_of(folder / "m.keras")
    assert len(whole) > 5
    assert whole.keys() == resumed.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
    assert not [path for path in folder.iterdir() if path.suffix in (".npz", ".partial")]
