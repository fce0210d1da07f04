"""Settings of every test process."""

import os
import tempfile

import keras
import pytest

from dl_mamba.generation import programs

if keras.backend.backend() == "jax":
    import jax

    # The tests compile hundreds of small programs once each. Those that compare the optimised program ask for it.
    jax.config.update("jax_disable_most_optimizations", True)

PROGRAMS = "DL_MAMBA_TEST_PROGRAMS"


def pytest_configure(config):
    """On JAX the processes of one run share what they compile, in a folder that goes at its end."""
    if keras.backend.backend() != "jax":
        return
    if PROGRAMS not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="dl-mamba-tests-")
        os.environ[PROGRAMS] = folder.name
        config.add_cleanup(lambda: (os.environ.pop(PROGRAMS), folder.cleanup()))
    jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def same_draws():
    """A test draws the same weights alone and among others: now and then a draw amplifies rounding past any bound."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def eager_generation(monkeypatch):
    """Runs the steps of generation as they stand on TensorFlow, where compiling them takes many times as long."""
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setitem(programs._COMPILE, "tensorflow", lambda function, variables, also: function)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of transformers, mamba, small and tied."""
    import published

    return published.saved(published.theirs("mamba"), tmp_path / "checkpoint")
