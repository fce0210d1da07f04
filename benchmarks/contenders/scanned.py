"""The backbones of this library with their blocks as one loop over stacked weights."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.contenders import Work, ours


def prepare(case: Case) -> Work:
    return ours.prepare(case, scan_layers=True)
