"""Draw docs/images/speed.png from the first table of docs/performance.md: `python docs/speed_picture.py`."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import matplotlib

DOCS = Path(__file__).resolve().parent
COLOURS = {"JAX": "#00796b", "TensorFlow, XLA": "#ef6c00", "torch": "#5e35b1"}


def rows() -> list[tuple[str, str, float]]:
    """(work, backend, times as fast as transformers, the middle one of the runs) of the forward pass."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    table = page.split("## Forward\n")[1].split("\n##")[0]
    found, work = [], ""
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[1] in COLOURS:
            work = cells[0] or work
            found.append((work, cells[1], median(map(float, cells[3].split(",")))))
    return found


def draw() -> None:
    """One group of bars for each work, one bar a backend."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = rows()
    works = list(dict.fromkeys(work for work, _, _ in found))
    figure, axes = pyplot.subplots(figsize=(8, 3.2), dpi=110, layout="constrained")
    for shift, (backend, colour) in zip((-0.27, 0, 0.27), COLOURS.items(), strict=True):
        heights = [next(times for work, name, times in found if (work, name) == (w, backend)) for w in works]
        places = [place + shift for place in range(len(works))]
        axes.bar_label(axes.bar(places, heights, 0.25, label=backend, color=colour), fmt="%.1f", fontsize=8)
    axes.axhline(1, color="black", linewidth=1)
    axes.text(len(works) - 0.58, 1.05, "transformers", fontsize=8)
    axes.set_xlim(-0.5, len(works) - 0.1)
    axes.set_xticks(range(len(works)), [f"{w.replace('L=', '')} tokens" for w in works])
    axes.set_xlabel("model and length of the sequence")
    axes.set_ylabel("times as fast (ratio)")
    axes.set_title(
        "Forward pass beside transformers, 4 layers of 768, float32, 2 CPU cores (python -m benchmarks model)",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, fontsize=9)
    figure.savefig(DOCS / "images" / "speed.png", metadata={"Software": None})


if __name__ == "__main__":
    draw()
