"""What selective_scan alone promises: few sequential steps, little memory for its gradient, unknown lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
import recurrences
from harness import BACKEND, assert_close, assert_laws_hold, numpy, values_and_gradients
from keras import ops
from test_recurrence_laws import draw, float32, oracle_and_its_gradients, run

from dl_mamba.ops import selective_scan
from dl_mamba.ops.selective_scan import chunked

SCAN = recurrences.SCAN


# lengths that no other test has: JAX would reuse the program that it compiled for the other sizes
@pytest.mark.parametrize(("length", "states"), [(22, 1), (23, 2 * 2 * 18), (24, 2 * 18 * 100)])
def test_any_block_and_any_number_of_chunks_give_the_same_result(length, states, monkeypatch):
    monkeypatch.setattr(chunked, "BLOCK", 3)
    monkeypatch.setattr(chunked, "CPU_STATES", states)  # one chunk, two, or the square root of the length
    monkeypatch.setattr(chunked, "ACCELERATOR_STATES", states)
    arrays, ids = draw(SCAN, length), np.repeat([[0] * 9 + [1] * (length - 9)], 2, axis=0).astype("int32")
    came = run(SCAN, float32(arrays), segment_ids=ids)
    assert_laws_hold(came, oracle_and_its_gradients(SCAN, arrays, segment_ids=ids))


@pytest.mark.parametrize("length", [1, 100, 1000, 5000])
def test_chunks_walk_in_lock_step_where_there_is_room(length, monkeypatch):
    """Steps in a row: two walks through a chunk, and one over the chunks."""
    monkeypatch.setattr(chunked, "CPU_STATES", 2**22)
    size, chunks = chunked._sizes(ops.ones((1, length, 1, 6)), 3)
    padded = math.ceil(length / (size * chunks)) * size
    assert chunks + 2 * padded <= 3 * length**0.5 + 2 * chunked.BLOCK


@pytest.mark.parametrize("length", [64, 1024])
def test_the_gradient_keeps_one_state_a_block(length):
    batch, channels, state = 1, 4, 16
    u = ops.ones((batch, length, 1, channels))
    A, B = -ops.ones((1, state, channels)), ops.ones((batch, length, 1, state))
    _, residuals = chunked._forward(u, u, A, B, B, None, ops.zeros((batch, 1, state, channels)))
    _, chunks = chunked._sizes(u, state)
    kept = max(math.prod(residual.shape) for residual in residuals[5:])
    assert kept <= channels * state * (length / chunked.BLOCK + chunks)


@pytest.mark.skipif(BACKEND != "torch", reason="XLA passes over the state of one token at a time")
@pytest.mark.parametrize(
    ("amd", "threads", "batch", "wanted"),
    [
        *[(True, 1, 16, 16), (True, 2, 16, 32), (True, 2, 32, 16), (True, 8, 32, 32), (True, 1, 128, 8)],
        *[(True, 1, 12, 21), (False, 1, 12, 32), (False, 2, 32, 16)],  # elsewhere tokens of few states share a call
    ],
)
def test_the_states_of_a_block_fit_into_the_caches_of_the_cores(amd, threads, batch, wanted, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    monkeypatch.setattr("dl_mamba.ops.products.on_amd", lambda: amd)
    assert chunked._sizes(ops.ones((batch, 1024, 1, 128)), 16) == (wanted, 1)


@pytest.mark.skipif(BACKEND != "torch", reason="XLA takes what is subnormal for zero, at no cost")
@pytest.mark.parametrize(("strongest", "smallest"), [(-2.0, 2.0**-2), (-150.0, 2.0**-64)])
def test_no_decay_is_so_small_that_it_slows_torch_down(strongest, smallest):
    from dl_mamba.ops.selective_scan.block_at_once import Blocks

    dt = ops.reshape(ops.convert_to_tensor([0.5, 1.0], dtype="float32"), (2, 1, 1, 1, 1))
    A = ops.convert_to_tensor([[[strongest], [-0.25]]], dtype="float32") * math.log(2.0)
    decay = numpy(Blocks(dt, A)._decay((None, dt, None, None, None), A))[:, 0, 0, 0, :, 0]
    np.testing.assert_allclose(decay[1], [smallest, 2.0**-0.25], rtol=1e-6)
    np.testing.assert_allclose(decay[0], [max(2.0 ** (strongest / 2), 2.0**-64), 2.0**-0.125], rtol=1e-6)


def test_one_group_and_no_group_axis_are_the_same():
    arrays = float32(draw(SCAN, ngroups=1))
    without_axis = {**arrays, "B": arrays["B"][:, :, 0], "C": arrays["C"][:, :, 0]}
    np.testing.assert_array_equal(numpy(selective_scan(**without_axis)), numpy(selective_scan(**arrays)))


def test_what_is_not_given_is_left_out():
    arrays = float32(draw(SCAN))
    zeros = {name: np.zeros_like(arrays[name]) for name in ("D", "dt_bias", "initial_state")}
    neutral = {**arrays, **zeros}
    del neutral["z"]
    bare = {name: arrays[name] for name in ("x", "dt", "A", "B", "C")}
    assert_close(numpy(selective_scan(**bare)), numpy(selective_scan(**neutral)), 1e-6)  # fused differently


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX and torch know every length when they run")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_length_unknown_to_the_graph_gives_the_same_result(compiled):
    import tensorflow as tf

    arrays = float32(draw(SCAN, length=30))
    wanted = run(SCAN, arrays)

    def unknown_length(**tensors):
        specs = {
            n: tf.TensorSpec([t.shape[0], None, *t.shape[2:]] if n in SCAN.sequences else t.shape)
            for n, t in tensors.items()
        }
        call = tf.function(
            lambda t: selective_scan(**t, return_final_state=True), input_signature=[specs], jit_compile=compiled
        )
        return call(tensors)

    assert_laws_hold(values_and_gradients(unknown_length, arrays), wanted)


def test_the_final_state_is_float32_and_the_output_has_the_dtype_of_x():
    arrays = {name: ops.cast(array, "bfloat16") for name, array in float32(draw(SCAN, length=3)).items()}
    y, state = selective_scan(**arrays, return_final_state=True)
    assert "bfloat16" in str(y.dtype)
    assert "float32" in str(state.dtype)
