"""Laws of the mixers and residual blocks, each used alone."""

import inspect
import json
import math

import keras
import numpy as np
import pytest
from harness import assert_close, numpy, values_and_gradients
from keras import ops
from model_harness import (
    BLOCKS,
    FAMILIES,
    MIXERS,
    SMALL_MIXER,
    mixer_options,
    oracle,
    own_path,
    perturb,
    place,
    projected,
    run,
    small_mixer,
    weight_gradients,
)

import dl_mamba
from dl_mamba.layers import CausalConv1D, MixerState, adapted
from dl_mamba.ops.ssd import convolved

pytestmark = pytest.mark.parametrize("family", FAMILIES)

FORWARD = 1e-5  # the project's bound for float32 against float64, relative to the largest value
GRADIENT = 1e-4  # its bound for gradients
BACKEND = keras.backend.backend()
D = 6  # width of the small mixers


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def some_state(layer, batch, seed=1):
    return MixerState(*(inputs(*shape, seed=seed + i) for i, shape in enumerate(layer.state_shapes(batch))))


def assert_states_close(came, wanted, tolerance=FORWARD):
    assert_close(came[0], wanted[0], tolerance, "convolution's state")
    assert_close(came[1], wanted[1], tolerance, "state")


@pytest.mark.parametrize("seed", range(8))
def test_outputs_and_state_equal_a_token_by_token_forward_in_float64(family, seed):
    layer = MIXERS[family](**mixer_options(family, seed))
    layer.build((None, None, layer.config.d_model))
    perturb(layer, seed)
    x, state = inputs(2, 7, layer.config.d_model), some_state(layer, 2)
    y, after = run(lambda x, state: layer(x, state=state, return_state=True), x, state)
    wanted, wanted_state = oracle(layer, x, state)
    assert_close(y, wanted, FORWARD)
    assert_states_close(after, wanted_state)


def test_no_state_means_zeros(family):
    layer, x = small_mixer(family), inputs(2, 3, D)
    empty = layer.initial_state(2)
    assert [str(keras.backend.standardize_dtype(part.dtype)) for part in empty] == ["float32", "float32"]
    with_zeros = run(lambda x, state: layer(x, state=state), x, empty)
    np.testing.assert_array_equal(run(layer, x), with_zeros)


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_two_calls_with_carried_state_equal_one(family, cut):
    layer, x = small_mixer(family), inputs(2, 7, D)

    def halves(x):
        first, state = layer(x[:, :cut], return_state=True)
        second, state = layer(x[:, cut:], state=state, return_state=True)
        return ops.concatenate([first, second], axis=1), state

    y, state = run(halves, x)
    wanted, wanted_state = run(lambda x: layer(x, return_state=True), x)
    assert_close(y, wanted, FORWARD)
    assert_states_close(state, wanted_state)


def test_gradients_through_the_carried_state_equal_those_of_one_call(family):
    layer, x = small_mixer(family), inputs(2, 7, D)

    def in_two():
        _, state = layer(x[:, :4], return_state=True)
        return projected(layer(x[:, 4:], state=state))

    came = weight_gradients(layer, in_two)
    wanted = weight_gradients(layer, lambda: projected(layer(x)[:, 4:]))
    for name in wanted:
        assert_close(came[name], wanted[name], GRADIENT, name)


def test_one_token_at_a_time_equals_one_call(family):
    layer, x = small_mixer(family), inputs(2, 6, D)

    def loop(x):
        state, outputs = None, []
        for t in range(6):
            y, state = layer(x[:, t : t + 1], state=state, return_state=True)
            outputs.append(y)
        return ops.concatenate(outputs, axis=1), state

    y, state = run(loop, x)
    wanted, wanted_state = oracle(layer, x)
    assert_close(y, wanted, FORWARD)
    assert_states_close(state, wanted_state)


@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_padding_changes_neither_outputs_nor_state(family, side, carried):
    layer = small_mixer(family, bias=True)
    rows = [inputs(n, D, seed=n) for n in (7, 4, 1, 0)]
    x, mask = place(rows, 7, side, filler=50.0)
    state = some_state(layer, 4) if carried else None
    call = lambda x, mask, state: layer(x, mask=mask, state=state, return_state=True)  # noqa: E731
    y, after = run(call, x, mask, state)
    assert np.all(np.isfinite(y))
    for i, row in enumerate(rows):
        own = None if state is None else MixerState(*(part[i : i + 1] for part in state))
        wanted, wanted_state = oracle(layer, row[None], own)
        assert_close(y[i][mask[i]], wanted[0], FORWARD, f"row {i}")
        assert_states_close([part[i : i + 1] for part in after], wanted_state)


