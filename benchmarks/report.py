"""Tables, CSV and pictures of what was measured."""

from __future__ import annotations

import csv
import math
import os
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from rich.table import Table

from benchmarks.measure import Row
from benchmarks.suites import Comparison

LIBRARIES = ("keras", "jax", "tensorflow-cpu", "tensorflow", "torch", "transformers", "mambapy")
MIB = 2**20


def machine(cores: int) -> str:
    """Processor, cores used, load and versions, on one line."""
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{_processor()}, {cores} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {', '.join(versions)}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return names[0].partition(": ")[2] if names else platform.processor()


def speedup(row: Row, rows: Sequence[Row], against: str) -> float | None:
    """Time of a peer divided by that of the row: the peer on the same backend if it is there.

    It is the median over the rounds. What is measured in one round shares the machine's speed, which changes between
    rounds by more than the ratio does.
    """
    peers = [r for r in rows if r.case.label == against and r.median]
    peers = [r for r in peers if r.case.backend == row.case.backend] or peers
    if not (peers and row.median) or peers[0] is row:
        return None
    if len(peers[0].seconds) != len(row.seconds):  # one was timed on its first run alone
        return peers[0].median / row.median
    return statistics.median(peer / own for peer, own in zip(peers[0].seconds, row.seconds, strict=True))


def table(comparison: Comparison, rows: Sequence[Row]) -> Table:
    """One row a contender."""
    columns = ["contender", "backend", "ms", "spread", "first s", "peak MiB", "above MiB"]
    columns += [*(f"{name} / it" for name in comparison.against), "difference", "note"]
    shown = Table(*columns, title=comparison.title, title_justify="left")
    for row in rows:
        ratios = [_figure(speedup(row, rows, name), ".2f") for name in comparison.against]
        shown.add_row(*map(str, _measured(row)), *ratios, _figure(row.difference, ".0e"), row.note)
    return shown


def _measured(row: Row) -> list[str]:
    return [
        row.case.label,
        row.case.backend,
        _figure(row.median, ".1f", 1000),
        _figure(row.spread, ".0%"),
        _figure(row.first, ".1f"),
        _figure(row.peak, ".0f", 1 / MIB),
        _figure(row.above, ".0f", 1 / MIB),
    ]


def _figure(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else format(value * scale, form)


def slopes(rows: Sequence[Row]) -> Table:
    """Log-log slopes of time and memory between the two largest lengths, and over all: 1 is linear."""
    shown = Table("contender", "backend", "family", "time slope", "memory slope", title="growth with length")
    for key in dict.fromkeys((r.case.label, r.case.backend, r.case.family) for r in rows):
        line = [r for r in rows if (r.case.label, r.case.backend, r.case.family) == key and r.median and r.above]
        shown.add_row(*key, _slope(line, lambda r: r.median), _slope(line, lambda r: r.above))
    return shown


def _slope(line: Sequence[Row], value) -> str:
    """Least-squares slope of log value on log length."""
    if len(line) < 2:
        return ""
    xs, ys = [math.log(r.case.length) for r in line], [math.log(value(r)) for r in line]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    up = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return format(up / sum((x - mean_x) ** 2 for x in xs), ".2f")


def write_csv(file: Path, results: Sequence[tuple[Comparison, list[Row]]]) -> None:
    """Every run of every contender, one row each."""
    temporary = file.with_suffix(".partial")
    with temporary.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["comparison", "contender", "backend", "run", "seconds", "first", "peak", "above", "note"])
        for comparison, rows in results:
            for row in rows:
                for i, seconds in enumerate(row.seconds or [""]):
                    name = [comparison.title, row.case.label, row.case.backend]
                    writer.writerow([*name, i, seconds, row.first, row.peak, row.above, row.note])
    temporary.replace(file)


def write_plot(file: Path, results: Sequence[tuple[Comparison, list[Row]]]) -> None:
    """Median times as bars, one panel a comparison."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(results), figsize=(9, 2.6 * len(results)), squeeze=False, layout="constrained")
    for panel, (comparison, rows) in zip(panels[:, 0], results, strict=True):
        measured = [row for row in rows if row.median]
        names = [f"{row.case.label} ({row.case.backend})" for row in measured]
        panel.barh(names, [1000 * row.median for row in measured])
        panel.invert_yaxis()
        panel.set(title=comparison.title, xlabel="median time of a run, ms (log scale)", xscale="log")
    temporary = file.with_suffix(".partial.png")
    figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
    temporary.replace(file)
