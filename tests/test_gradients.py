"""Functions whose gradient is written by hand, and loops: what a graph of TensorFlow holds of them."""

from __future__ import annotations

import numpy as np
import pytest
from harness import BACKEND

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.loops import loop


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


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a graph of TensorFlow tells what waits for what")
def test_the_outputs_of_a_loop_wait_for_its_last_input():
    import tensorflow as tf

    spec = tf.TensorSpec((4, 3))

    @tf.function(input_signature=[spec, spec])
    def run(early, late):
        return loop(lambda carry, x: ((carry[0] + x[0],), (x[0] * x[1],)), (tf.zeros(3),), (early, late))

    graph = run.get_concrete_function().graph
    waiting, seen = [operation for operation in graph.get_operations() if operation.type == "Fill"], set()
    assert waiting
    while waiting:
        operation = waiting.pop()
        seen.add(operation.name)
        waiting += [tensor.op for tensor in operation.inputs]
    assert "late" in seen
    assert "early" not in seen
