"""The Triton kernels keep the laws of the ops they stand for, on a GPU; without one they say why they do not run.

Triton's interpreter runs them on a CPU too, for the smallest of shapes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import recurrences
import test_gated_rms_norm
from harness import (
    BACKEND,
    assert_close,
    assert_laws_hold,
    exact_products,
    float64_enabled,
    numpy,
    values_and_gradients,
)
from keras import ops
from test_recurrence_laws import draw, float32, oracle_and_its_gradients, run

from dl_mamba.ops import (
    causal_conv1d,
    gated_rms_norm,
    implementation_scope,
    last_implementation,
    selective_scan,
    ssd,
)
from dl_mamba.ops.kernels.availability import unavailable
from dl_mamba.ops.kernels.binding import bind, over_rows
from dl_mamba.ops.kernels.launch import aligned

OPS = recurrences.ALL
LONG = 530  # tokens, more than SSD reads with one kernel
ANY_SIZES = [(2, 70, 4, 16, 4, 16), (1, 130, 2, 128, 1, 128), (1, 70, 6, 40, 2, 100), (1, LONG, 6, 40, 2, 100)]
STEPS = [recurrences.SSD, recurrences.SCAN]  # those with step sizes
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))]
installed = lambda name: importlib.util.find_spec(name) is not None  # noqa: E731
lowers = installed("jax_triton") and any(map(installed, ("jax_cuda12_plugin", "jax_cuda13_plugin")))
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
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300, LONG])
def test_mask_and_documents_together_equal_the_float64_recurrence(op, length):
    arrays, rng = drawn(op, length), np.random.default_rng(1)
    mask = rng.random((2, length)) < 0.7
    options = {"mask": mask, "segment_ids": np.cumsum(rng.random((2, length)) < 0.2, axis=1).astype("int32")}
    with implementation_scope("triton"):
        came = run(op, float32(arrays), **options)
    assert_laws_hold(came, oracle_and_its_gradients(op, arrays, **options))


@gpu
@pytest.mark.parametrize("length", [21, LONG])
@pytest.mark.parametrize("ngroups", [1, 2, None])
def test_heads_share_groups(ngroups, length):
    arrays = draw(recurrences.SSD, length, ngroups=ngroups)
    with implementation_scope("triton"):
        came = run(recurrences.SSD, float32(arrays))
    assert_laws_hold(came, oracle_and_its_gradients(recurrences.SSD, arrays))


@gpu
@pytest.mark.parametrize("length", [21, LONG])
def test_limits_and_scales_equal_the_float64_recurrence(length):
    arrays = draw(recurrences.SSD, length)
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
@pytest.mark.parametrize("op", STEPS, ids=["ssd", "selective_scan"])
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
@pytest.mark.parametrize("sizes", ANY_SIZES)
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
    with implementation_scope("chunked"), exact_products():
        wanted = run(recurrences.SSD, arrays)
    assert_laws_hold(came, wanted)


@gpu
@pytest.mark.parametrize("length", [500, 600])
@pytest.mark.parametrize("d_state", [64, 128, 256])
def test_a_full_gpu_in_bfloat16_stays_within_the_rounding_of_its_inputs(d_state, length):
    """Triton 3.6 has miscompiled products in ways that only a full GPU shows."""
    arrays = ssd_arrays(8, length, 32, 64, 1, d_state)
    arrays["dt"] -= 3.0
    half = {n: ops.cast(a, "bfloat16") if n in ("x", "dt", "B", "C", "z") else a for n, a in arrays.items()}
    wide = {n: numpy(ops.cast(a, "float32")) for n, a in half.items()}
    came = numpy(ssd(**half, implementation="triton"))
    wanted = numpy(ssd(**wide, implementation="chunked"))
    # inputs, scores and states are rounded to 8 bits before products of 64 to 256 terms: 2e-3 in the mean
    assert np.linalg.norm(came - wanted) <= 5e-3 * np.linalg.norm(wanted)


@gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_loses_no_more_than_its_roundings(op, dtype):
    """At most 1.5 times the error of a float32 program that rounds its result.

    The products of SSD round their operands too, scores and states, where they take bfloat16: three roundings for one.
    """
    arrays = {n: numpy(ops.cast(a, dtype)) for n, a in float32(drawn(op)).items()}
    wanted = oracle_and_its_gradients(op, {n: a.astype("float64") for n, a in arrays.items()})[0][0]
    with implementation_scope("reference"):
        plain = numpy(ops.cast(op.run(**arrays), dtype))
    with implementation_scope("triton"):
        came = numpy(op.run(**{n: ops.cast(a, dtype) for n, a in arrays.items()}))
    roundings = 3.0 if op is recurrences.SSD and dtype == "bfloat16" else 1.0
    assert np.linalg.norm(came - wanted) <= 1.5 * roundings**0.5 * np.linalg.norm(plain - wanted)


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


@gpu
@pytest.mark.parametrize("op", STEPS, ids=["ssd", "selective_scan"])
@pytest.mark.parametrize("options", [{}, {"mask": [[1], [0]]}, {"segment_ids": [[3], [3]]}])
def test_one_token_of_which_no_gradient_is_wanted_equals_the_definition(op, options):
    arrays = float32(drawn(op, length=1))
    options = {name: np.array(value, "int32") for name, value in options.items()}
    results = []
    for implementation in ("triton", "reference"):
        with no_gradient(), implementation_scope(implementation):
            results.append([numpy(v) for v in op.run(**arrays, return_final_state=True, **options)])
    assert_laws_hold((results[0], {}), (results[1], {}))


@gpu
@pytest.mark.parametrize("options", test_gated_rms_norm.OPTIONS)
@pytest.mark.parametrize("shape", [(2, 5, 12), (3, 96), (700, 3, 1536)])
def test_the_norm_equals_the_definition(options, shape):
    options, rng = dict(options), np.random.default_rng(0)
    arrays = {"x": rng.normal(size=shape), "weight": rng.normal(size=shape[-1])}
    if options.pop("gated"):
        arrays["z"] = rng.normal(size=shape)
    results = []
    for implementation in ("triton", "reference"):
        with implementation_scope(implementation):
            results.append(values_and_gradients(lambda **a: (gated_rms_norm(**a, **options),), float32(arrays)))
    assert_laws_hold(*results)


@gpu
def test_the_norm_rounds_its_result_to_the_dtype_asked_for():
    x = np.random.default_rng(0).normal(size=(4, 96)).astype("float32")
    y = gated_rms_norm(x, np.ones(96, "float32"), dtype="bfloat16", implementation="triton")
    wanted = gated_rms_norm(x, np.ones(96, "float32"), implementation="reference")
    assert "bfloat16" in str(y.dtype)
    assert_close(numpy(y), numpy(wanted), 2.0**-8)


@gpu
@pytest.mark.parametrize("masked", [False, True])
def test_a_full_gpu_of_convolutions_and_norms_in_bfloat16_loses_only_the_rounding_of_results(masked):
    rng = np.random.default_rng(0)
    x, z = (ops.cast(rng.normal(size=(8, 500, 1792)).astype("float32"), "bfloat16") for _ in "xz")
    weight, bias = rng.normal(size=(4, 1792)).astype("float32"), rng.normal(size=1792).astype("float32")
    mask = rng.random((8, 500)) < 0.8 if masked else None
    for op, given in ((causal_conv1d, {"bias": bias, "mask": mask}), (gated_rms_norm, {"z": z})):
        taps = weight if op is causal_conv1d else bias
        came = numpy(op(x, taps, **given, implementation="triton"))
        wide = {name: v if name != "z" else ops.cast(v, "float32") for name, v in given.items()}
        wanted = numpy(op(ops.cast(x, "float32"), taps, **wide, implementation="chunked"))
        assert np.linalg.norm(came - wanted) <= 2.0**-9 * np.linalg.norm(wanted)  # half of the last of 8 bits


@gpu
@pytest.mark.parametrize("z", [False, True])
@pytest.mark.parametrize(("length", "channels"), [(136, 64), (133, 40)])  # two segments of the backward pass
def test_scans_of_16_states_in_bfloat16_and_their_gradients_lose_only_roundings(length, channels, z):
    rng = np.random.default_rng(0)
    sizes = {"x": channels, "dt": channels, "B": (1, 16), "C": (1, 16)} | ({"z": channels} if z else {})
    draws = {n: rng.normal(size=(2, length, *np.atleast_1d(size))).astype("float32") for n, size in sizes.items()}
    arrays = {n: numpy(ops.cast(ops.cast(v, "bfloat16"), "float32")) for n, v in draws.items()}
    arrays |= {n: rng.normal(size=channels).astype("float32") for n in ("D", "dt_bias")}
    arrays |= {"A": -np.exp(rng.normal(size=(channels, 16)).astype("float32"))}
    arrays |= {"initial_state": rng.normal(size=(2, channels, 16)).astype("float32")}
    mask = rng.random((2, length)) < 0.8
    options = {
        "mask": mask,
        "segment_ids": np.cumsum(rng.random((2, length)) < 0.1, axis=1),
        "return_final_state": True,
    }

    def short(**given):
        given = {n: ops.cast(v, "bfloat16") if n in sizes else v for n, v in given.items()}
        return selective_scan(**given, **options, implementation="triton")

    came = values_and_gradients(short, arrays)
    with float64_enabled(), implementation_scope("reference"):
        exact = {n: v.astype("float64") for n, v in arrays.items()}
        wanted = values_and_gradients(lambda **given: selective_scan(**given, **options), exact)
    pairs = [*zip(came[0], wanted[0], strict=True), *((came[1][n], wanted[1][n]) for n in arrays)]
    for given, right in pairs:
        if given.shape[:2] == mask.shape:
            given, right = given[mask], right[mask]
        assert np.linalg.norm(given - right) <= 5e-3 * np.linalg.norm(right)  # two roundings to 8 bits


@pytest.mark.skipif(BACKEND != "torch", reason="torch alone can be told where its tensors lie")
def test_a_tensor_that_triton_lays_tiles_by_begins_at_a_multiple_of_16():
    import torch

    tensor = torch.arange(9.0)
    for given in (tensor, tensor[1:], tensor[::2]):
        came = aligned(given)
        assert came.data_ptr() % 16 == 0
        assert came.is_contiguous()
        assert torch.equal(came, given)
    assert aligned(tensor) is tensor


@pytest.mark.skipif(BACKEND != "torch", reason="one backend is enough: Triton compiles for a GPU that is not there")
@pytest.mark.skipif(not installed("triton"), reason="triton is not installed")
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["scan_forward", "scan_backward"])
def test_quick_scans_exchange_between_the_lanes_that_triton_gives_them(name, whole):
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = getattr(importlib.import_module(f"dl_mamba.ops.kernels.{name}"), name)
    names, constexpr = kernel.arg_names, [parameter.is_constexpr for parameter in kernel.params]
    constants = dict.fromkeys(("CHANNELS", "X_TOKEN", "DT_TOKEN", "Z_TOKEN"), 64) | dict.fromkeys(("N", "BN"), 16)
    constants |= dict.fromkeys(("B_TOKEN", "C_TOKEN"), 16) | {"G": 1, "R": 2, "E": 8, "K": 4, "EVERY": 4, "SEGMENT": 0}
    constants |= {"EXACT": False, "WHOLE": whole}
    wide = ("A", "D", "bias", "flags", "start", "end", "dend", "dA", "dD", "dbias", "dstart")
    types = dict.fromkeys(names, "*bf16") | dict.fromkeys(wide, "*fp32") | {"length": "i32"}
    source = triton.compiler.ASTSource(
        kernel,
        {n: "constexpr" if fixed else types[n] for n, fixed in zip(names, constexpr, strict=True)},
        {(i,): constants.get(n, True) for i, n in enumerate(names) if constexpr[i]},
        {(names.index("A"),): [["tt.divisibility", 16]]},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1, "num_stages": 1})
    text = compiled.asm["ttgir"]
    layouts = dict(re.findall(r"(#(?:linear|blocked)\d*) = #ttg\.(.*)", text))
    exchanges = re.findall(r"shfl.*-> tensor<8x4xf32, (#\w+)>", text)
    lanes = (  # of e, m: lane 4 e + m
        "linear<{register = [], lane = [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], warp = [], block = []}>",
        "blocked<{sizePerThread = [1, 1], threadsPerWarp = [8, 4], warpsPerCTA = [1, 1], order = [1, 0]}>",
    )
    assert len(exchanges) >= constants["K"]
    assert {layouts[layout] for layout in exchanges} <= set(lanes)


@gpu
@pytest.mark.skipif(BACKEND != "torch", reason="torch alone can be told where its tensors lie")
@pytest.mark.parametrize("name", OPS)
def test_elements_beyond_the_31st_bit_of_an_offset_are_reached(name):
    import torch

    length = 2**20 + 4096
    draw = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    rate = lambda *shape: -torch.rand(*shape, device="cuda") - 0.5  # noqa: E731
    inputs = {
        "ssd": lambda: ((draw(1, length, 32, 64), draw(1, length, 32)), rate(32), 2, (1, length, 1, 64)),
        "selective_scan": lambda: ((draw(1, length, 2048), draw(1, length, 2048)), rate(2048, 16), 2, (1, length, 16)),
        "causal_conv1d": lambda: ((draw(1, length, 2048),), draw(4, 2048), 0, ()),
    }
    sequences, parameter, count, shape = inputs[name]()
    others = tuple(draw(*shape) for _ in range(count))
    run = lambda part, **options: OPS[name].run(  # noqa: E731
        *(v[:, part] for v in sequences), parameter, *(v[:, part] for v in others), implementation="triton", **options
    )
    cut = length - 8192
    head, tail = slice(0, cut), slice(cut, length)
    with torch.no_grad():
        first, state = run(head, return_final_state=True)
        difference = run(slice(0, length))[:, head] - first
        assert difference.norm() <= 1e-2 * first.norm()  # of bfloat16
        del first, difference
    x = sequences[0].requires_grad_()
    dy = torch.zeros_like(x)
    dy[:, tail] = draw(*dy[:, tail].shape)
    y = run(slice(0, length))
    (dx,) = torch.autograd.grad(y, x, dy)
    y_tail = run(tail, initial_state=state)
    (dx_tail,) = torch.autograd.grad(y_tail, x, dy[:, tail])
    for came, wanted in ((y, y_tail), (dx, dx_tail[:, tail])):
        came, wanted = came[:, tail].float(), wanted.float()
        assert (came - wanted).norm() <= 1e-2 * wanted.norm()


@gpu
@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile is torch's")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # which torch's compiler looks at
def test_torch_compile_changes_neither_values_nor_gradients(op):
    import torch

    arrays = float32(drawn(op, length=70))
    compiled = torch.compile(lambda tensors: op.run(**tensors, return_final_state=True, implementation="triton"))
    eager = values_and_gradients(lambda **t: op.run(**t, return_final_state=True, implementation="triton"), arrays)
    assert_laws_hold(values_and_gradients(lambda **t: compiled(t), arrays), eager, 1e-6, 1e-6)


@gpu
@pytest.mark.skipif(BACKEND != "jax", reason="jax.vmap is JAX's")
@pytest.mark.parametrize("each", [False, True], ids=["parameters shared", "parameters of each"])
def test_a_mapped_axis_gives_what_single_calls_give(op, each):
    drawn_twice = [float32(drawn(op, length=9, seed=seed)) for seed in (0, 1)]
    rows = (*op.sequences, "initial_state")
    compare_mapped(lambda **t: op.run(**t, return_final_state=True, implementation="triton"), drawn_twice, rows, each)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.vmap is JAX's")
@pytest.mark.parametrize("each", [False, True], ids=["parameters shared", "parameters of each"])
def test_the_rule_for_mapped_axes_folds_values_and_gradients(each):
    def forward(x, w, absent):
        return (x * w, ops.sum(x, axis=1)), (x, w, absent, ops.sum(x, axis=1))

    def backward(copies, residuals, gradients):
        (x, w, _, sums), (dy, dsum) = residuals, gradients
        return dy * w + dsum[:, None] + 0 * sums[:, None], over_rows(dy * x, copies), None

    rng = np.random.default_rng(0)
    arrays = [float32({"x": rng.normal(size=(3, 4)), "w": rng.normal(size=4)}) for _ in range(2)]
    op = bind(forward, backward, (True, False, True))
    compare_mapped(lambda x, w: op(ops.convert_to_tensor(x), ops.convert_to_tensor(w), None), arrays, ("x",), each)


def compare_mapped(function, arrays, rows, each):
    """Values and gradients of single calls, under `jax.vmap`, under two of them, and of a sum over the mapped axis."""
    import jax
    import jax.numpy as jnp

    def total(mapped, shared):
        return sum(jnp.sum(jnp.sin(v)) for v in function(**mapped, **shared))

    split = lambda a: ({n: a[n] for n in rows}, {n: v for n, v in a.items() if n not in rows})  # noqa: E731
    single = jax.value_and_grad(total, argnums=(0, 1))
    parameters = [split(a)[1] for a in (arrays if each else arrays[:1] * len(arrays))]
    wanted = [single(split(a)[0], p) for a, p in zip(arrays, parameters, strict=True)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    mapped, wanted = stack([split(a)[0] for a in arrays]), stack(wanted)
    shared = stack(parameters) if each else parameters[0]
    axes = (0, 0 if each else None)
    twice = jax.tree.map(lambda v: v[None], (mapped, shared if each else None))
    twice = (twice[0], twice[1] if each else shared)
    came = [jax.vmap(single, axes)(mapped, shared)]
    came.append(jax.tree.map(lambda v: v[0], jax.vmap(jax.vmap(single, axes), axes)(*twice)))
    for tree in came:
        jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), tree, wanted)
    of_sum = jax.grad(lambda s: jnp.sum(jax.vmap(total, axes)(mapped, s)))(shared)
    summed = wanted[1][1] if each else jax.tree.map(lambda v: v.sum(0), wanted[1][1])
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-5), of_sum, summed)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="jax-triton lowers")
@pytest.mark.skipif(not lowers, reason="jax-triton and the CUDA plugin of JAX are not installed")
@pytest.mark.parametrize("length", [1, 70])
def test_the_kernels_lower_for_a_hopper_gpu_without_one(op, length, monkeypatch):
    import jax
    import jax_triton

    from dl_mamba.ops.kernels import availability

    call = jax_triton.triton_call
    monkeypatch.setattr(jax_triton, "triton_call", lambda *a, **k: call(*a, compute_capability=90, **k))
    monkeypatch.setattr(availability, "unavailable", lambda: None)
    monkeypatch.setattr(availability, "on_accelerator", lambda tensor: True)
    run = lambda tensors: op.run(**tensors, implementation="triton")  # noqa: E731
    for function in (run, jax.grad(lambda tensors: ops.sum(run(tensors)))):
        lowered = jax.jit(function).trace(float32(drawn(op, length))).lower(lowering_platforms=("cuda",))
        assert "triton_kernel_call" in lowered.as_text()


@pytest.mark.skipif(BACKEND != "jax" or not installed("triton"), reason="XLA launches what triton compiles")
@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (2, ['"product_of_few"', "grid_x = 1 :", "block_x = 128", "[8, 9, 10, 11]", "operand_index = 7"]),
        (
            20,
            [
                '"norm_forward"',
                '"product_of_many"',
                "grid_x = 3 :",
                "block_x = 128",
                "[7, 8, 9, 10]",
                "operand_index = 6",
            ],
        ),
    ],
)
def test_a_kernel_of_decoding_lowers_to_a_call_that_xla_launches_itself(rows, parts, monkeypatch):
    import jax

    from dl_mamba.ops.kernels import one_token, xla_call

    monkeypatch.setattr(xla_call, "supported", lambda: True)
    monkeypatch.setattr(xla_call, "_capability", lambda: 90)
    shapes = {"scale": (24,), "matrix": (40, 24), "taps": (4, 16), "bias": (16,)}
    shapes |= {"x": (rows, 1, 24), "window": (rows, 3, 16)}
    arrays = {name: jax.ShapeDtypeStruct(shape, "bfloat16") for name, shape in shapes.items()}
    project = lambda arrays: one_token.project(**arrays, first=8, epsilon=1e-5)  # noqa: E731
    text = jax.jit(project).trace(arrays).lower(lowering_platforms=("cuda",)).as_text()
    calls = text[text.index(xla_call.TARGET) :]
    for part in parts:
        assert part in calls


def no_gradient():
    if BACKEND != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


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
import dl_mamba, importlib, keras, torch
from dl_mamba.generation import Greedy
from dl_mamba.layers import one_token
from test_gated_rms_norm import draw as norm_arrays
from test_recurrence_laws import draw, float32, run
from harness import assert_laws_hold, numpy, values_and_gradients
from dl_mamba.ops import gated_rms_norm, implementation_scope
importlib.import_module("dl_mamba.ops.kernels.selective_scan").SEGMENT = 16
def compare(function):
    results = []
    for implementation in ("triton", "chunked"):
        with implementation_scope(implementation):
            results.append(function())
    assert_laws_hold(*results)
from dl_mamba.ops.kernels import ssd
SSD = recurrences.SSD
for op, length, short in ((SSD, 70, 0), (SSD, 70, 8), (recurrences.SCAN, 40, 8), (recurrences.CONV, 9, 8)):
    ssd.SHORT = short  # chunks in one kernel
    arrays = float32(draw(op, length, ngroups=1))
    ids = np.repeat([[0] * 3 + [1] * (length - 3)], 2, axis=0).astype("int32")
    mask = np.arange(length) % 4 != np.array([[1], [2]]) if op is recurrences.CONV else None
    compare(lambda: run(op, arrays, segment_ids=ids, mask=mask))
    arrays = float32(draw(op, 1, ngroups=1))
    with torch.no_grad():
        compare(lambda: ([numpy(v) for v in op.run(**arrays, return_final_state=True)], {}))
def step():
    with one_token.fused(), torch.no_grad():
        given = {"state": state, "return_state": True}
        fused.append(one_token.fits(block, x[:, 3:], None, state, None))
        return [numpy(v) for v in keras.tree.flatten(block(x[:, 3:], **given))], {}
for rows, headdim in ((2, 8), (9, 1)):  # few and many, of six heads and of 48
    block = dl_mamba.Mamba2ResidualBlock(d_model=24, headdim=headdim, d_state=16)
    block.build((rows, 4, 24))
    for variable in block.variables:
        variable.assign(variable.value + 0.1 * torch.randn(variable.shape))  # also what begins as ones
    x = torch.randn(rows, 4, 24)
    with implementation_scope("chunked"), torch.no_grad():
        fused, (_, state) = [], block(x[:, :3], return_state=True)
    compare(step)
    assert fused == [True, False]
    half = state.ssm.bfloat16()
    with implementation_scope("triton"), one_token.fused(), torch.no_grad():
        given = [state._replace(ssm=ssm) for ssm in (half, half.float())]
        came, wanted = (block(x[:, 3:], state=kept, return_state=True) for kept in given)
    assert came[1].ssm.dtype == torch.bfloat16 and torch.allclose(came[0], wanted[0], rtol=0, atol=1e-5)
lm = dl_mamba.Mamba2CausalLM(vocab_size=21, d_model=24, num_layers=1, headdim=8, d_state=16)
for variable in lm.variables:
    variable.assign(variable.value + 0.1 * torch.randn(variable.shape))
ids = torch.tensor([[4], [0], [20]], dtype=torch.int32)
def ends_of_the_stack():
    with one_token.fused(), torch.no_grad():
        table = lm.backbone.embedding.embeddings.value
        token = hidden[:, None]
        ends = [one_token.product_fits(hidden, table), one_token.norm_fits(token)]
        fused.append([*ends, one_token.embedding_fits(lm.backbone.embedding, ids)])
        return [numpy(v) for v in (lm.logits(hidden), lm.backbone._normed(token), lm.backbone._embedded(ids))], {}
for rows in (3, 9):
    fused, hidden = [], torch.randn(rows, 24)
    compare(ends_of_the_stack)
    assert fused == [[True] * 3, [False] * 3]
def chosen():
    logits = torch.zeros(3, 9003)
    logits[0, [5, 5 + 8192]] = 3.0  # one column of two of the kernel's blocks
    logits[1, 8700] = 1.0
    logits[:, 9000:] = 4.0
    carry, numbers = {"done": torch.tensor([False, False, True])}, {"end": torch.tensor([7, 5]), "pad": torch.tensor(6)}
    carry, _ = Greedy().choose(logits[:, :9000], carry, numbers, None)
    return [[numpy(carry[name]) for name in ("token", "real", "done")]], {}
with implementation_scope("triton"):
    (came,), _ = chosen()
assert [part.tolist() for part in came] == [[5, 8700, 6], [True, True, False], [True, False, True]], came
for before in (False, True):
    arrays = float32(norm_arrays(True))
    norm = lambda **a: (gated_rms_norm(**a, ngroups=2, norm_before_gate=before),)
    compare(lambda: values_and_gradients(norm, arrays))
from dl_mamba.ops.kernels.self_check import check_kernels
assert check_kernels(1, 3, 64, ["float32"]) == {}
"""


@pytest.mark.skipif(BACKEND != "torch", reason="Triton interprets kernels on tensors of torch")
@pytest.mark.skipif(not installed("triton"), reason="triton is not installed")
def test_the_kernels_interpreted_on_a_cpu_equal_the_portable_program(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "KERAS_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
