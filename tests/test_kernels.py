"""The Triton kernels keep the laws of the ops they stand for, on a GPU; without one they say why they do not run.

Triton's interpreter runs them on a CPU too, for the smallest of shapes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import recurrences
from harness import BACKEND, assert_close, assert_laws_hold, numpy
from keras import ops
from test_recurrence_laws import draw, float32, oracle_and_its_gradients, run

from dl_mamba.ops import implementation_scope, last_implementation, ssd
from dl_mamba.ops.kernels.availability import unavailable

OPS = {"ssd": recurrences.SSD, "selective_scan": recurrences.SCAN}
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))]
gpu = lambda test: needs_gpu[0](needs_gpu[1](test))  # noqa: E731


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def drawn(op, length=21, **options):
    return draw(op, length, ngroups=1, **options)


@pytest.mark.skipif(unavailable() is None, reason="the kernels can run here")
def test_where_no_kernel_can_run_auto_takes_the_portable_program_and_a_forced_kernel_says_why(op):
    arrays = float32(drawn(op, length=3))
    op.run(**arrays)
    assert last_implementation(op.run.__name__) == "chunked"
    with pytest.raises(ValueError, match=f"cannot run: {unavailable()}"):
        op.run(**arrays, implementation="triton")


@gpu
def test_auto_takes_the_kernels_where_they_can_run(op):
    op.run(**float32(drawn(op, length=3)))
    assert last_implementation(op.run.__name__) == "triton"


@gpu
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_mask_and_documents_together_equal_the_float64_recurrence(op, length):
    arrays, rng = drawn(op, length), np.random.default_rng(1)
    mask = rng.random((2, length)) < 0.7
    options = {"mask": mask, "segment_ids": np.cumsum(rng.random((2, length)) < 0.2, axis=1).astype("int32")}
    with implementation_scope("triton"):
        came = run(op, float32(arrays), **options)
    assert_laws_hold(came, oracle_and_its_gradients(op, arrays, **options))


@gpu
@pytest.mark.parametrize("ngroups", [1, 2, None])
def test_heads_share_groups(ngroups):
    arrays = draw(recurrences.SSD, ngroups=ngroups)
    with implementation_scope("triton"):
        came = run(recurrences.SSD, float32(arrays))
    assert_laws_hold(came, oracle_and_its_gradients(recurrences.SSD, arrays))


@gpu
def test_limits_and_scales_equal_the_float64_recurrence():
    arrays = draw(recurrences.SSD)
    arrays["D"] = arrays["D"][:, 0]
    arrays["input_scale"] = np.random.default_rng(5).normal(size=arrays["dt"].shape)
    limits = {"dt_limit": (0.2, 2.0), "mask": np.random.default_rng(6).random(arrays["dt"].shape[:2]) < 0.8}
    with implementation_scope("triton"):
        came = run(recurrences.SSD, float32(arrays), **limits)
    assert_laws_hold(came, oracle_and_its_gradients(recurrences.SSD, arrays, **limits))


@gpu
@pytest.mark.parametrize("split", [1, 70])
def test_two_parts_with_carried_state_equal_the_whole(op, split):
    arrays = float32(drawn(op, length=130))
    first = {n: t[:, :split] if n in op.sequences else t for n, t in arrays.items()}
    second = {n: t[:, split:] if n in op.sequences else t for n, t in arrays.items()}
    with implementation_scope("triton"):
        (y, state), _ = run(op, arrays)
        y1, carried = op.run(**first, return_final_state=True)
        y2, last = op.run(**{**second, "initial_state": carried}, return_final_state=True)
    assert_close(np.concatenate([numpy(y1), numpy(y2)], axis=1), y, 1e-5)
    assert_close(numpy(last), state, 1e-5, "state")


@gpu
def test_step_sizes_from_minus_40_to_40_keep_every_digit(op):
    arrays = drawn(op)
    arrays["dt"] = np.random.default_rng(2).uniform(-40.0, 40.0, arrays["dt"].shape)
    arrays = float32(arrays)
    with implementation_scope("triton"):
        came = run(op, arrays)
    assert_laws_hold(came, oracle_and_its_gradients(op, {n: a.astype("float64") for n, a in arrays.items()}))


@gpu
def test_a_weak_decay_behind_a_strong_one_keeps_its_digits():
    dt = np.full((1, 64, 1), 1e-4, "float32")
    dt[0, 1] = 100.0
    ones = np.ones((1, 64, 1, 1), "float32")
    arrays = {"x": ones, "dt": dt, "A": np.array([-1.0], "float32"), "B": ones, "C": ones}
    scale = np.ones((1, 64, 1), "float32")
    came = numpy(ssd(**arrays, input_scale=scale, dt_softplus=False, implementation="triton"))
    h, wanted = 0.0, []
    for step in dt[0, :, 0].astype("float64"):
        h = np.exp(-step) * h + 1.0
        wanted.append(h)
    assert_close(came[0, :, 0, 0], np.array(wanted), 1e-6)


@gpu
@pytest.mark.parametrize("sizes", [(2, 70, 4, 16, 4, 16), (1, 130, 2, 128, 1, 128), (1, 70, 6, 40, 2, 100)])
def test_any_head_and_state_size_equals_the_token_by_token_definition(sizes):
    arrays = ssd_arrays(*sizes)
    with implementation_scope("triton"):
        came = run(recurrences.SSD, arrays)
    with implementation_scope("reference"):
        wanted = run(recurrences.SSD, arrays)
    assert_laws_hold(came, wanted)


@gpu
def test_segments_of_a_long_sequence_run_side_by_side_to_the_same_end():
    arrays = ssd_arrays(1, 3001, 2, 64, 1, 64)
    with implementation_scope("triton"):
        came = run(recurrences.SSD, arrays)
    with implementation_scope("chunked"):
        wanted = run(recurrences.SSD, arrays)
    assert_laws_hold(came, wanted)


@gpu
@pytest.mark.parametrize("d_state", [64, 128, 256])
def test_a_full_gpu_in_bfloat16_stays_within_the_rounding_of_its_inputs(d_state):
    """Triton 3.6 has miscompiled products in ways that only a full GPU shows."""
    arrays = ssd_arrays(8, 500, 32, 64, 1, d_state)
    arrays["dt"] -= 3.0
    half = {n: ops.cast(a, "bfloat16") if n in ("x", "dt", "B", "C", "z") else a for n, a in arrays.items()}
    wide = {n: numpy(ops.cast(a, "float32")) for n, a in half.items()}
    came = numpy(ssd(**half, implementation="triton"))
    wanted = numpy(ssd(**wide, implementation="chunked"))
    # inputs, scores and states are rounded to 8 bits before products of 64 to 256 terms: 2e-3 in the mean
    assert np.linalg.norm(came - wanted) <= 5e-3 * np.linalg.norm(wanted)


@gpu
@pytest.mark.skipif(BACKEND != "torch", reason="the outputs of a kernel can be filled beforehand on torch alone")
def test_every_element_is_written_and_two_runs_are_bitwise_equal(op, monkeypatch):
    import torch

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    arrays = float32(drawn(op, length=130))
    with implementation_scope("triton"):
        (first, first_gradients), (second, second_gradients) = run(op, arrays), run(op, arrays)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    for name in first_gradients:
        assert np.all(np.isfinite(first_gradients[name]))
        np.testing.assert_array_equal(first_gradients[name], second_gradients[name])


@gpu
def test_what_the_kernels_cannot_hold_is_refused_with_the_reason():
    arrays = ssd_arrays(1, 3, 1, 64, 1, 512)
    ssd(**arrays)
    assert last_implementation("ssd") == "chunked"
    with pytest.raises(ValueError, match="d_state=512; the kernels hold states up to 128"):
        ssd(**arrays, implementation="triton")


def ssd_arrays(batch, length, nheads, headdim, ngroups, d_state):
    n = np.random.default_rng(0).normal
    arrays = {
        "x": n(size=(batch, length, nheads, headdim)),
        "dt": n(size=(batch, length, nheads)),
        "A": -np.exp(n(size=nheads)),
        "B": n(size=(batch, length, ngroups, d_state)),
        "C": n(size=(batch, length, ngroups, d_state)),
        "D": n(size=(nheads, headdim)),
        "z": n(size=(batch, length, nheads, headdim)),
        "dt_bias": n(size=nheads),
        "initial_state": n(size=(batch, nheads, headdim, d_state)),
    }
    return float32(arrays)


INTERPRETED = """
import numpy as np, recurrences
from triton.runtime import interpreter
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())  # NumPy 2.4 refuses int(array of one)
interpreter._patch_lang_tensor = patched
from test_recurrence_laws import draw, float32, run
from harness import assert_laws_hold
from dl_mamba.ops import implementation_scope
for op, length in ((recurrences.SSD, 70), (recurrences.SCAN, 5)):
    arrays = float32(draw(op, length, ngroups=1))
    ids = np.repeat([[0] * 3 + [1] * (length - 3)], 2, axis=0).astype("int32")
    results = []
    for implementation in ("triton", "chunked"):
        with implementation_scope(implementation):
            results.append(run(op, arrays, segment_ids=ids))
    assert_laws_hold(*results)
"""


@pytest.mark.skipif(BACKEND != "torch", reason="Triton interprets kernels on tensors of torch")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_interpreted_on_a_cpu_equal_the_portable_program():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
