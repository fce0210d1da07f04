"""`compile(jit_compile=True)` on torch with a GPU: the captured step does what the plain one does."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from harness import BACKEND
from model_harness import tokens
from test_causal_lm import small_lm

import dl_mamba
from dl_mamba.models import graphed_step
from dl_mamba.ops.kernels.availability import unavailable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(BACKEND != "torch" or unavailable() is not None, reason=str(unavailable() or "torch alone")),
]


def losses(jit_compile, batches, scan_layers=False, **options):
    """The loss of each batch, and the model."""
    keras.utils.set_random_seed(0)
    model = small_lm("mamba2", d_model=64, scan_layers=scan_layers)
    model.compile(dl_mamba.training.recipe(model, len(batches), 1e-2, **options), jit_compile=jit_compile)
    return [model.train_on_batch(ids, return_dict=True)["loss"] for ids in batches], model


@pytest.mark.parametrize("scan_layers", [False, True])
def test_captured_steps_give_the_losses_of_plain_ones_whatever_the_shapes(scan_layers):
    lengths = [8, 8, 8, 8, 5, 8, 5, 5, 5, 8]
    batches = [tokens(4, length, seed=seed) for seed, length in enumerate(lengths)]
    wanted, plain = losses(False, batches, scan_layers)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        came, model = losses(True, batches, scan_layers)
    np.testing.assert_allclose(came, wanted, rtol=1e-5)
    assert len(model.train_function._graphs) == 2
    for a, b in zip(model.variables, plain.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5, err_msg=a.path)


def test_fit_replays_its_steps():
    model = small_lm("mamba2", d_model=64)
    model.compile(dl_mamba.training.recipe(model, 12, 1e-2), jit_compile=True)
    history = model.fit(np.tile(tokens(4, 8), (3, 1)), epochs=4, batch_size=4, verbose=0).history["loss"]
    assert isinstance(model.train_function, graphed_step.GraphedStep)
    assert len(model.train_function._graphs) == 1
    assert history[-1] < history[0]


# pytest.warns hands on what pyproject.toml lets Keras warn of, as if it came from elsewhere.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_step_that_decides_on_the_host_goes_on_with_a_warning():
    batches = [tokens(4, 8, seed=seed) for seed in range(6)]
    wanted, _ = losses(False, batches, accumulate=2)
    with pytest.warns(UserWarning, match="cannot be a CUDA graph"):
        came, _ = losses(True, batches, accumulate=2)
    np.testing.assert_allclose(came, wanted, rtol=1e-5)


def test_an_id_outside_the_vocabulary_is_refused_before_the_graph():
    batches = [tokens(4, 8)] * 4
    _, model = losses(True, batches)
    with pytest.raises(ValueError, match="input_ids holds 1000"):
        model.train_on_batch(np.full((4, 8), 1000))
