"""`python -m benchmarks SUITE ...`: see `benchmarks`."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.measure import compare
from benchmarks.process import ROOT
from benchmarks.suites import SUITES

BACKENDS = ("jax", "tensorflow", "torch")
Names = Annotated[list[str] | None, typer.Argument(help=f"Suites: {', '.join(SUITES)}; all if none is named.")]


def main(
    suites: Names = None,
    backend: Annotated[list[str] | None, typer.Option(help="jax, tensorflow or torch; all if not given.")] = None,
    only: Annotated[str, typer.Option(help="Comparisons whose title contains this, e.g. 'mamba2, 4 x 768'.")] = "",
    rounds: Annotated[int, typer.Option(help="Runs of each contender.", min=1)] = 7,
    cores: Annotated[int, typer.Option(help="Threads for each contender.", min=1)] = os.cpu_count() or 1,
    limit: Annotated[float, typer.Option(help="Seconds that one run may take.", min=1)] = 900.0,
    revision: Annotated[str, typer.Option(help="Also measure this git revision of the library.")] = "",
    csv: Annotated[Path | None, typer.Option(help="Write every run here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here (PNG).")] = None,
) -> None:
    """Time ours and the peers in one run, after comparing their results."""
    backends = _known("--backend", backend or BACKENDS, BACKENDS)
    chosen = _known("SUITE", suites or SUITES, tuple(SUITES))
    wanted = [each for suite in chosen for each in SUITES[suite](backends, revision) if only in each.title]
    if not wanted:
        raise typer.BadParameter(
            f"no comparison of {', '.join(chosen)} on {', '.join(backends)} has {only!r} in its title; a title is "
            f"e.g. {next(SUITES['model'](BACKENDS, '')).title!r}.",
            param_hint="--only",
        )
    console, progress, results = Console(width=200), Console(stderr=True), []
    console.print(report.machine(cores))
    with tempfile.TemporaryDirectory() as folder:
        checkouts = {revision: _check_out(revision, Path(folder))} if revision else {}
        for comparison in wanted:
            with progress.status("") as status:
                say = lambda text, status=status, title=comparison.title: status.update(f"{title}: {text}")  # noqa: E731
                rows = compare(comparison.cases, rounds=rounds, cores=cores, limit=limit, checkouts=checkouts, say=say)
            console.print(report.table(comparison, rows))
            results.append((comparison, rows))
    growing = [row for comparison, rows in results for row in rows if comparison.growing]
    if growing:
        console.print(report.slopes(growing))
    if csv:
        report.write_csv(csv, results)
    if plot:
        report.write_plot(plot, results)


def _known(what: str, came: list[str] | tuple[str, ...], known: tuple[str, ...]) -> list[str]:
    for name in came:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is unknown; choose of {', '.join(known)}.", param_hint=what)
    return list(came)


def _check_out(revision: str, folder: Path) -> Path:
    """Another version of the library, laid out so that it can be imported from a folder."""
    archive = subprocess.run(
        ["git", "archive", revision, "dl_mamba", "heads", "variants"], cwd=ROOT, capture_output=True
    )
    if archive.returncode:
        raise typer.BadParameter(archive.stderr.decode().strip(), param_hint="--revision")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    for package in ("heads", "variants"):
        (folder / package).rename(folder / "dl_mamba" / package)
    return folder


if __name__ == "__main__":
    typer.run(main)
