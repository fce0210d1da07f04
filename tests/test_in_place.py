"""What torch on a CPU computes in place, a block of tokens at a time, has the results of the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import recurrences
import test_gated_rms_norm as norm
from harness import BACKEND, assert_laws_hold, values_and_gradients
from keras import ops
from test_recurrence_laws import draw, float32, oracle_and_its_gradients, run

from dl_mamba.ops import gated_rms_norm
from dl_mamba.ops.sequence import runs_in_place

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="XLA compiles its own loops; only torch runs in place")


@pytest.fixture(params=[1, 40])
def small_blocks(request, monkeypatch):
    """Blocks of so many numbers: one token, less than a window, and a few."""
    monkeypatch.setattr("dl_mamba.ops.places.BLOCK", request.param)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("op", [recurrences.CONV, recurrences.SCAN, recurrences.SSD], ids=["conv", "scan", "ssd"])
def test_any_block_of_tokens_gives_the_same_result(op, documents, small_blocks):
    arrays = draw(op, 11)
    packed = {"segment_ids": np.array([[0] * 4 + [1] * 7, [0] * 9 + [1] * 2], "int32")} if documents else {}
    assert_laws_hold(run(op, float32(arrays), **packed), oracle_and_its_gradients(op, arrays, **packed))


@pytest.mark.parametrize("options", norm.OPTIONS)
def test_any_block_of_rows_gives_the_same_norm(options, small_blocks):
    norm.test_values_and_gradients_equal_the_float64_equation("chunked", options)


@pytest.mark.parametrize("shape", [(0, 12), (2, 0, 12)])
def test_no_row_at_all_has_a_norm_and_a_gradient(shape):
    (y,), gradients = values_and_gradients(lambda x: (gated_rms_norm(x, np.ones(12)),), {"x": np.ones(shape)})
    assert y.shape == gradients["x"].shape == shape


def test_gradients_reach_parts_of_a_wider_tensor():
    """Tokens that are slices, as those of in_proj are, with a gradient that lies another way."""
    wide = np.random.default_rng(0).normal(size=(2, 9, 24)).astype("float32")

    def function(wide):
        x, z = wide[..., :12], wide[..., 12:]
        return (ops.transpose(gated_rms_norm(x, ops.ones(12), z), (2, 1, 0)),)

    def apart(wide):
        x, z = ops.copy(wide[..., :12]), ops.copy(wide[..., 12:])
        return (ops.transpose(gated_rms_norm(x, ops.ones(12), z, implementation="reference"), (2, 1, 0)),)

    assert_laws_hold(values_and_gradients(function, {"wide": wide}), values_and_gradients(apart, {"wide": wide}))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated:DeprecationWarning")  # Keras exports by it
def test_a_compiled_or_traced_program_computes_nothing_in_place():
    import torch

    seen = []

    def function(x):
        seen.append(runs_in_place(x))
        return x + 1.0

    function(torch.ones(2))
    torch.jit.trace(function, torch.ones(2), check_trace=False)
    torch.compile(function, backend="eager")(torch.ones(2))
    assert seen == [True, False, False]