@pytest.mark.parametrize("padded", [False, True], ids=["dense", "padded"])
def test_documents_packed_into_a_row_equal_separate_rows(family, padded):
    layer, state = small_mixer(family), None
    lengths, slots = (3, 1, 4), 11 if padded else 8
    documents = [inputs(n, D, seed=n) for n in lengths]
    x, mask = place([np.concatenate(documents)], slots, "between", filler=50.0)
    numbers = np.full((1, slots), 9, "int32")
    numbers[mask] = np.repeat([5, 2, 5], lengths)
    state = some_state(layer, 1)
    call = lambda x, mask, ids, state: layer(x, mask=mask, state=state, return_state=True, segment_ids=ids)  # noqa: E731
    y, after = run(call, x, mask, numbers, state)
    wanted = [oracle(layer, d[None], state if i == 0 else None) for i, d in enumerate(documents)]
    assert_close(y[mask], np.concatenate([y[0] for y, _ in wanted]), FORWARD)
    assert_states_close(after, wanted[-1][1])


def test_a_keras_mask_from_a_layer_in_front_is_obeyed_and_passed_on(family):
    layer = small_mixer(family, bias=True)
    values = keras.Input((None, D))
    y = layer(keras.layers.Masking()(values))
    model = keras.Model(values, [y, keras.layers.GlobalAveragePooling1D()(y)])
    rows = [inputs(n, D, seed=n) for n in (5, 2)]
    x, mask = place(rows, 5, "left", filler=0.0)
    y, pooled = run(model, x)
    for i, row in enumerate(rows):
        wanted = oracle(layer, row[None])[0][0]
        assert_close(y[i][mask[i]], wanted, FORWARD)
        assert_close(pooled[i], wanted.mean(0), FORWARD)


def test_a_block_adds_the_mixer_of_the_normed_input(family):
    block = BLOCKS[family](**SMALL_MIXER[family], norm_epsilon=0.1)
    block.build((None, None, D))
    perturb(block)
    x, mask = place([inputs(5, D), inputs(2, D)], 5, "left", filler=50.0)
    y, _ = run(lambda x, mask: block(x, mask=mask, return_state=True), x, mask)
    scale = numpy(block.norm.scale.value)
    for i in range(2):
        row = x[i][mask[i]].astype("float64")
        normed = row / np.sqrt(np.mean(row**2, axis=-1, keepdims=True) + 0.1) * scale
        assert_close(y[i][mask[i]], row + oracle(block.mixer, normed[None])[0][0], FORWARD)


WIDE = {"mamba": {"d_model": 64, "d_state": 8}, "mamba2": {"d_model": 64, "d_state": 8, "headdim": 1}}


def fresh(family, **options):
    keras.utils.set_random_seed(0)
    layer = MIXERS[family](**WIDE[family], **options)
    layer.build((None, None, 64))
    return {own_path(layer, v): numpy(v.value) for v in layer.weights}


def assert_uniform(values, low, high, what):
    """At least 128 draws: their extremes lie within 10 % of the ends, mean and spread within 5 standard errors."""
    width, count = high - low, values.size
    assert count >= 128
    assert low - 1e-6 * width <= values.min() <= low + 0.1 * width, what
    assert high - 0.1 * width <= values.max() <= high + 1e-6 * width, what
    assert abs(values.mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * count), what
    assert abs(values.std() - width / math.sqrt(12)) < 5 * width * math.sqrt(0.8 / (48 * count)), what


def test_projections_are_uniform_by_fan_in(family):
    w = fresh(family, bias=True)
    fan_in = {"in_proj": 64, "x_proj": 128, "out_proj": 128}
    for name in ("in_proj", "out_proj") if family == "mamba2" else fan_in:
        assert_uniform(w[f"{name}/kernel"], -(fan_in[name] ** -0.5), fan_in[name] ** -0.5, name)
    assert not w["in_proj/bias"].any()
    assert not w["out_proj/bias"].any()


