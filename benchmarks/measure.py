"""Time contenders in turn, after their results have been compared."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.case import Case
from benchmarks.process import Failed, Process

LONG = 60.0  # seconds: what takes longer is timed on its first run alone
SHORT = 5.0  # seconds: what takes less runs once before it is timed, since the others have taken caches and cores
# float32 through all layers, relative to the largest value; generated tokens are the same or not
TOLERANCE = {"forward": 2e-3, "gradient": 2e-2, "generate": 0.0}


@dataclass
class Row:
    """What was measured of one case.

    Attributes:
        case: what it is.
        seconds: one entry a run.
        first: seconds of the first run, compilation included.
        build: seconds to import and build.
        peak: highest memory of a run in bytes, and `above`, what of it was not there before the first run; of the first
            run, compilation included, where that is the only one.
        difference: largest difference to the first contender's results, relative to the largest value; None if the
            mathematics is another one.
        note: why a figure is missing.
    """

    case: Case
    seconds: list[float] = field(default_factory=list)
    first: float | None = None
    build: float | None = None
    peak: int | None = None
    above: int | None = None
    difference: float | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """Median seconds of a run."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def spread(self) -> float | None:
        """Distance of the quartiles, relative to the median."""
        if len(self.seconds) < 3:
            return None
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


def compare(
    cases: Sequence[Case],
    *,
    rounds: int,
    cores: int,
    limit: float,
    checkouts: Mapping[str, Path],
    say: Callable[[str], None],
) -> list[Row]:
    """Measure cases that do the same work, one run of each in turn.

    Args:
        cases: the contenders; the first one's results are what the others are compared with.
        rounds: runs of each.
        cores: threads for each; they never run at the same time.
        limit: seconds that one run may take.
        checkouts: folder of each revision that a case names.
        say: is told what happens.
    """
    rows = {case: Row(case) for case in cases}
    with ExitStack() as stack:
        processes = {}
        for case in cases:
            say(f"{case.label} ({case.backend}): build and first run")
            process = stack.enter_context(closing(Process(case, cores, limit, checkouts.get(case.revision))))
            _guarded(rows[case], lambda row, process=process: _prepare(row, process))
            if rows[case].note:
                process.close()  # it may still be at work
            else:
                processes[case] = process
        _check(rows, processes)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for case, process in processes.items():
                if not (rows[case].note or rows[case].first > LONG):
                    _guarded(rows[case], lambda row, process=process: _time(row, process))
    for row in rows.values():
        if not row.note and not row.seconds:
            row.seconds.append(row.first)
            row.note = "first run only"
    return list(rows.values())


def _guarded(row: Row, action: Callable[[Row], None]) -> None:
    try:
        action(row)
    except Failed as failed:
        row.note = str(failed)


def _prepare(row: Row, process: Process) -> None:
    answer = process.ready()
    row.build, row.first = answer["build"], answer["first"]
    row.peak = answer["peak"] if row.first > LONG else process.ask("memory")["peak"]
    row.above = row.peak - answer["rss"]


def _time(row: Row, process: Process) -> None:
    if row.first < SHORT:
        process.ask("run")
    row.seconds.append(process.ask("run")["seconds"])


def _check(rows: Mapping[Case, Row], processes: Mapping[Case, Process]) -> None:
    """Compare results with those of the first contender; a contender that differs is not timed."""
    wanted: dict[str, np.ndarray] = {}
    for case, process in processes.items():
        came = process.results()
        wanted = wanted or came
        if not came:
            continue
        row = rows[case]
        row.difference = max(_difference(came[name], wanted[name]) for name in wanted)
        if not row.difference <= TOLERANCE[case.work]:
            row.note = f"differs from {next(iter(processes)).label} by {row.difference:.1e}: not timed"


def _difference(came: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.max(np.abs(came - wanted)) / np.max(np.abs(wanted)))
