"""A long sequence that passes a mixer in pieces has the outputs, the state and the gradients of the whole one."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, float64_enabled, numpy, values_and_gradients
from keras import ops
from model_harness import FAMILIES, small_mixer

from dl_mamba.layers import MixerState, pieces

pytestmark = [
    pytest.mark.parametrize("family", FAMILIES),
    pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow keeps its memory, and no tape could pass a loop"),
]
D = 6


@pytest.fixture
def counts(monkeypatch):
    """Pieces of two tokens of two rows; in how many the sequences of a test passed."""
    seen, count = [], pieces.count
    monkeypatch.setattr(pieces, "LARGE", 1)
    monkeypatch.setattr(pieces, "SHORTEST", 1)
    monkeypatch.setitem(pieces.PIECE, BACKEND, 4)
    monkeypatch.setattr(pieces, "count", lambda *args: seen.append(count(*args)) or seen[-1])
    return seen


def predicted(function, *tensors):
    """As `predict` runs it: compiled on JAX, without a gradient on torch."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)(*tensors)
    import torch

    with torch.no_grad():
        return function(*keras.tree.map_structure(ops.convert_to_tensor, tensors))


def drawn(layer, length, dtype="float32"):
    rng = np.random.default_rng(0)
    state = MixerState(*(rng.normal(size=shape).astype("float32") for shape in layer.state_shapes(2)))
    return rng.normal(size=(2, length, D)).astype(dtype), state


@pytest.mark.parametrize(("length", "wanted"), [(8, 4), (9, 4), (11, 5), (3, 1)])
@pytest.mark.parametrize("with_state", [False, True])
def test_outputs_and_state_are_those_of_the_whole(family, length, wanted, with_state, counts):
    layer = small_mixer(family)
    x, state = drawn(layer, length)
    given = (x, state) if with_state else (x,)
    y, after = predicted(lambda x, state=None: layer(x, state=state, return_state=True), *given)
    whole, last = predicted(lambda x, state=None: layer(x, state=state, return_state=True, training=True), *given)
    assert counts == [wanted, 1]
    assert_close(numpy(y), numpy(whole), 1e-5)
    for came, part in zip(after, last, strict=True):
        assert_close(numpy(came), numpy(part), 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_state_of_another_dtype_goes_on_as_in_the_whole(family, dtype, counts):
    layer = small_mixer(family)
    x, state = drawn(layer, 8)
    call = lambda x, state, training=None: layer(  # noqa: E731
        x, state=[ops.cast(part, dtype) for part in state], return_state=True, training=training
    )
    y, after = predicted(call, x, state)
    whole, last = predicted(lambda x, state: call(x, state, training=True), x, state)
    assert counts == [4, 1]
    for came, wanted in zip((y, *after), (whole, *last), strict=True):
        assert came.dtype == wanted.dtype
        assert_close(numpy(came), numpy(wanted), 1e-5)


def test_half_precision_passes_in_pieces_too(family, counts):
    layer = small_mixer(family, dtype="mixed_bfloat16")
    x, _ = drawn(layer, 8)
    y, whole = predicted(lambda x: (layer(x), layer(x, training=True)), x)
    assert counts == [4, 1]
    assert y.dtype == whole.dtype
    assert_close(numpy(y), numpy(whole), 2e-2)


def test_padding_documents_and_float64_pass_as_a_whole(family, counts):
    layer = small_mixer(family)
    x, _ = drawn(layer, 8)
    ids = np.zeros((2, 8), "int32")
    predicted(lambda x: (layer(x, mask=ops.ones((2, 8), "bool")), layer(x, segment_ids=ids)), x)
    assert not counts
    with float64_enabled():
        predicted(small_mixer(family, dtype="float64"), x.astype("float64"))
    assert counts == [1]


def test_what_has_a_gradient_passes_as_a_whole(family, counts):
    layer = small_mixer(family)
    x, _ = drawn(layer, 9)
    values_and_gradients(lambda x: (layer(x),), {"x": x}, compiled=True)
    assert set(counts) == {1}


@pytest.mark.skipif(BACKEND != "jax", reason="torch knows when a gradient is wanted")
def test_pieces_have_the_gradient_of_the_whole(family, counts):
    """Of a function that is traced before it is differentiated, JAX tells it nothing of the gradient."""
    import jax

    layer = small_mixer(family)
    x, _ = drawn(layer, 9)
    came = values_and_gradients(lambda x: (jax.jit(layer)(x),), {"x": x}, compiled=True)
    whole = values_and_gradients(lambda x: (layer(x, training=True),), {"x": x}, compiled=True)
    assert counts[0] == 4
    assert_close(came[0][0], whole[0][0], 1e-5)
    assert_close(came[1]["x"], whole[1]["x"], 1e-4)


def test_predict_passes_in_pieces_and_fit_does_not(family, counts):
    layer = small_mixer(family)
    model = keras.Sequential([keras.Input((8, D)), layer])
    model.compile(optimizer="sgd", loss="mse")
    x, _ = drawn(layer, 8)
    counts.clear()
    model.fit(x, x, batch_size=2, verbose=0)
    assert counts[-1] == 1  # JAX builds metrics from a prediction before
    counts.clear()
    model.predict(x, batch_size=2, verbose=0)
    assert set(counts) == {4}
