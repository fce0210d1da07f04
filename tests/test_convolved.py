"""Under XLA on a CPU a mixer of Mamba-2 convolves again for its gradient: the same mixer, and less memory."""

import keras
import numpy as np
import pytest
from harness import assert_close, assert_laws_hold, numpy, values_and_gradients
from keras import ops
from model_harness import float64_weights, oracle, projected, run, small_mixer, weight_gradients

import dl_mamba
from dl_mamba.layers import MixerState
from dl_mamba.ops.ssd import convolved

OPTIONS = {
    "plain": {},
    "no biases": {"conv_bias": False},
    "groups, a skip for each channel": {"ngroups": 2, "D_has_hdim": True},
    "gate without norm": {"rmsnorm": False},
    "an MLP beside": {"d_ssm": 6},
    "limited steps": {"dt_limit": (0.01, 0.05)},
    "chunks of 3": {"chunk_size": 3},
}
only_xla = pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch on a CPU has `in_place` for both")


def inputs(layer, length=7, batch=2):
    rng = np.random.default_rng(0)
    shapes = {"x": (batch, length, layer.config.d_model)}
    shapes |= dict(zip(("conv", "ssm"), layer.state_shapes(batch), strict=True))
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def call(layer, **options):
    """The mixer as a function of x and its state."""

    def function(x, conv, ssm):
        y, state = layer(x, state=(conv, ssm), return_state=True, **options)
        return y, *state

    return function


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_rows_without_padding_are_those_of_a_mask_that_hides_nothing(options, compiled):
    layer = small_mixer("mamba2", **options)
    arrays = inputs(layer)
    mask = np.ones((2, 7), "bool")
    came, wanted = (values_and_gradients(call(layer, mask=m), arrays, compiled) for m in (None, mask))
    assert_laws_hold(came, wanted)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_of_its_weights_are_those_of_the_reference(options):
    layer = small_mixer("mamba2", **options)
    arrays = inputs(layer)

    def loss():
        return sum(projected(output, seed) for seed, output in enumerate(call(layer)(**arrays)))

    came = weight_gradients(layer, loss)
    with dl_mamba.ops.implementation_scope("reference"):
        wanted = weight_gradients(layer, loss)
    assert came.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert_close(came[name], gradient, 1e-4, name)  # the bound of the project's numerics


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradients_are_the_slopes_of_the_definition_in_float64(options):
    layer = small_mixer("mamba2", **options)
    arrays, own, rng = inputs(layer), float64_weights(layer), np.random.default_rng(1)
    seeds = range(3)  # of the projections of y and both states

    def loss():
        return sum(projected(output, seed) for seed, output in zip(seeds, call(layer)(**arrays), strict=True))

    def exact(weights):
        y, state = oracle(layer, arrays["x"], MixerState(arrays["conv"], arrays["ssm"]), weights)
        random = (np.random.default_rng(seed).normal(size=v.shape) for seed, v in zip(seeds, (y, *state), strict=True))
        return sum(np.sum(v * r.astype("float32")) for v, r in zip((y, *state), random, strict=True))

    for name, gradient in weight_gradients(layer, loss).items():
        along = np.sign(gradient) + 0.1 * rng.normal(size=gradient.shape)  # no sum of unlike signs, which cancels
        up, down = (exact({**own, name: own[name] + step * along}) for step in (1e-5, -1e-5))
        assert_close(np.sum(gradient * along), (up - down) / 2e-5, 1e-4, name)  # the bound of the project's numerics


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_half_precision_rounds_where_the_two_ops_do(policy):
    layer = small_mixer("mamba2", dtype=policy)
    arrays = inputs(layer)
    came, wanted = (run(call(layer, mask=m), *arrays.values()) for m in (None, np.ones((2, 7), "bool")))
    assert keras.backend.standardize_dtype(layer(arrays["x"]).dtype) == "bfloat16"
    for a, b in zip(came, wanted, strict=True):
        assert_close(a, b, 2**-8)  # one rounding to eight bits, where XLA sums in another order


@only_xla
@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16"])
def test_a_gate_without_norm_is_rounded_once(policy):
    layer = small_mixer("mamba2", rmsnorm=False, dtype=policy)
    layer.finish = lambda y, *_: y
    arrays = inputs(layer, length=32)
    came, wanted = (run(call(layer, mask=m), *arrays.values())[0] for m in (None, np.ones((2, 32), "bool")))
    assert np.mean(came != wanted) < 0.02  # a sum in another order; rounded twice, it is 0.5


@only_xla
def test_it_is_for_rows_of_one_document_without_padding_and_for_no_other_implementation(monkeypatch):
    calls = []
    real = convolved.run
    monkeypatch.setattr(convolved, "run", lambda *args, **options: calls.append(args) or real(*args, **options))
    layer = small_mixer("mamba2")
    x = inputs(layer)["x"]
    layer(x)
    assert len(calls) == 1
    assert [dl_mamba.ops.last_implementation(op) for op in ("causal_conv1d", "ssd")] == ["chunked", "chunked"]
    with dl_mamba.ops.implementation_scope("chunked"):
        layer(x)
    assert len(calls) == 2
    with dl_mamba.ops.implementation_scope("reference"):
        layer(x)
    layer(x, mask=np.ones((2, 7), "bool"))
    layer(x, segment_ids=np.zeros((2, 7), "int32"))
    layer(x[:, :1])
    assert len(calls) == 2


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX and torch know every length when they run")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_length_that_only_the_running_program_knows(compiled):
    import tensorflow as tf

    layer = small_mixer("mamba2", chunk_size=3)
    signature = [tf.TensorSpec((None, None, layer.config.d_model))]
    unknown = tf.function(lambda x: layer(x), input_signature=signature, jit_compile=compiled)
    for length in (2, 7):
        x = inputs(layer, length)["x"]
        assert_close(numpy(unknown(ops.convert_to_tensor(x))), numpy(layer(x)), 1e-5)  # float32 in another order
