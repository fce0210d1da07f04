"""Functions whose gradient is written by hand, and loops: their values, and what a program holds of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, numpy
from keras import ops
from model_harness import own_path, perturb, projected, weight_gradients

import dl_mamba
from dl_mamba.layers.adapted import Projection
from dl_mamba.ops.gradients import after, with_gradient
from dl_mamba.ops.loops import loop, native_loop


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX and torch keep no graph of their own")
def test_a_graph_traces_it_once_for_each_shape_with_the_same_gradient():
    import tensorflow as tf

    traced = []

    def forward(x, y):
        traced.append(tuple(x.shape))
        return (x * x,), (x, y)

    square = with_gradient(forward, lambda kept, dy: (2.0 * kept[0] * dy[0], kept[1]))

    @tf.function(autograph=False)
    def fourth_powers(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            total = sum(tf.reduce_sum(square(square(x, None)[0], None)[0]) for x in inputs)
        return tape.gradient(total, inputs)

    inputs = [np.arange(3.0), np.arange(3.0) + 1.0, np.arange(4.0)]
    gradients = fourth_powers(*map(tf.constant, inputs))
    assert traced == [(3,), (4,)]
    for x, gradient in zip(inputs, gradients, strict=True):
        np.testing.assert_allclose(gradient, 4.0 * x**3, rtol=1e-12)


@pytest.mark.skipif(BACKEND == "torch", reason="torch runs in the order of the program")
def test_the_outputs_of_a_loop_wait_for_its_last_input():
    def run(early, late):
        return loop(lambda carry, x: ((carry[0] + x[0],), (x[0] * x[1],)), (ops.zeros(3),), (early, late))

    waiting, sources, inputs = {"jax": _places_on_jax, "tensorflow": _places_on_tensorflow}[BACKEND](run)
    assert waiting
    seen = set()
    while waiting:
        node = waiting.pop()
        seen.add(node)
        waiting += sources(node)
    early, late = inputs
    assert late in seen
    assert early not in seen


def _places_on_tensorflow(run):
    """What the outputs of the loop start as, what such a node is made of, and the inputs."""
    import tensorflow as tf

    spec = lambda name: tf.TensorSpec((4, 3), name=name)  # noqa: E731
    graph = tf.function(run, input_signature=[spec("early"), spec("late")]).get_concrete_function().graph
    named = {operation.name: operation for operation in graph.get_operations()}
    places = [name for name, operation in named.items() if operation.type == "BroadcastTo"]
    return places, lambda name: [tensor.op.name for tensor in named[name].inputs], ("early", "late")


def _places_on_jax(run):
    import jax

    program = jax.make_jaxpr(run)(*np.ones((2, 4, 3), "float32")).jaxpr
    made = {id(variable): equation for equation in program.eqns for variable in equation.outvars}
    repeated = [equation for equation in program.eqns if equation.primitive.name in ("scan", "while")]
    places = [id(read) for equation in repeated for read in equation.invars if id(read) in made and read.aval.ndim == 2]
    sources = lambda node: [id(read) for read in made[node].invars] if node in made else []  # noqa: E731
    return places, sources, tuple(map(id, program.invars))


@pytest.mark.skipif(BACKEND != "jax", reason="the gradient of a loop is the backend's own; only a program of JAX tells")
def test_the_gradient_of_a_native_loop_carries_no_whole_sequence_from_step_to_step():
    import jax

    def total(x):
        return ops.sum(native_loop(lambda carry, x: ((carry[0] * x[0],), (carry[0],)), (ops.ones(3),), (x,))[1][0] ** 2)

    program = jax.make_jaxpr(jax.grad(total))(np.ones((50, 3), "float32")).jaxpr
    loops = [equation for equation in program.eqns if equation.primitive.name == "scan"]
    assert len(loops) == 2
    for equation in loops:
        carried = equation.outvars[: equation.params["num_carry"]]
        assert all(variable.aval.size <= 3 for variable in carried)


@pytest.mark.skipif(BACKEND == "torch", reason="torch runs in the order of the program")
def test_what_waits_for_a_gradient_is_what_it_was_and_waits_for_both_ends():
    x = np.arange(3.0, dtype="float32")
    waiting = lambda *gradient: numpy(after(ops.convert_to_tensor(gradient, "float32"), ops.convert_to_tensor(x)))  # noqa: E731
    for gradient in ((1.0, 2.0, -3.0), (np.inf, np.nan, 1e38), (-1e38, 0.0, -1e38)):
        np.testing.assert_array_equal(waiting(*gradient), x)
    for gradient in ((np.nan, 0.0, 1.0), (1.0, 0.0, np.nan)):
        assert np.isnan(waiting(*gradient)).all()


class NormAndProjection(keras.layers.Layer):
    """Weights for all that a product of a norm is made of: x, gate, scale and kernel."""

    def __init__(self):
        super().__init__()
        self.norm, self.projection = dl_mamba.RMSNorm(name="norm"), Projection(3, use_bias=False, name="projection")
        self.build((2, 5, 4))
        perturb(self, size=1.0)

    def build(self, shape):
        self.x, self.gate = (self.add_weight(name=name, shape=shape) for name in ("x", "gate"))
        self.norm.build(shape)
        self.projection.build(shape)

    def loss(self, gated):
        x, gate = (ops.convert_to_tensor(weight) for weight in (self.x, self.gate))
        return projected(self.norm.projected(self.projection, x, gate if gated else None))


@pytest.mark.parametrize("gated", [False, True])
def test_the_gradient_of_a_product_of_a_norm_is_that_of_its_equation_in_float64(gated):
    layer = NormAndProjection()
    if not gated:
        layer.gate.trainable = False
    came = weight_gradients(layer, lambda: layer.loss(gated))
    w = {own_path(layer, weight): numpy(weight.value).astype("float64") for weight in layer.weights}
    cotangent = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")

    def loss():
        u = w["x"] * w["gate"] / (1.0 + np.exp(-w["gate"])) if gated else w["x"]
        normed = u / np.sqrt(np.mean(u**2, axis=-1, keepdims=True) + layer.norm.epsilon)
        return np.sum(normed * w["norm/scale"] @ w["projection/kernel"] * cotangent)

    assert came.keys() == w.keys() - (set() if gated else {"gate"})
    for name, gradient in came.items():
        assert_close(gradient, _differences(loss, w[name]), 1e-5, name)


def _differences(function, array, step=1e-5):
    """The gradient of `function()` in the numbers of an array, by central differences."""
    gradient = np.empty_like(array)
    for index, value in np.ndenumerate(array):
        ends = []
        for array[index] in (value - step, value + step):
            ends.append(function())
        array[index] = value
        gradient[index] = (ends[1] - ends[0]) / (2.0 * step)
    return gradient


@pytest.mark.skipif(BACKEND != "jax", reason="JAX shows the program that XLA has made")
def test_the_gradient_of_a_product_of_a_norm_computes_the_norm_once_and_copies_no_kernel():
    import jax

    layer = NormAndProjection()

    def loss(values):
        with keras.StatelessScope(state_mapping=list(zip(layer.variables, values, strict=True))):
            return layer.loss(gated=True) ** 2  # else its gradient is a constant, for which nothing has to wait

    program = jax.jit(jax.value_and_grad(loss)).lower([v.value for v in layer.variables]).compile().as_text()
    assert program.count(" exponential(") == 2  # of the gate, forward and again
    assert not [line for line in program.splitlines() if " = f32[4,3]" in line and " add(" in line]
