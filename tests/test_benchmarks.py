"""The benchmarks compare results before they time, and go on when a contender cannot."""

from __future__ import annotations

import dataclasses
import importlib

import keras
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import measure, report
from benchmarks.__main__ import main
from benchmarks.case import Case
from benchmarks.contenders import keras_work, ours
from benchmarks.measure import compare
from benchmarks.suites import SUITES, Comparison

BACKEND = keras.backend.backend()
SMALL = Case("ours", BACKEND, "mamba2", "forward", length=5, d_model=64, num_layers=1, vocab_size=9, variant="tiny")


def _compare(*cases):
    return compare(cases, rounds=1, cores=1, limit=120.0, checkouts={}, say=lambda text: None)


def test_a_contender_that_fails_is_a_row_and_the_others_are_timed():
    absent = dataclasses.replace(SMALL, contender="nowhere")
    measured, missing = _compare(SMALL, absent)
    assert measured.median > 0.0
    assert measured.peak > measured.above > 0
    assert missing.note == "not installed: benchmarks.contenders.nowhere"
    shown = report.table(Comparison("small", (SMALL, absent), ("nowhere",)), [measured, missing])
    assert shown.row_count == 2


@pytest.mark.parametrize(("first", "asked"), [(measure.SHORT - 1.0, 2), (measure.SHORT + 1.0, 1)])
def test_what_is_short_runs_once_before_it_is_timed(first, asked):
    class Counting:
        runs = 0

        def ask(self, command):
            self.runs += command == "run"
            return {"seconds": float(self.runs)}

    row, process = measure.Row(SMALL, first=first), Counting()
    measure._time(row, process)
    assert row.seconds == [asked]
    assert process.runs == asked


def test_a_ratio_is_the_median_over_rounds_in_which_both_were_timed():
    own = measure.Row(SMALL, seconds=[1.0, 4.0, 3.0])
    peer = measure.Row(dataclasses.replace(SMALL, contender="peer"), seconds=[2.0, 8.0, 30.0])
    assert report.speedup(own, [own, peer], "peer") == 2.0  # medians: 8 / 3
    once = dataclasses.replace(peer, seconds=[12.0])
    assert report.speedup(own, [own, once], "peer") == 4.0
    assert report.speedup(own, [own, peer], "ours") is None
    assert report.speedup(own, [own], "peer") is None


def test_a_contender_with_other_results_is_not_timed():
    deeper = dataclasses.replace(SMALL, num_layers=2)
    first, other = _compare(SMALL, deeper)
    assert first.difference == 0.0
    assert other.note.startswith("differs from ours by")
    assert not other.seconds


@pytest.mark.parametrize("work", ["forward", "gradient"])
@pytest.mark.parametrize(
    ("op", "family", "peer"),
    [
        ("selective_scan", "mamba", "mambapy"),
        ("causal_conv1d", "mamba2", "torch_op"),
        ("gated_rms_norm", "mamba2", "torch_op"),
    ],
)
def test_ours_and_a_peer_compute_the_same_op(op, family, peer, work):
    case = dataclasses.replace(SMALL, op=op, family=family, work=work)
    here, there = _results(case), _results(dataclasses.replace(case, contender=peer, backend="torch"))
    assert here.keys() == there.keys()
    for name in here:  # float32, and torch adds in another order
        np.testing.assert_allclose(here[name], there[name], rtol=1e-4, atol=1e-5, err_msg=name)


def _results(case):
    pytest.importorskip("mambapy", reason="the extra bench is not installed")
    work = importlib.import_module(f"benchmarks.contenders.{case.contender}").prepare(case)
    return work.results(work.run())


def test_a_sequence_in_pieces_ends_as_the_whole(monkeypatch):
    monkeypatch.setattr("benchmarks.contenders.ours.PIECE", 2)
    pieces, whole = (ours.prepare(dataclasses.replace(SMALL, work=work)).run() for work in ("stream", "forward"))
    # float32 in pieces of other lengths
    np.testing.assert_allclose(_array(pieces)[:, -1], _array(whole)[:, -1], rtol=1e-4, atol=1e-5)


def test_an_epoch_has_as_many_steps_as_batches():
    history = ours.prepare(dataclasses.replace(SMALL, work="epoch", batch=64)).run()
    assert int(_array(history.model.optimizer.iterations)) * 64 == keras_work.ROWS
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others read arrays")
def test_no_thread_that_tunes_the_input_is_waited_for_at_the_end_of_an_epoch():
    x = keras_work._untuned(np.arange(12, dtype="int32").reshape(4, 3), np.arange(4), 2)["x"]
    assert x.options().autotune.enabled is False
    assert [tuple(ids.shape) for ids, _ in x] == [(2, 3), (2, 3)]
    assert sorted((int(y), *row) for ids, labels in x for row, y in zip(ids.numpy().tolist(), labels, strict=True)) == [
        (i, 3 * i, 3 * i + 1, 3 * i + 2) for i in range(4)
    ]


def _array(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.parametrize("options", [["--only", "nothing is called so"], ["compile", "--backend", "torch"]])
def test_nothing_to_measure_is_an_error(options):
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert "no comparison of" in result.output


@pytest.mark.parametrize("name", ["gpu_kernels", "gpu_model"])
def test_no_row_of_a_gpu_table_is_an_error_before_anything_is_measured(name):
    app = typer.Typer()
    app.command()(importlib.import_module(f"benchmarks.{name}").main)
    result = CliRunner().invoke(app, ["--only", "nothing is called so"])
    assert result.exit_code == 2
    assert "no row" in result.output


@pytest.mark.parametrize("suite", SUITES)
def test_every_comparison_names_contenders_that_exist(suite):
    for comparison in SUITES[suite](["jax", "torch"], ""):
        labels = {case.label for case in comparison.cases}
        assert labels >= set(comparison.against)
        assert len(set(comparison.cases)) == len(comparison.cases)