def test_out_proj_is_divided_by_the_root_of_the_depth(family):
    limit = 128**-0.5 / 3.0
    assert_uniform(fresh(family, num_layers=9)["out_proj/kernel"], -limit, limit, "out_proj")
    model = dl_mamba.Mamba(5, 64, 9, d_state=1) if family == "mamba" else dl_mamba.Mamba2(5, 64, 9, d_state=1)
    for block in model.blocks:
        assert_uniform(numpy(block.mixer.out_proj.kernel.value), -limit, limit, block.path)


def test_the_convolution_is_uniform_by_its_taps(family):
    for taps in (4, 3):
        w = fresh(family, d_conv=taps)
        for name in ("conv1d/kernel", "conv1d/bias"):
            assert_uniform(w[name], -(taps**-0.5), taps**-0.5, name)
    if family == "mamba2":
        w = fresh(family, conv_init=0.05)
        assert_uniform(w["conv1d/kernel"], -0.05, 0.05, "kernel")
        assert_uniform(w["conv1d/bias"], -0.5, 0.5, "bias")


def test_first_step_sizes_are_log_uniform(family):
    dt = np.logaddexp(0.0, fresh(family)["dt_bias"].astype("float64"))
    assert_uniform(np.log(dt), math.log(1e-3), math.log(0.1), "dt")
    dt = np.logaddexp(0.0, fresh(family, dt_min=1e-6, dt_max=1.0)["dt_bias"].astype("float64"))
    assert dt.min() == pytest.approx(1e-4, rel=1e-3)  # dt_init_floor; float32 holds softplus^-1(1e-4) to 5 digits
    share = np.mean(dt < 1.01e-4)  # a third of ln(1e-6) .. ln(1) lies below the floor; 5 standard errors of 128 draws
    assert abs(share - 1 / 3) < 5 * math.sqrt(2 / 9 / dt.size)


def test_decay_rates_and_skips_start_as_published(family):
    w = fresh(family)
    np.testing.assert_array_equal(w["D"], np.ones_like(w["D"]))
    if family == "mamba":
        rates = np.tile(np.log(np.arange(1, 9)), (128, 1))
        np.testing.assert_allclose(w["A_log"], rates, rtol=0, atol=3e-7)  # float32 rounding of numbers up to 2.1
    else:
        assert_uniform(np.exp(w["A_log"]), 1.0, 16.0, "A")
        assert_uniform(np.exp(fresh(family, A_init_range=(2.0, 3.0))["A_log"]), 2.0, 3.0, "A")
        np.testing.assert_array_equal(w["norm/scale"], np.ones(128))


def test_the_dt_projection_is_uniform_or_constant(family):
    if family == "mamba2":
        assert not any("dt_proj" in path for path in fresh(family))
        return
    limit = 0.5 * 4**-0.5
    assert_uniform(fresh(family, dt_scale=0.5)["dt_proj/kernel"], -limit, limit, "dt_proj")
    constant = fresh(family, dt_scale=0.5, dt_init="constant")["dt_proj/kernel"]
    np.testing.assert_array_equal(constant, np.full((4, 128), limit, "float32"))


@pytest.mark.parametrize("kind", [MIXERS, BLOCKS], ids=["mixer", "block"])
@pytest.mark.parametrize("seed", range(3))
def test_a_layer_made_from_its_config_computes_the_same(family, kind, seed):
    layer = kind[family](**mixer_options(family, seed), name="some_name", dtype="mixed_bfloat16", trainable=False)
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()
    assert again.config == layer.config
    assert (again.name, again.dtype_policy.name, again.trainable) == ("some_name", "mixed_bfloat16", False)
    for one in (layer, again):
        one.build((None, None, layer.config.d_model))
    assert [(own_path(again, v), v.shape) for v in again.weights] == [
        (own_path(layer, v), v.shape) for v in layer.weights
    ]


def test_the_small_layers_are_made_again_by_their_configs(family):
    del family
    for layer in (dl_mamba.RMSNorm(1e-3, 2, norm_before_gate=True), CausalConv1D(3, use_bias=False, init_limit=0.1)):
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
        again = keras.saving.deserialize_keras_object(config)
        for name in ("epsilon", "ngroups", "norm_before_gate", "d_conv", "use_bias", "init_limit"):
            assert getattr(again, name, None) == getattr(layer, name, None), name


