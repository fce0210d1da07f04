"""What ssd alone promises: chunks, heads, limits and scales."""

from __future__ import annotations

import numpy as np
import pytest
import recurrences
from harness import BACKEND, assert_close, assert_laws_hold, numpy, values_and_gradients
from keras import ops
from test_recurrence_laws import draw, float32, oracle_and_its_gradients, run

from dl_mamba.ops import implementation_scope, ssd
from dl_mamba.ops.ssd import chunked

SSD = recurrences.SSD


@pytest.mark.parametrize("chunk_size", [1, 4, 21, 64])
def test_any_chunk_size_gives_the_same_result(chunk_size):
    arrays = draw(SSD)
    came = run(SSD, float32(arrays), chunk_size=chunk_size)
    assert_laws_hold(came, oracle_and_its_gradients(SSD, arrays))


@pytest.mark.parametrize(("length", "chunks"), [(22, 1), (23, 2), (24, 100)])
def test_an_accelerator_takes_groups_of_chunks_with_the_same_result(length, chunks, monkeypatch):
    monkeypatch.setattr(chunked, "runs_in_place", lambda x: False)
    monkeypatch.setattr(chunked, "on_accelerator", lambda x: True)
    monkeypatch.setattr(chunked, "compiled_on_a_cpu", lambda x: False)
    monkeypatch.setattr(chunked, "ACCELERATOR_CHUNKS", chunks)
    arrays, ids = draw(SSD, length), np.repeat([[0] * 9 + [1] * (length - 9)], 2, axis=0).astype("int32")
    came = run(SSD, float32(arrays), chunk_size=4, segment_ids=ids)
    assert_laws_hold(came, oracle_and_its_gradients(SSD, arrays, segment_ids=ids))


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_limits_scales_and_a_skip_for_each_head_equal_the_float64_recurrence(implementation):
    arrays = draw(SSD)
    arrays["D"] = arrays["D"][:, 0]
    arrays["input_scale"] = np.random.default_rng(5).normal(size=arrays["dt"].shape)
    limits = {"dt_limit": (0.2, 2.0), "mask": np.random.default_rng(6).random(arrays["dt"].shape[:2]) < 0.8}
    with implementation_scope(implementation):
        came = run(SSD, float32(arrays), **limits)
    assert_laws_hold(came, oracle_and_its_gradients(SSD, arrays, **limits))


def test_what_is_not_given_is_left_out():
    arrays = float32(draw(SSD))
    neutral = {
        **arrays,
        "D": np.zeros_like(arrays["D"]),
        "dt_bias": np.zeros_like(arrays["dt_bias"]),
        "initial_state": np.zeros_like(arrays["initial_state"]),
    }
    del neutral["z"]
    bare = {name: arrays[name] for name in ("x", "dt", "A", "B", "C")}
    assert_close(numpy(ssd(**bare)), numpy(ssd(**neutral)), 1e-6)  # XLA may fuse the two programs differently


def test_a_weak_decay_behind_a_strong_one_keeps_its_digits():
    """One huge step, then 254 tiny ones: a difference of running sums would leave 1e-3 of the digits."""
    length = 256
    dt = np.full((1, length, 1), 1e-4, "float32")
    dt[0, 1] = 900.0
    ones = np.ones((1, length, 1, 1), "float32")
    arrays = {"x": ones, "dt": dt, "A": np.array([-1.0], "float32"), "B": ones, "C": ones}
    scale = np.ones((1, length, 1), "float32")
    came = numpy(ssd(**arrays, input_scale=scale, dt_softplus=False))
    h, wanted = 0.0, []
    for step in dt[0, :, 0].astype("float64"):
        h = np.exp(-step) * h + 1.0
        wanted.append(h)
    assert_close(came[0, :, 0, 0], np.array(wanted), 1e-6)  # a sum of 254 float32 numbers of like size


@pytest.mark.parametrize(
    ("nheads", "headdim", "torch_size", "xla_size"),
    [(32, 16, 128, 32), (33, 16, 64, 32), (128, 16, 64, 32), (129, 16, 32, 32), (129, 17, 64, 64), (32, 17, 128, 64)],
)
def test_a_chunk_on_a_cpu_is_short_where_states_are_small_and_long_where_calls_cost_more(
    nheads, headdim, torch_size, xla_size
):
    x = ops.ones((1, 256, nheads, headdim))
    wanted = torch_size if BACKEND == "torch" else xla_size
    assert chunked.size_of_chunks(x, nheads, headdim, 128, 256) == wanted
    assert chunked.size_of_chunks(x, nheads, headdim, 128, 16) == 16


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX and torch know every length when they run")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("length", [5, 70])
def test_a_length_unknown_to_the_graph_gives_the_same_result(length, compiled):
    import tensorflow as tf

    arrays = float32(draw(SSD, length=length))
    wanted = run(SSD, arrays, chunk_size=4)

    def unknown_length(**tensors):
        specs = {
            n: tf.TensorSpec([t.shape[0], None, *t.shape[2:]] if n in SSD.sequences else t.shape)
            for n, t in tensors.items()
        }
        call = tf.function(
            lambda t: ssd(**t, return_final_state=True, chunk_size=4), input_signature=[specs], jit_compile=compiled
        )
        return call(tensors)

    assert_laws_hold(values_and_gradients(unknown_length, arrays), wanted)


def test_the_final_state_is_float32_and_the_output_has_the_dtype_of_x():
    arrays = {name: ops.cast(array, "bfloat16") for name, array in float32(draw(SSD, length=3)).items()}
    y, state = ssd(**arrays, return_final_state=True)
    assert "bfloat16" in str(y.dtype)
    assert "float32" in str(state.dtype)
