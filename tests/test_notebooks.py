"""Every notebook runs from top to bottom with small numbers, is stored without outputs, and equals its text form."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the extra notebooks is not installed")
matplotlib = pytest.importorskip("matplotlib", reason="the extra notebooks is not installed")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_with_small_numbers_and_names_every_axis(name, monkeypatch):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    monkeypatch.setenv("DL_MAMBA_NOTEBOOK_FAST", "1")
    monkeypatch.chdir(FOLDER)
    pyplot.close("all")
    try:
        # the text form has the same cells (below), and no kernel has to be started for it
        runpy.run_path(str(FOLDER / f"{name}.py"))
        figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
        assert figures
        for ax in (ax for figure in figures for ax in figure.axes):
            bare = [side for side in ("x", "y") if not getattr(ax, f"get_{side}label")()]
            shared = ax.get_shared_x_axes().get_siblings(ax)  # one label below stands for all
            bare = [side for side in bare if side == "y" or not any(each.get_xlabel() for each in shared)]
            assert not bare or ax.get_label() == "<colorbar>", f"{ax.get_title()!r} has no label at {bare}"
    finally:
        pyplot.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_text_form_without_outputs(name):
    text, stored = (jupytext.read(FOLDER / f"{name}.{ending}") for ending in ("py", "ipynb"))
    assert [(cell.cell_type, cell.source) for cell in stored.cells] == [
        (cell.cell_type, cell.source) for cell in text.cells
    ], "run: jupytext --sync notebooks/*.py"
    for cell in stored.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


@pytest.mark.parametrize("ending", ["py", "ipynb"])
def test_every_notebook_has_both_forms_and_a_row_in_the_table(ending):
    assert len(NAMES) == 7
    assert sorted(file.stem for file in FOLDER.glob(f"*.{ending}")) == NAMES
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"[{name}]({name}.ipynb)" not in table] == []