WRONG_OPTIONS = {
    "unknown": ({"d_sate": 4}, ("d_sate", "choose from", "d_state")),
    "too small": ({"d_model": 0}, ("d_model=0", ">= 1")),
    "no integer": ({"d_conv": 2.5}, ("d_conv=2.5", "integer")),
    "step sizes": ({"dt_min": 0.2}, ("dt_min=0.2", "dt_max=0.1")),
}
WRONG_MAMBA = {
    "dt_init": ({"dt_init": "zeros"}, ("dt_init='zeros'", "'random'", "'constant'")),
    "dt_rank": ({"dt_rank": 0}, ("dt_rank=0", ">= 1")),
    "option of mamba2": ({"headdim": 4}, ("headdim", "choose from")),
}
WRONG_MAMBA2 = {
    "headdim": (
        {"d_model": 100, "headdim": 64},
        ("d_model=100", "expand=2", "d_inner=200", "headdim=64", "d_model=96 or 128", "headdim=50"),
    ),
    "ngroups": ({"ngroups": 3}, ("ngroups=3", "nheads=4", "[1, 2, 4]")),
    "d_ssm too large": ({"d_ssm": 15}, ("d_ssm=15", "d_inner=12", "choose d_ssm")),
    "d_ssm and headdim": ({"d_ssm": 8}, ("d_ssm=8", "headdim=3", "headdim=2")),
    "dt_limit": ({"dt_limit": (1.0, 0.5)}, ("dt_limit=(1.0, 0.5)", "needed")),
    "A_init_range": ({"A_init_range": (0.0, 1.0)}, ("A_init_range=(0.0, 1.0)", "needed")),
    "chunk_size": ({"chunk_size": 0}, ("chunk_size=0", ">= 1")),
}


@pytest.mark.parametrize("kind", [MIXERS, BLOCKS], ids=["mixer", "block"])
def test_a_wrong_option_is_named_with_the_way_out(family, kind):
    wrong = {**WRONG_OPTIONS, **(WRONG_MAMBA if family == "mamba" else WRONG_MAMBA2)}
    for case, (options, words) in wrong.items():
        with pytest.raises(ValueError, match=".") as caught:
            kind[family](**{**SMALL_MIXER[family], **options})
        missing = [word for word in words if word not in str(caught.value)]
        assert not missing, f"{case}: {missing} not in {caught.value}"


def test_a_headdim_advised_by_the_error_is_accepted(family):
    if family == "mamba":
        return
    for options in ({"d_model": 96}, {"d_model": 128}, {"d_model": 100, "headdim": 50}):
        dl_mamba.Mamba2Layer(**{"headdim": 64, **options})


WRONG_CALLS = {
    "rank": ({"x": np.zeros((5, D))}, ("x", "(5, 6)", "(batch, length, d_model)")),
    "width": ({"x": np.zeros((2, 5, 7))}, ("x", "(2, 5, 7)", "d_model=6")),
    "mask": ({"mask": np.ones((2, 4))}, ("mask", "(2, 4)", "length=5")),
    "mask of rank 3": ({"mask": np.ones((2, 5, 1))}, ("mask", "(2, 5, 1)", "length=5")),
    "segment_ids": ({"segment_ids": np.ones((3, 5), "int32")}, ("segment_ids", "(3, 5)", "batch=2")),
    "no state": ({"state": np.zeros((2, 3))}, ("state", "MixerState", "initial_state")),
}


@pytest.mark.parametrize("kind", [MIXERS, BLOCKS], ids=["mixer", "block"])
def test_a_wrong_shape_is_named_with_what_is_needed(family, kind):
    layer = kind[family](**SMALL_MIXER[family])
    layer.build((None, None, D))
    of_three = layer.initial_state(3)
    cases = {**WRONG_CALLS, "state of another batch": ({"state": of_three}, ("state.conv", "(3, 3,", "batch=2"))}
    for case, (arguments, words) in cases.items():
        arguments = {"x": np.zeros((2, 5, D), "float32"), **arguments}
        with pytest.raises(ValueError, match=".") as caught:
            layer(arguments.pop("x"), **arguments)
        missing = [word for word in words if word not in str(caught.value)]
        assert not missing, f"{case}: {missing} not in {caught.value}"


