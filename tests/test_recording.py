"""A step of the decode loop as a list of kernels: it computes what the step computes, and no more than it has to."""

import numpy as np
import pytest
from generation_harness import lm
from harness import BACKEND, numpy
from keras import ops
from model_harness import FAMILIES

from dl_mamba.generation import decoding

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="recordings and CUDA graphs are torch's")


def test_a_recording_takes_dictionaries_whatever_the_order_of_their_keys():
    from dl_mamba.generation.recording import Recording

    one, two, three = (ops.convert_to_tensor(float(n)) for n in (1, 2, 3))
    recording = Recording(
        lambda carry, rest: ({"b": carry["a"] * 2, "a": carry["b"]}, rest), ({"b": one, "a": two}, one)
    )
    carry, rest = recording(recording.weights(), {"a": two, "b": three}, one)
    assert (float(carry["a"]), float(carry["b"]), float(rest)) == (3.0, 4.0, 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_step_does_not_compute_again_what_depends_on_the_weights_alone(family, monkeypatch):
    from dl_mamba.generation.recording import Recording

    recordings, model = [], lm(family)
    monkeypatch.setattr(decoding, "Recording", lambda *args: recordings.append(Recording(*args)) or recordings[0])
    model.generate([[1, 2]], decoding.RECORD_FROM)
    (recording,) = recordings
    kernels = [[str(node.target) for node in part.graph.nodes] for part in (recording._once, recording._repeated)]
    assert [part.count("aten.neg.default") for part in kernels] == [model.config.num_layers, 0]  # -exp(A_log)


def test_a_recording_computes_again_what_is_written_over():
    from dl_mamba.generation.recording import Recording

    weight = ops.convert_to_tensor([1.0, 2.0])

    def function(x):
        place = ops.zeros_like(weight)
        whole = place.view(2)
        place[:1].add_(x)  # through another view of the same memory
        return whole * 2 + weight.exp().sum()

    x = ops.convert_to_tensor([3.0])
    recording = Recording(function, (x,))
    weights = recording.weights()
    for _ in range(2):
        np.testing.assert_array_equal(numpy(recording(weights, x)), numpy(function(x)))


def test_kernels_of_a_cuda_graph_begin_early_with_what_is_there_and_write_over_what_nobody_else_reads(monkeypatch):
    from dl_mamba.generation.recording import Recording
    from dl_mamba.ops.kernels import launch

    def start(kernel, grid, inputs, outputs, options, over, early, **given):
        rights.append(given)
        return (inputs[0] + inputs[1],)

    def function(state, x):
        add = lambda a, b, over: launch.launch(None, (1,), [a, b], [((), "float32")], over=over, early=(1,))[0]  # noqa: E731
        first = add(x, state, {1: 0})  # the one reader of an argument
        others = add(first, weight * 2, {}), add(x, first * 2, {1: 0}), add(first, x, {1: 0})
        return first, sum(others)

    monkeypatch.setitem(launch._LAUNCH, "torch", start)
    rights, weight, one = [], ops.convert_to_tensor(3.0), ops.convert_to_tensor(1.0)
    recording = Recording(function, (one, one), captured=True)
    rights.clear()
    state, total = recording(recording.weights(), one, one)
    assert rights == [{"reuse": True, "overlap": True}, {"overlap": True}, {}, {"overlap": True}]
    assert (float(state), float(total)) == (2.0, 16.0)


def test_a_cuda_graph_takes_in_what_is_new_and_leaves_the_rest():
    from dl_mamba.generation.cuda_graph import _fill

    tensors = [ops.convert_to_tensor(np.array([n], "float32")) for n in range(4)]
    own = {"token": tensors[0], "state": (tensors[1],)}
    _fill(own, {**own, "token": tensors[2]})
    assert [float(t) for t in tensors] == [2.0, 1.0, 2.0, 3.0]
    _fill(own, {**own, "state": (tensors[3],)})
    assert [float(t) for t in tensors] == [2.0, 3.0, 2.0, 3.0]
