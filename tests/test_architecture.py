"""The house stands as design.md draws it: rooms, packages, guards, names and sizes."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[1]

# From top to bottom: a room imports only from rooms below it. "dl_mamba" is the package's own __init__.py.
ROOMS = (
    "cli",
    "pipelines",
    "hub",
    "dl_mamba",
    "viz",
    "heads",
    "training",
    "models",
    "generation",
    "weights",
    "layers",
    "ops",
    "tokenizers",
    "variants",
    "config",
    "backend",
)
MAPPED = {"dl_mamba.heads": "heads", "dl_mamba.variants": "variants"}
OPTIONAL = (
    *("matplotlib", "pandas", "typer", "rich", "sklearn", "scipy", "nervaluate", "conllu"),
    *("keras_hub", "transformers", "safetensors", "huggingface_hub", "tokenizers"),
    *("triton", "jax_triton"),
)
BACKENDS = ("jax", "tensorflow", "torch")

PUBLIC = {
    "dl_mamba": (
        "Mamba",
        "Mamba2",
        "MambaCausalLM",
        "Mamba2CausalLM",
        "MambaLayer",
        "Mamba2Layer",
        "MambaResidualBlock",
        "Mamba2ResidualBlock",
        "RMSNorm",
        "create_mamba_with_head",
        "create_mamba2_with_head",
    ),
    "dl_mamba.ops": (
        "selective_scan",
        "ssd",
        "causal_conv1d",
        "gated_rms_norm",
        "implementation_scope",
        "last_implementation",
    ),
    "dl_mamba.heads": ("NLPTaskType", "NLPTaskConfig", "create_nlp_head", "create_multi_task_nlp_head"),
    "dl_mamba.variants": ("names", "load"),
}


def _modules():
    """Yields (import name, file) for every file of the package."""
    for top, folder in {"dl_mamba": "dl_mamba", **MAPPED}.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((top, *parts)).removesuffix(".__init__"), file


MODULES = dict(_modules())


def _room(module):
    """The room of an import name of ours, or None for somebody else's module."""
    parts = module.split(".")
    if parts[0] != "dl_mamba":
        return None
    return parts[1] if len(parts) > 1 else "dl_mamba"


def _from_targets(node, module, is_package):
    """The modules that a `from ... import ...` statement reaches."""
    base = node.module or ""
    if node.level:
        package = module.split(".") if is_package else module.split(".")[:-1]
        base = ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))
    members = {f"{base}.{alias.name}" for alias in node.names}
    inside = members & (MODULES.keys() | {f"dl_mamba.{room}" for room in ROOMS})
    return inside if inside == members else inside | {base}


def _imported(source, module, is_package):
    """Every module that the source imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from_targets(node, module, is_package)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def _forbidden(source, module, is_package=False):
    """The imports of a source that do not lead to a room below its own."""
    rank = ROOMS.index(_room(module))
    rooms = {target: _room(target) for target in _imported(source, module, is_package)}
    return sorted(
        target
        for target, room in rooms.items()
        if room is not None and room != _room(module) and (room not in ROOMS or ROOMS.index(room) <= rank)
    )


def _run(code, cwd=ROOT):
    """Runs code in a fresh interpreter with the backend of this one."""
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", MODULES)
def test_every_file_belongs_to_a_known_room(module):
    assert _room(module) in ROOMS, f"{module} opens a new room; give it its place in ROOMS and in design.md"


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_rooms_below_it(module):
    file = MODULES[module]
    upward = _forbidden(file.read_text(encoding="utf-8"), module, file.name == "__init__.py")
    assert not upward, f"{module} imports {upward}, which do not lie below it"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dl_mamba.layers.mixer", "from dl_mamba.models import Mamba"),
        ("dl_mamba.layers.mixer", "from dl_mamba import heads"),
        ("dl_mamba.layers.mixer", "from ..models import Mamba"),
        ("dl_mamba.layers.mixer", "def late():\n    import dl_mamba.heads.nlp"),
        ("dl_mamba.ops.ssd.chunked", "from ...layers import norms"),
        ("dl_mamba.ops.ssd.chunked", "import dl_mamba"),
        ("dl_mamba.ops.ssd.chunked", "from dl_mamba import Mamba"),
        ("dl_mamba.config", "import importlib\nimportlib.import_module('dl_mamba.variants')"),
        ("dl_mamba", "from dl_mamba.pipelines import text"),
        ("dl_mamba.heads.nlp", "from dl_mamba.nowhere import thing"),
    ],
)
def test_an_upward_import_in_any_form_is_seen(module, source):
    assert _forbidden(source, module)


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("dl_mamba.cli.app", "from dl_mamba import ops\nimport dl_mamba, rich", False),
        ("dl_mamba.models.mamba", "from dl_mamba.layers import MambaLayer\nfrom . import causal_lm", False),
        ("dl_mamba.ops.ssd", "from . import chunked\nfrom .. import dispatch", True),
        ("dl_mamba", "from . import heads, ops, variants", True),
        ("dl_mamba.variants", "from dl_mamba.config import MambaConfig", True),
    ],
)
def test_a_downward_import_in_any_form_is_allowed(module, source, is_package):
    assert _forbidden(source, module, is_package) == []


def test_pyproject_lists_exactly_the_packages_on_disk():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    on_disk = {name if file.name == "__init__.py" else name.rpartition(".")[0] for name, file in MODULES.items()}
    assert sorted(settings["packages"]) == sorted(on_disk)
    assert settings["package-dir"] == MAPPED


@pytest.mark.parametrize("name", MAPPED)
def test_a_mapped_folder_refuses_its_bare_name(name):
    result = _run(f"import {MAPPED[name]}")
    assert result.returncode == 1
    assert f"ImportError: this folder is the package {name}; import it under that name" in result.stderr


def test_importing_the_package_needs_neither_optional_libraries_nor_a_second_backend(tmp_path):
    """Keras itself imports some of them where it finds them, so they are made unimportable once Keras is there."""
    banned = [name for name in (*OPTIONAL, *BACKENDS) if name != keras.backend.backend()]
    result = _run(f"import keras, sys; sys.modules.update(dict.fromkeys({banned})); import dl_mamba", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_adapters_of_keras_hub_name_the_extra_that_is_missing():
    result = _run("import sys; sys.modules['keras_hub'] = None; import dl_mamba.hub")
    assert result.returncode == 1
    assert 'pip install "dl-mamba[hub]"' in result.stderr


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_a_name_that_people_outside_call_exists_and_is_described(module, name):
    thing = getattr(importlib.import_module(module), name)
    assert thing.__doc__, f"{module}.{name} has no docstring"
    assert inspect.cleandoc(thing.__doc__)


def _length(function):
    """Lines of a function's body without its docstring."""
    first = function.body[1] if ast.get_docstring(function) is not None and len(function.body) > 1 else function.body[0]
    return function.end_lineno - first.lineno + 1


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("dl_mamba.ops.kernels")])
def test_a_file_has_at_most_300_lines_and_a_function_60(module):
    source = MODULES[module].read_text(encoding="utf-8")
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert len(source.splitlines()) <= 300
    assert {function.name: _length(function) for function in functions if _length(function) > 60} == {}
