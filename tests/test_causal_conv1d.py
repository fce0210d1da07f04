"""What causal_conv1d alone promises: any width, and bias and activation only if asked for."""

from __future__ import annotations

import numpy as np
import pytest
import recurrences
from harness import assert_close, numpy, values_and_gradients
from test_recurrence_laws import draw, float32

from dl_mamba.ops import causal_conv1d, implementation_scope

CONV = recurrences.CONV


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_any_width_equals_numpy_convolve(width, implementation):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(1, 9, 2)).astype("float32"), rng.normal(size=(width, 2)).astype("float32")
    with implementation_scope(implementation):
        y = numpy(causal_conv1d(x, weight, activation=None))
    for channel in range(2):
        wanted = np.convolve(x[0, :, channel], weight[::-1, channel])[:9]
        assert_close(y[0, :, channel], wanted, 1e-6)  # a sum of five float32 products


def test_a_row_shorter_than_the_window_keeps_tokens_of_its_initial_state():
    arrays = float32(draw(CONV, length=2))
    _, state = causal_conv1d(**arrays, return_final_state=True)
    wanted = np.concatenate([arrays["initial_state"], arrays["x"]], axis=1)[:, -3:]
    np.testing.assert_array_equal(numpy(state), wanted)


def test_the_state_holds_only_tokens_of_the_last_document():
    arrays = float32(draw(CONV, length=5))
    ids = np.array([[0, 0, 0, 0, 1]] * 2, "int32")
    _, state = causal_conv1d(**arrays, segment_ids=ids, return_final_state=True)
    np.testing.assert_array_equal(numpy(state)[:, :2], 0.0)
    np.testing.assert_array_equal(numpy(state)[:, 2], arrays["x"][:, 4])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_activation_equals_silu_far_from_zero_too(compiled):
    x = np.concatenate([-np.logspace(-3, 4, 40), [0.0], np.logspace(-3, 4, 40)])
    slope = 1 / (1 + np.exp(np.minimum(-x, 700)))
    run = lambda x: (causal_conv1d(x[None, :, None], np.ones((1, 1), "float32")),)  # noqa: E731
    (y,), gradients = values_and_gradients(run, {"x": x.astype("float32")}, compiled)
    np.testing.assert_allclose(y[0, :, 0], x * slope, rtol=1e-5, atol=1e-30)  # float32 underflows below
    projection = np.random.default_rng(0).normal(size=(1, len(x), 1))[0, :, 0]
    np.testing.assert_allclose(gradients["x"], projection * slope * (1 + x * (1 - slope)), rtol=1e-4, atol=1e-30)
