"""Settings of every test process."""

import keras
import pytest

from dl_mamba.generation import programs

if keras.backend.backend() == "jax":
    import jax

    # The tests compile hundreds of small programs once each. Those that compare the optimised program ask for it.
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def eager_generation(monkeypatch):
    """Runs the steps of generation as they stand on TensorFlow, where compiling them takes many times as long."""
    if keras.backend.backend() == "tensorflow":
        monkeypatch.setitem(programs._COMPILE, "tensorflow", lambda function, variables, also: function)
