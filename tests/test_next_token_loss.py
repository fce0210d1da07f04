"""Laws of the loss that never holds all logits: values, gradients, training, memory."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from harness import (
    BACKEND,
    assert_close,
    assert_laws_hold,
    exact_products,
    float64_enabled,
    numpy,
    relative_error,
    values_and_gradients,
)
from keras import ops
from model_harness import own_path, tokens
from test_causal_lm import MODELS, shifted, small_lm

from dl_mamba.ops import last_implementation
from dl_mamba.ops.kernels.availability import unavailable
from dl_mamba.ops.linear_cross_entropy import IMPLEMENTATIONS, chunked, linear_cross_entropy, reference


@pytest.fixture
def small_chunks(monkeypatch):
    """Two tokens of 16 rows, or one of each row of the batch, at a time."""
    monkeypatch.setattr(chunked.Chunk, "LOGITS", 32)


def drawn(length=7, dtype="float32"):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(2, length, 6)), "weight": rng.normal(size=(16, 6))}
    return {name: a.astype(dtype) for name, a in arrays.items()}, rng.integers(0, 11, (2, length)).astype("int32")


def run(arrays, targets, implementation, **options):
    def losses(x, weight):
        return (linear_cross_entropy(x, weight, targets, vocab_size=11, implementation=implementation),)

    return values_and_gradients(losses, arrays, **options)


@pytest.mark.parametrize(("logits", "multiple"), [(1, 1), (100, 16), (100, 20), (chunked.Chunk.LOGITS, 1)])
def test_any_chunk_equals_the_float64_definition_values_and_gradients(logits, multiple, monkeypatch):
    monkeypatch.setattr(chunked.Chunk, "MULTIPLE", multiple)
    monkeypatch.setattr(chunked.Chunk, "LOGITS", logits)
    with float64_enabled():
        wanted = run(*drawn(dtype="float64"), "reference")
    assert wanted[0][0].dtype == "float64"
    assert_laws_hold(run(*drawn(), "chunked", compiled=logits == 100), wanted)


def test_a_padded_vocabulary_has_no_probability_and_no_gradient():
    arrays, targets = drawn()
    _, gradients = run(arrays, targets, "chunked")
    assert not gradients["weight"][11:].any()
    arrays["weight"][11:] = 1e4
    assert_close(run(arrays, targets, "chunked")[0][0], run(drawn()[0], targets, "reference")[0][0], 1e-5)


def test_what_does_not_fit_is_refused():
    arrays, targets = drawn()
    with pytest.raises(ValueError, match="vocab_size=17; 1 to 16"):
        linear_cross_entropy(**arrays, targets=targets, vocab_size=17)
    with pytest.raises(ValueError, match=r"targets has shape \(2, 6\); \(batch=2, length=7\)"):
        linear_cross_entropy(**arrays, targets=targets[:, 1:])


def trained(dtype="float32", tied=True, accumulate=None, adapt=False):
    """Every weight after two steps of SGD on masked, packed, weighted rows, and what `fit` and `evaluate` reported."""
    keras.utils.set_random_seed(0)
    model = small_lm("mamba", tie_word_embeddings=tied, pad_vocab_size_multiple=8, dtype=dtype)
    if adapt:
        model.lm_head.enable_lora(2)
        model.lm_head.lora_kernel_b.assign(np.full(model.lm_head.lora_kernel_b.shape, 0.1))
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulate)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1024.0)
    model.compile(optimizer, run_eagerly=BACKEND == "tensorflow")
    ids = tokens(4, 7)
    mask, segments = np.ones_like(ids), np.cumsum(np.arange(7) == 4)[None].repeat(4, axis=0).astype("int32")
    mask[0, :2] = mask[1, 5:] = 0
    x = {"input_ids": ids, "attention_mask": mask, "segment_ids": segments}
    data = {"x": x, "y": np.where(ids == 3, -100, ids), "sample_weight": np.linspace(0.5, 2.0, 4, dtype="float32")}
    history = model.fit(**data, batch_size=2, shuffle=False, verbose=0).history
    found = model.evaluate(**data, batch_size=2, verbose=0, return_dict=True)
    values = {"fit": [history["loss"][0], history["perplexity"][0]], "evaluate": [found["loss"], found["perplexity"]]}
    return {**values, **{own_path(model, v): numpy(v.value) for v in model.trainable_variables}}


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"tied": False, "accumulate": 2, "adapt": True}, 1e-5),
        ({"dtype": "mixed_bfloat16"}, 2e-2),  # logits of the reference are not rounded to 8 bits
        ({"dtype": "mixed_float16", "tied": False}, 3e-3),  # to 11 bits
    ],
)
def test_fit_and_evaluate_with_many_chunks_equal_those_with_all_logits(options, tolerance, monkeypatch):
    if BACKEND == "torch" and options.get("dtype") == "mixed_float16":
        options = {**options, "dtype": "mixed_bfloat16"}  # no loss scaling of Keras there
        tolerance = 2e-2
    came = trained(**options)
    monkeypatch.setitem(IMPLEMENTATIONS, "chunked", reference.run)
    wanted = trained(**options)
    for name in wanted:
        assert_close(came[name], wanted[name], tolerance, name)


def test_labels_among_the_inputs_give_losses_in_place_of_logits():
    model, ids = small_lm("mamba2"), tokens(3, 6)
    outputs = model({"input_ids": ids, "labels": ids}, return_state=True)
    assert sorted(outputs) == ["last_hidden_state", "losses", "state"]
    assert_close(numpy(outputs["losses"])[:, :-1], shifted(model, ids), 1e-5)
    inputs = {name: keras.Input((None,), dtype="int32") for name in ("input_ids", "labels")}
    assert model(inputs)["losses"].shape == (None, None)
    model.compile("sgd", run_eagerly=BACKEND != "jax")
    found = model.evaluate({"input_ids": ids, "labels": ids}, verbose=0, return_dict=True)
    assert relative_error(found["loss"], shifted(model, ids).mean()) < 1e-5
    assert relative_error(found["perplexity"], np.exp(shifted(model, ids).mean())) < 1e-5
    with pytest.raises(ValueError, match="y was given, and `labels` among the inputs"):
        model.evaluate({"input_ids": ids, "labels": ids}, ids, verbose=0)
    with pytest.raises(ValueError, match=r"labels has shape \(3, 5\); \(batch=3, length=6\)"):
        model({"input_ids": ids, "labels": ids[:, 1:]})


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("tied", [True, False])
def test_losses_of_a_quantized_head_are_those_of_its_logits(tied):
    model, ids = small_lm("mamba", tie_word_embeddings=tied), tokens(2, 5)
    model.quantize("int8")
    assert_close(numpy(model({"input_ids": ids, "labels": ids})["losses"])[:, :-1], shifted(model, ids), 1e-5)


BATCH, LENGTH, VOCABULARY = 4, 32, 97


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_no_tensor_of_a_train_step_is_as_large_as_all_logits(implementation, monkeypatch):
    monkeypatch.setattr(chunked.Chunk, "LOGITS", BATCH * VOCABULARY * 4)
    model = MODELS["mamba"](vocab_size=VOCABULARY, d_model=4, num_layers=1, d_state=2, dt_rank=2)
    monkeypatch.setitem(IMPLEMENTATIONS, "chunked", IMPLEMENTATIONS[implementation])
    model.compile("adamw", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    largest = LARGEST[BACKEND](model, tokens(BATCH, LENGTH))
    assert (largest < BATCH * LENGTH * VOCABULARY) == (implementation == "chunked")


def largest_on_jax(model, ids):
    import jax

    own = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables)
    state = tuple([v.value for v in variables] for variables in own)
    program = jax.jit(model.train_step).lower(state, (ids, None, None)).as_text()
    return max(math.prod(map(int, sizes.split("x")[:-1])) for sizes in re.findall(r"tensor<((?:\d+x)+)", program))


def largest_on_torch(model, ids):
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
            result = kernel(*args, **(kwargs or {}))
            sizes.extend(leaf.numel() for leaf in keras.tree.flatten(result) if isinstance(leaf, torch.Tensor))
            return result

    with Sizes():
        model.train_on_batch(ids)
    return max(sizes)


def largest_on_tensorflow(model, ids):
    import tensorflow as tf

    def sizes(graph):
        for operation in graph.get_operations():
            yield from (math.prod(t.shape) for t in operation.outputs if t.shape.is_fully_defined())
            for name in ("body", "cond"):
                if name in operation.node_def.attr:
                    yield from sizes(graph._get_function(operation.node_def.attr[name].func.name).graph)

    step = tf.function(lambda ids: model.train_step((ids,)), autograph=False)
    return max(sizes(step.get_concrete_function(tf.constant(ids)).graph))


LARGEST = {"jax": largest_on_jax, "torch": largest_on_torch, "tensorflow": largest_on_tensorflow}


@pytest.mark.gpu
@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_kernels_equal_the_portable_program(dtype, tolerance, monkeypatch):
    from dl_mamba.ops.kernels.cross_entropy import Chunk

    monkeypatch.setattr(Chunk, "LOGITS", 60 * 9008)  # four chunks
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(3, 70, 64)), "weight": 0.3 * rng.normal(size=(9008, 64))}
    targets = rng.integers(0, 9001, (3, 70)).astype("int32")

    def losses(x, weight, implementation):
        x = ops.cast(x, dtype)
        return (linear_cross_entropy(x, weight, targets, vocab_size=9001, implementation=implementation),)

    arrays = {name: ops.convert_to_tensor(a.astype("float32")) for name, a in arrays.items()}
    with exact_products():
        results = [on_device(losses, arrays, name) for name in ("triton", "chunked")]
    assert last_implementation("linear_cross_entropy") == "chunked"
    for came, wanted in zip(*results, strict=True):
        assert_close(came, wanted, tolerance)


def on_device(function, arrays, implementation):
    """The sum of squares of the losses and its gradients."""
    if BACKEND == "jax":
        import jax

        total = lambda *args: ops.sum(function(*args, implementation)[0] ** 2)  # noqa: E731
        value, gradients = jax.value_and_grad(total, argnums=(0, 1))(*arrays.values())
        return [numpy(value), *map(numpy, gradients)]
    import torch

    leaves = [a.detach().requires_grad_() for a in arrays.values()]
    value = ops.sum(function(*leaves, implementation)[0] ** 2)
    return [numpy(value.detach()), *map(numpy, torch.autograd.grad(value, leaves))]


INTERPRETED = """
import numpy as np
from triton.runtime import interpreter
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())  # NumPy 2.4 refuses int(array of one)
interpreter._patch_lang_tensor = patched
from harness import assert_laws_hold
from test_next_token_loss import drawn, run
assert_laws_hold(run(*drawn(), "triton"), run(*drawn(), "chunked"))
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


def test_the_first_step_is_traced_once(monkeypatch):
    calls = []
    model = small_lm("mamba2")
    model.compile("adam", jit_compile=False)
    real = type(model).train_step
    monkeypatch.setattr(type(model), "train_step", lambda self, *args: calls.append(1) or real(self, *args))
    model.fit(tokens(2, 4), verbose=0)
    assert len(calls) == 1