class Around(keras.layers.Layer):
    """A layer of a user, which casts the weights of all that it calls."""

    def __init__(self, inner, **options):
        super().__init__(**options)
        self.inner = inner

    def call(self, x):
        return self.inner(x, return_state=True)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_half_precision_leaves_decay_skip_step_bias_and_state_in_float32(family, policy):
    block = BLOCKS[family](**SMALL_MIXER[family], dtype=policy)
    block.build((None, None, D))
    half = policy.removeprefix("mixed_")
    awkward = {"A_log": math.log(15.003), "D": 1.003, "dt_bias": -6.903}  # none of them is a half-precision number
    for name, value in awkward.items():
        weight = getattr(block.mixer, name)
        weight.assign(np.full(weight.shape, value, "float32"))
    seen = {}
    module, scan = __import__(f"dl_mamba.layers.{family}", fromlist=["_"]), "ssd"
    if family == "mamba":
        scan = "selective_scan"
    elif BACKEND != "torch":
        module, scan = convolved, "run"
    real = getattr(module, scan)

    def spy(*args, **kwargs):
        seen.update(inspect.signature(real).bind(*args, **kwargs).arguments)
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, scan, spy)
        y, state = Around(block, dtype=policy)(inputs(1, 3, D))
    for name, value in {"A": -15.003, "D": 1.003, "dt_bias": -6.903}.items():
        assert keras.backend.standardize_dtype(seen[name].dtype) == "float32"
        # exp in float32 is good to about two units in the last place; a half-precision detour costs 1e-3
        np.testing.assert_allclose(numpy(ops.convert_to_tensor(seen[name])), value, rtol=3e-7)
    dtypes = [keras.backend.standardize_dtype(t.dtype) for t in (y, state.conv, state.ssm)]
    assert dtypes == ["float32", half, "float32"]
    assert keras.backend.standardize_dtype(block.mixer(inputs(1, 3, D)).dtype) == half
    assert {v.name for v in block.mixer._trainable_variables if v.dtype == "float32"} == {"A_log", "D", "dt_bias"}


def test_the_residual_stream_keeps_what_half_precision_would_round_away(family):
    x = (1.0 + 2.0**-12 * np.arange(3 * D).reshape(1, 3, D)).astype("float32")  # exact in float32, not in bfloat16
    for in_fp32 in (True, False):
        block = BLOCKS[family](**SMALL_MIXER[family], dtype="mixed_bfloat16", residual_in_fp32=in_fp32)
        block.build((None, None, D))
        block.mixer.out_proj.kernel.assign(np.zeros(block.mixer.out_proj.kernel.shape))
        y = block(x)
        assert keras.backend.standardize_dtype(y.dtype) == ("float32" if in_fp32 else "bfloat16")
        assert np.array_equal(numpy(y), x) is in_fp32


def test_a_symbolic_call_tells_shapes_and_dtypes_exactly(family):
    for kind, dtype in ((MIXERS, "bfloat16"), (BLOCKS, "float32")):
        layer = kind[family](**SMALL_MIXER[family], dtype="mixed_bfloat16")
        x = keras.Input((None, D))
        y, state = layer(x, return_state=True)
        assert (y.shape, y.dtype) == ((None, None, D), dtype)
        alone = layer(x)
        assert (alone.shape, alone.dtype) == (y.shape, y.dtype)
        model = keras.Model(x, [y, *state])
        values = run(model, inputs(2, 5, D))
        real, real_state = layer(inputs(2, 5, D), return_state=True)
        for symbol, tensor, value in zip((y, *state), (real, *real_state), values, strict=True):
            assert symbol.shape[0] is None
            assert symbol.dtype == keras.backend.standardize_dtype(tensor.dtype)
            assert tuple(2 if i == 0 else s or 5 for i, s in enumerate(symbol.shape)) == value.shape


def test_a_functional_model_takes_and_gives_state(family):
    layer = small_mixer(family)
    x = keras.Input((None, D))
    before = MixerState(*(keras.Input(shape[1:]) for shape in layer.state_shapes(None)))
    y, after = layer(x, state=before, return_state=True)
    model = keras.Model([x, *before], [y, *after])
    x, state = inputs(2, 4, D), some_state(layer, 2)
    y, *after = run(lambda *tensors: model(list(tensors)), x, *state)
    wanted, wanted_state = oracle(layer, x, state)
    assert_close(y, wanted, FORWARD)
    assert_states_close(after, wanted_state)


