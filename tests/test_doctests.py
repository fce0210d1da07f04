"""The examples in the docstrings run, under the names that users import."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import dl_mamba
import dl_mamba.heads
import dl_mamba.layers
import dl_mamba.ops
import dl_mamba.training
import dl_mamba.variants
import dl_mamba.viz
import dl_mamba.weights

PUBLIC = (dl_mamba, dl_mamba.ops, dl_mamba.layers, dl_mamba.heads, dl_mamba.training, dl_mamba.variants)
PUBLIC += (dl_mamba.viz, dl_mamba.weights)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _modules():
    """Import names of every module; heads and variants may lie in folders of their own, so they are walked by name."""
    names = {"dl_mamba"}
    for package in (dl_mamba, dl_mamba.heads, dl_mamba.variants):
        prefix = package.__name__ + "."
        names.update({package.__name__}, (found.name for found in pkgutil.walk_packages(package.__path__, prefix)))
    return sorted(names)


def _exports():
    """The public classes and functions of the public packages, each once, by the shortest name."""
    things = {}
    for package in PUBLIC:
        for name, thing in vars(package).items():
            ours = getattr(thing, "__module__", "").startswith("dl_mamba")
            if ours and not name.startswith("_") and (inspect.isclass(thing) or inspect.isfunction(thing)):
                things.setdefault(thing, f"{package.__name__}.{name}")
    return {name: thing for thing, name in things.items()}


EXPORTS = _exports()


@pytest.mark.parametrize("name", _modules())
def test_every_example_of_a_module_prints_what_its_docstring_says(name):
    if name == "dl_mamba.hub":
        pytest.importorskip("keras_hub", reason="the extra hub is not installed")
    if name.startswith("dl_mamba.ops.kernels."):
        pytest.importorskip("triton", reason="the extra kernels is not installed")
    failed, _ = doctest.testmod(importlib.import_module(name), globs={}, optionflags=OPTIONS)  # as a reader copies it
    assert failed == 0


@pytest.mark.parametrize("name", EXPORTS)
def test_every_public_class_and_function_shows_an_example(name):
    examples = doctest.DocTestParser().get_examples(EXPORTS[name].__doc__ or "")
    assert examples, f"{name} has no example (>>>) in its docstring"
