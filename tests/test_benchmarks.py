"""The benchmarks compare results before they time, and go on when a contender cannot."""

from __future__ import annotations

import dataclasses

import keras
import pytest

from benchmarks import report
from benchmarks.case import Case
from benchmarks.measure import compare
from benchmarks.suites import SUITES, Comparison

BACKEND = keras.backend.backend()
SMALL = Case("ours", BACKEND, "mamba2", "forward", length=5, d_model=64, num_layers=1, vocab_size=9, variant="tiny")


def _compare(*cases):
    return compare(cases, rounds=1, cores=1, limit=120.0, checkouts={}, say=lambda text: None)


def test_a_contender_that_fails_is_a_row_and_the_others_are_timed():
    absent = dataclasses.replace(SMALL, contender="nowhere")
    ours, missing = _compare(SMALL, absent)
    assert ours.median > 0.0
    assert ours.peak > ours.above > 0
    assert missing.note == "not installed: benchmarks.contenders.nowhere"
    shown = report.table(Comparison("small", (SMALL, absent), ("nowhere",)), [ours, missing])
    assert shown.row_count == 2


def test_a_contender_with_other_results_is_not_timed():
    deeper = dataclasses.replace(SMALL, num_layers=2)
    ours, other = _compare(SMALL, deeper)
    assert ours.difference == 0.0
    assert other.note.startswith("differs from ours by")
    assert not other.seconds


@pytest.mark.parametrize("suite", SUITES)
def test_every_comparison_names_contenders_that_exist(suite):
    for comparison in SUITES[suite](["jax", "torch"], ""):
        labels = {case.label for case in comparison.cases}
        assert labels >= set(comparison.against)
        assert len(set(comparison.cases)) == len(comparison.cases)
