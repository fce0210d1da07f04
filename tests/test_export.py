"""Exported programs without Python: a classifier of dynamic length gives the same logits as SavedModel and as ONNX."""

import numpy as np
import pytest
from harness import BACKEND, assert_close
from model_harness import FAMILIES, WITH_HEAD, perturb, place, run, small_model, tokens

from dl_mamba.heads import NLPTaskConfig

TASK = NLPTaskConfig("mood", "sentiment_analysis", num_classes=3, pooling="mean")
ACROSS_RUNTIMES = 1e-5  # the project's bound for float32, relative to the largest value
LENGTHS = (3, 9)  # below and above a chunk of 4


def classifier(family):
    return perturb(WITH_HEAD[family](small_model(family, num_layers=1).config, TASK))


def batches():
    for length in LENGTHS:
        ids, mask = place([tokens(length), tokens(2, seed=1)], length, "left", filler=np.int32(0))
        yield {"input_ids": ids, "attention_mask": mask.astype("int32")}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras writes a SavedModel with TensorFlow")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_serves_every_length(family, tmp_path):
    import tensorflow as tf

    model = classifier(family)
    model.export(tmp_path / "served", format="tf_saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for inputs in batches():
        came = served.serve({name: tf.constant(value) for name, value in inputs.items()})
        assert_close(came.numpy(), run(model, inputs), ACROSS_RUNTIMES)


# torch's tracer warns of every size that becomes a number; a size that should have stayed open shows as a wrong result
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python", "ignore:torch.as_tensor results are registered")
@pytest.mark.skipif(BACKEND != "torch", reason="the ONNX export is guarded on torch")
def test_an_onnx_file_runs_at_every_length(tmp_path):
    pytest.importorskip("onnxscript", reason="the export needs the extra 'export'")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the test runs the file with onnxruntime")
    model = classifier("mamba2")
    wanted = [run(model, inputs) for inputs in batches()]  # Keras exports on torch only what has been called
    path = str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for inputs, logits in zip(batches(), wanted, strict=True):
        given = {node.name: inputs[name] for node, name in zip(session.get_inputs(), sorted(inputs), strict=True)}
        (came,) = session.run(None, given)
        assert_close(came, logits, ACROSS_RUNTIMES)


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python", "ignore:torch.as_tensor results are registered")
@pytest.mark.skipif(BACKEND != "torch", reason="the ONNX export is guarded on torch")
def test_an_onnx_export_of_mamba_1_is_refused_with_the_way_out(tmp_path):
    model = classifier("mamba")
    run(model, next(batches()))
    with pytest.raises(ValueError, match="Export Mamba-1 as a SavedModel from TensorFlow"):
        model.export(str(tmp_path / "model.onnx"), format="onnx", verbose=False)
    assert not list(tmp_path.iterdir())
