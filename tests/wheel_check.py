"""The wheel works outside the repository; `make test` names this file to pytest, apart from the runs per backend."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FORWARD = """
import keras, numpy, dl_mamba
model = dl_mamba.Mamba2(vocab_size=11, d_model=16, num_layers=2, d_state=8, headdim=8, chunk_size=4)
hidden = model({"input_ids": numpy.arange(12).reshape(2, 6) % 11})["last_hidden_state"]
print(tuple(hidden.shape), bool(keras.ops.all(keras.ops.isfinite(hidden))))
"""
PLACES = """
import json, dl_mamba, dl_mamba.heads, dl_mamba.variants
print(json.dumps([module.__file__ for module in (dl_mamba, dl_mamba.heads, dl_mamba.variants)]))
"""
VARIANTS = """
import json, dl_mamba
print(json.dumps([name for name in dl_mamba.variants.names() if dl_mamba.variants.load(name) is not None]))
"""


def _call(*command, cwd):
    """Runs a command and returns what it printed; its errors show in the failing test."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist, built from a copy without the lists of files that earlier builds left behind."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__"))
    _call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """An environment that holds the wheel, and borrows the heavy libraries from the one that runs this test."""
    folder = tmp_path_factory.mktemp("environment")
    _call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    python = binaries / Path(sys.executable).name
    install = ("install", "--quiet", "--no-index", "--no-deps", wheel)
    _call(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)
    # Only now: pip would find the editable install among the borrowed libraries and leave the wheel out.
    site = Path(_call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return binaries, python, site


def test_the_wheel_holds_one_top_level_package(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dl_mamba"}


def test_the_packages_are_imported_from_the_wheel(installed, tmp_path):
    _, python, site = installed
    for file in json.loads(_call(python, "-c", PLACES, cwd=tmp_path)):
        assert Path(file).is_relative_to(site)


def test_every_variant_of_the_repository_loads_from_the_wheel(installed, tmp_path):
    _, python, site = installed
    files = sorted(path.name for path in (ROOT / "variants").glob("*.toml"))
    assert files
    assert sorted(path.name for path in (site / "dl_mamba" / "variants").glob("*.toml")) == files
    assert len(json.loads(_call(python, "-c", VARIANTS, cwd=tmp_path))) == len(files)


def test_a_model_of_the_wheel_gives_finite_numbers(installed, tmp_path):
    _, python, _ = installed
    assert _call(python, "-c", FORWARD, cwd=tmp_path).strip() == "(2, 6, 16) True"


def test_the_command_of_the_wheel_describes_its_subcommands(installed, tmp_path):
    binaries, _, _ = installed
    printed = _call(binaries / "dl-mamba", "--help", cwd=tmp_path)
    assert [name for name in ("demo", "train", "predict", "variants", "info") if name not in printed] == []


def test_every_module_of_the_repository_is_imported_from_the_wheel(installed, tmp_path):
    _, python, site = installed
    folders = {"dl_mamba": "dl_mamba", "heads": "dl_mamba/heads", "variants": "dl_mamba/variants"}
    files = {
        Path(inside) / path.relative_to(ROOT / top)
        for top, inside in folders.items()
        for path in (ROOT / top).rglob("*.py")
    }
    assert {path.relative_to(site) for path in (site / "dl_mamba").rglob("*.py")} == files
    names = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in sorted(files)]
    if importlib.util.find_spec("keras_hub") is None:
        names.remove("dl_mamba.hub")  # whose error without KerasHub tests/test_architecture.py holds
    if importlib.util.find_spec("triton") is None:
        names = [name for name in names if not name.startswith("dl_mamba.ops.kernels.")]  # only ops that run them do
    _call(python, "-c", f"import importlib\nfor name in {names}: importlib.import_module(name)", cwd=tmp_path)