def test_a_projection_and_its_gradients_are_those_of_a_matrix_product(family):
    layer = small_mixer(family, bias=True).in_proj
    arrays = {"x": inputs(2, 3, D)} | {v.name: inputs(*v.shape, seed=i) for i, v in enumerate(layer.weights, 1)}
    (came,), gradients = values_and_gradients(
        lambda x, **weights: (layer.stateless_call([*weights.values()], [], x)[0],), arrays
    )
    x, kernel, bias = (a.astype("float64") for a in arrays.values())
    assert_close(came, x @ kernel + bias, FORWARD)
    dy = np.random.default_rng(0).normal(size=came.shape)  # what `values_and_gradients` projects on
    wanted = {"x": dy @ kernel.T, "kernel": np.einsum("bli,blo->io", x, dy), "bias": dy.sum((0, 1))}
    for name, gradient in wanted.items():
        assert_close(gradients[name], gradient, GRADIENT)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_product_for_each_part_of_a_projection_equals_one_for_all(family, policy, monkeypatch):
    layer = small_mixer(family, bias=True, dtype=policy)
    layer.in_proj.enable_lora(2)
    perturb(layer)
    x = ops.cast(inputs(2, 5, D), layer.compute_dtype)
    results = []
    for whether in (False, True):
        monkeypatch.setattr(adapted, "on_accelerator", lambda _, whether=whether: whether)
        parts = layer.in_proj.parts(x, 3, 0, layer.in_proj.units - 3)
        assert [tuple(part.shape[1:]) for part in parts] == [(5, 3), (5, 0), (5, layer.in_proj.units - 3)]
        assert {keras.backend.standardize_dtype(part.dtype) for part in parts} == {layer.compute_dtype}
        results.append((numpy(layer(x)), weight_gradients(layer, lambda: projected(layer(x)))))
    (wanted, wanted_gradients), (came, gradients) = results
    forward, backward = (FORWARD, GRADIENT) if policy == "float32" else (0.03, 0.1)
    assert_close(came, wanted, forward)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, wanted_gradients[name], backward)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_norm_that_the_gradient_computes_again_is_the_one_it_would_keep(family, policy, lora, monkeypatch):
    norm, projection = dl_mamba.RMSNorm(dtype=policy, name="norm"), adapted.Projection(4, use_bias=False, dtype=policy)
    layer = keras.Sequential([norm, projection], name="both")
    layer.build((2, 5, D))
    if lora:
        projection.enable_lora(2)
    perturb(layer)
    x, gate = (ops.cast(inputs(2, 5, D, seed=seed), norm.compute_dtype) for seed in (0, 1))
    results = []
    for gated in ((), (gate,)):
        for whether in (True, False):
            monkeypatch.setattr("dl_mamba.layers.norm.compiled_on_a_cpu", lambda _, whether=whether: not whether)
            y = lambda gated=gated: norm.projected(projection, x, *gated)  # noqa: E731
            assert keras.backend.standardize_dtype(y().dtype) == norm.compute_dtype
            results.append((numpy(y()), weight_gradients(layer, lambda y=y: projected(y()))))
    forward, backward = (FORWARD, GRADIENT) if policy == "float32" else (0.03, 0.1)
    for (wanted, wanted_gradients), (came, gradients) in zip(results[::2], results[1::2], strict=True):
        assert_close(came, wanted, forward)
        for name, gradient in gradients.items():
            assert_close(gradient, wanted_gradients[name], backward)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a graph of TensorFlow tells what it consists of")
def test_the_gradient_of_the_parts_of_a_projection_is_no_sum(family):
    import tensorflow as tf

    layer = small_mixer(family).in_proj

    @tf.function(input_signature=[tf.TensorSpec((None, None, D))])
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = sum(k * tf.reduce_sum(part) for k, part in enumerate(layer.parts(x, 3, 0, layer.units - 3), 1))
        return tape.gradient(loss, x)

    kinds = {operation.type for operation in gradient.get_concrete_function().graph.get_operations()}
    assert not {"AddN", "StridedSliceGrad"} & kinds


def test_a_norm_along_with_the_input_is_the_one_in_front(family):
    layer, norm = small_mixer(family), dl_mamba.RMSNorm()
    x = inputs(2, 5, D)
    assert_close(numpy(layer(x, norm=norm)), numpy(layer(norm(x))), FORWARD)
    with pytest.raises(ValueError, match="norm is a LayerNormalization; a dl_mamba.RMSNorm is needed"):
        layer(x, norm=keras.layers.LayerNormalization())
    with pytest.raises(ValueError, match="Call layer\\(norm\\(x\\)\\)"):
        layer(keras.Input((5, D)), norm=norm)
