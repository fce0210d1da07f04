"""Functions whose gradient is written by hand: what a graph of TensorFlow holds of them."""

from __future__ import annotations

import numpy as np
import pytest
from harness import BACKEND

from dl_mamba.ops.gradients import with_gradient


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
