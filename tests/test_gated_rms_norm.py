"""The gated RMS norm against its equation in float64."""

from __future__ import annotations

import numpy as np
import pytest
from harness import assert_close, assert_laws_hold, float64_enabled, numpy, values_and_gradients
from keras import ops
from recurrences import silu

from dl_mamba.ops import gated_rms_norm, implementation_scope

OPTIONS = [
    {"ngroups": ngroups, "norm_before_gate": before, "gated": gated}
    for ngroups in (1, 2, 12)
    for before, gated in ((False, False), (False, True), (True, True))
]


def draw(gated):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(2, 5, 12)), "weight": rng.normal(size=12)}
    return {**arrays, "z": rng.normal(size=(2, 5, 12))} if gated else arrays


def equation(x, weight, z=None, ngroups=1, norm_before_gate=False):
    gate = 1.0 if z is None else silu(z)
    x = x if norm_before_gate else x * gate
    groups = x.reshape(*x.shape[:-1], ngroups, -1)
    y = (groups / np.sqrt((groups**2).mean(axis=-1, keepdims=True) + 1e-5)).reshape(x.shape) * weight
    return y * gate if norm_before_gate else y


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("options", OPTIONS)
def test_values_and_gradients_equal_the_float64_equation(implementation, options):
    options = dict(options)
    arrays = draw(options.pop("gated"))

    def function(**tensors):
        return (gated_rms_norm(**tensors, **options),)

    with float64_enabled(), implementation_scope("reference"):
        wanted = values_and_gradients(function, arrays)
    assert_close(wanted[0][0], equation(**arrays, **options), 1e-12)  # rounding of float64
    with implementation_scope(implementation):
        came = values_and_gradients(function, {n: a.astype("float32") for n, a in arrays.items()}, compiled=True)
    assert_laws_hold(came, wanted)


def test_a_row_of_zeros_stays_finite():
    zeros = np.zeros((1, 4), "float32")
    values, gradients = values_and_gradients(lambda x: (gated_rms_norm(x, np.ones(4, "float32")),), {"x": zeros})
    np.testing.assert_array_equal(values[0], zeros)
    assert np.all(np.isfinite(gradients["x"]))


def test_float16_inputs_beyond_the_square_root_of_its_range_do_not_overflow():
    x = ops.cast(np.array([[1000.0, -1000.0]]), "float16")
    y = gated_rms_norm(x, ops.ones(2, dtype="float16"))
    assert "float16" in str(y.dtype)
    assert_close(numpy(y), np.array([[1.0, -1.0]]), 1e-3)  # float16 has 11 bits
