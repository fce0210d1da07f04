"""Laws of pooling, tasks and heads, and of the functional models that stand a head on a backbone."""

import json

import keras
import numpy as np
import pytest
from harness import BACKEND, assert_close, numpy
from model_harness import (
    FAMILIES,
    MODELS,
    WITH_HEAD,
    perturb,
    place,
    run,
    small_model,
    tokens,
)

from dl_mamba import variants
from dl_mamba.heads import (
    TASKS,
    MaskedPooling,
    NLPTaskConfig,
    NLPTaskType,
    SequenceClassificationHead,
    create_nlp_head,
)

POOLINGS = ("mean", "last", "max", "attention")
FORWARD = 1e-5  # the project's bound for float32, relative to the largest value
D = 6


def features(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def pooling_layer(pooling, **options):
    layer = MaskedPooling(pooling, **options)
    layer.build((None, None, D))
    return perturb(layer, size=1.0)


def pooled_alone(layer, row):
    """The definition, in float64, of one row without padding."""
    row = row.astype("float64")
    if layer.pooling == "attention":
        scores = row @ numpy(layer.score.value).astype("float64")
        weights = np.exp(scores - scores.max())
        return (weights / weights.sum()) @ row
    return {"mean": row.mean(0), "last": row[-1], "max": row.max(0)}[layer.pooling]


@pytest.mark.parametrize("side", ["left", "right", "between"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_on_either_side_changes_no_pooled_vector(pooling, side):
    layer = pooling_layer(pooling)
    rows = [
        features(n, D, seed=n) - 3.0 for n in (7, 4, 1, 0)
    ]  # negative, so that a zero at padding would be the maximum
    for filler in (50.0, -50.0):
        x, mask = place(rows, 7, side, filler)
        pooled = run(lambda x, mask: layer(x, mask=mask), x, mask.astype("int32"))
        for i, row in enumerate(rows[:3]):
            assert_close(pooled[i], pooled_alone(layer, row), FORWARD, f"row {i}")
        np.testing.assert_array_equal(pooled[3], np.zeros(D))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_mask_every_token_counts(pooling):
    layer, x = pooling_layer(pooling), features(2, 5, D)
    for came, row in zip(run(layer, x), x, strict=True):
        assert_close(came, pooled_alone(layer, row), FORWARD)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_obeys_a_keras_mask(pooling):
    rows = [features(n, D, seed=n) for n in (5, 2)]
    x, _ = place(rows, 5, "left", filler=0.0)
    layer = pooling_layer(pooling)
    values = keras.Input((None, D))
    model = keras.Model(values, layer(keras.layers.Masking()(values)))
    for came, row in zip(run(model, x), rows, strict=True):
        assert_close(came, pooled_alone(layer, row), FORWARD)


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_pools_large_values_and_empty_rows_without_nan(pooling, policy):
    layer = pooling_layer(pooling, dtype=policy)
    rows = [np.full((4, D), 6e4, "float32"), np.full((0, D), 0, "float32")]  # the largest float16 is 65504
    x, mask = place(rows, 4, "right", filler=-6e4)
    half = policy.removeprefix("mixed_")
    pooled = run(lambda x, mask: layer(keras.ops.cast(x, half), mask=mask), x, mask)
    assert_close(pooled[0], np.full(D, 6e4), 2e-3)  # 6e4 itself rounds to 8 bits in bfloat16
    np.testing.assert_array_equal(pooled[1], np.zeros(D))


def test_an_unknown_pooling_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"'sum' is unknown; choose one of \['mean', 'last', 'max', 'attention'\]"):
        MaskedPooling("sum")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task_type": "poetry"}, ("'poetry'", "'sentiment_analysis'", "'spam_detection'")),
        ({"num_classes": None}, ("num_classes=None", ">= 2", "label_names")),
        ({"num_classes": 1}, ("num_classes=1", ">= 2")),
        ({"num_classes": 2.0}, ("num_classes=2.0", "integer")),
        ({"num_classes": 3, "label_names": ("a", "b")}, ("('a', 'b')", "3 different names")),
        ({"label_names": ("a", "a")}, ("('a', 'a')", "different names")),
        ({"dropout_rate": 1.0}, ("dropout_rate=1.0", "0 <= rate < 1")),
        ({"hidden_size": 0}, ("hidden_size=0", ">= 1")),
        ({"pooling": "sum"}, ("'sum'", "'attention'")),
    ],
)
def test_a_task_that_does_not_fit_is_an_error(fields, words):
    with pytest.raises(ValueError, match=".") as caught:
        NLPTaskConfig(**{"name": "t", "task_type": "sentiment_analysis", "num_classes": 2, **fields})
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("task_type", [task for task in NLPTaskType if TASKS[task].head is SequenceClassificationHead])
def test_every_sequence_task_has_a_head_that_comes_back_from_json(task_type):
    task = NLPTaskConfig("mood", task_type, label_names=["a", "b", "c"], hidden_size=4, pooling="attention")
    assert task.num_classes == 3
    head = create_nlp_head(task, dtype="mixed_bfloat16")
    assert head.name == "mood"
    assert NLPTaskConfig(**json.loads(json.dumps(task.to_dict()))) == task
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(head)))
    again = keras.saving.deserialize_keras_object(config)
    assert (again.config, again.dtype_policy.name, again.name) == (task, "mixed_bfloat16", "mood")


def test_a_head_computes_logits_of_the_pooled_row_in_float32():
    head = create_nlp_head(NLPTaskConfig("t", "topic_classification", num_classes=3, hidden_size=4))
    head.build((None, None, D))
    perturb(head)
    rows = [features(n, D, seed=n) for n in (5, 2)]
    x, mask = place(rows, 5, "left", filler=50.0)
    came = run(lambda x, mask: head({"last_hidden_state": x, "attention_mask": mask}), x, mask)
    w = {v.path.removeprefix("t/"): numpy(v.value).astype("float64") for v in head.weights}
    pooled = np.stack([row.astype("float64").mean(0) for row in rows])
    middle = np.tanh(pooled @ w["hidden/kernel"] + w["hidden/bias"])
    assert_close(came, middle @ w["logits/kernel"] + w["logits/bias"], FORWARD)
    half = create_nlp_head(head.config, dtype="bfloat16")
    assert keras.backend.standardize_dtype(half(x).dtype) == "float32"


def test_dropout_acts_in_training_only():
    head = create_nlp_head(NLPTaskConfig("t", "spam_detection", num_classes=2, dropout_rate=0.5))
    x = features(64, 3, D)
    plain = numpy(head(x))
    np.testing.assert_array_equal(plain, numpy(head(x, training=False)))
    assert not np.allclose(plain, numpy(head(x, training=True)))


def test_a_head_names_what_it_cannot_use():
    with pytest.raises(ValueError, match="dict; an NLPTaskConfig"):
        create_nlp_head({"name": "t"})
    head = create_nlp_head(NLPTaskConfig("t", "spam_detection", num_classes=2))
    head.build((None, None, D))
    with pytest.raises(ValueError, match="'hidden'.*'last_hidden_state' is needed"):
        head({"hidden": features(1, 2, D)})


TASK = NLPTaskConfig("mood", "sentiment_analysis", num_classes=2, hidden_size=4, dropout_rate=0.0)


def small_classifier(family, task=TASK, **overrides):
    config = small_model(family).config
    return perturb(WITH_HEAD[family](config, task, **overrides))


def batch_of(rows, length, side="right"):
    ids, mask = place(rows, length, side, filler=np.int32(0))
    return {"input_ids": ids, "attention_mask": mask.astype("int32")}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_a_config_and_a_backbone_give_the_same_classifier(family):
    config = variants.load(f"{family}-tiny")
    backbone = MODELS[family].from_variant("tiny")
    by = {kind: WITH_HEAD[family](given, TASK) for kind, given in (("name", "tiny"), ("config", config))}
    by["backbone"] = WITH_HEAD[family](backbone, TASK)
    inputs = batch_of([tokens(5), tokens(2)], 5)
    wanted = None
    for kind, model in by.items():
        assert isinstance(model, keras.Model)
        assert model.name == f"{family}_mood"
        model.set_weights(by["backbone"].get_weights())
        logits = run(model, inputs)
        wanted = logits if wanted is None else wanted
        assert logits.shape == (2, 2)
        assert_close(logits, wanted, FORWARD, kind)
    assert by["backbone"].get_layer(backbone.name) is backbone
    assert WITH_HEAD[family]("tiny", TASK, vocab_size=300, num_layers=1, name="n").name == "n"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_cannot_become_a_classifier_is_named(family):
    other = FAMILIES[1 - FAMILIES.index(family)]
    cases = [
        (("130b", TASK), {}, ("'130b' is unknown", f"{family}-130m")),
        ((small_model(other), TASK), {}, ("mamba_variant", MODELS[other].__name__, "variant name")),
        ((small_model(other).config, TASK), {}, ("mamba_variant", "variant name")),
        ((3, TASK), {}, ("mamba_variant", "int")),
        ((small_model(family), TASK), {"vocab_size": 3}, ("'vocab_size'", "variant name")),
        (("tiny", TASK), {"d_sate": 3}, ("'d_sate'", "d_state")),
        (("tiny", "sentiment_analysis"), {}, ("task_config is a str", "NLPTaskConfig")),
    ]
    for arguments, options, words in cases:
        with pytest.raises(ValueError, match=".") as caught:
            WITH_HEAD[family](*arguments, **options)
        missing = [word for word in words if word not in str(caught.value)]
        assert not missing, f"{missing} not in {caught.value}"


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_logits(family, pooling):
    model = small_classifier(family, NLPTaskConfig("t", "spam_detection", num_classes=2, pooling=pooling))
    rows = [tokens(6), tokens(3, seed=1), tokens(0)]
    left, right = (run(model, batch_of(rows, 6, side)) for side in ("left", "right"))
    alone = run(model, batch_of(rows[1:2], 3))
    assert np.all(np.isfinite(left))
    assert_close(left, right, FORWARD)
    assert_close(left[1:2], alone, FORWARD)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_is_a_functional_model(family):
    model = small_classifier(family)
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    assert all(word in text for word in ("input_ids", "attention_mask", "mood", f"{model.count_params():,}"))
    assert [tuple(t.shape) for t in model.outputs] == [(None, 2)]
    inputs = batch_of([tokens(4), tokens(2)], 4)
    wanted = run(model, inputs)
    clone = keras.models.clone_model(model)
    again = keras.Model.from_config(json.loads(json.dumps(model.get_config())))
    for copy in (clone, again):
        assert [v.shape for v in copy.weights] == [v.shape for v in model.weights]
        assert not {id(v) for v in copy.weights} & {id(v) for v in model.weights}
        copy.set_weights(model.get_weights())
        np.testing.assert_array_equal(run(copy, inputs), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_can_be_drawn(family):
    pytest.importorskip("pydot", reason="keras.utils.model_to_dot needs pydot")
    dot = keras.utils.model_to_dot(small_classifier(family), show_shapes=True).to_string()
    assert all(word in dot for word in ("input_ids", "attention_mask", "mood"))


@pytest.mark.parametrize("family", FAMILIES)
def test_predict_and_evaluate_agree_with_a_call(family):
    model = small_classifier(family)
    inputs, labels = batch_of([tokens(4, seed=i) for i in range(6)], 4), np.array([0, 1, 0, 1, 1, 0])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"], run_eagerly=BACKEND == "tensorflow")  # tracing takes longer
    logits = run(model, inputs).astype("float64")
    assert_close(model.predict(inputs, batch_size=3, verbose=0), logits, FORWARD)
    score = model.evaluate(inputs, labels, batch_size=3, verbose=0, return_dict=True)
    chosen = logits[np.arange(6), labels]
    assert score["loss"] == pytest.approx(np.mean(np.log(np.exp(logits).sum(-1)) - chosen), rel=FORWARD)
    assert score["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == labels))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_override_of_the_dtype_reaches_backbone_and_head(family):
    model = WITH_HEAD[family]("tiny", TASK, dtype="mixed_bfloat16")
    backbone = next(layer for layer in model.layers if isinstance(layer, MODELS[family]))
    head = next(layer for layer in model.layers if isinstance(layer, SequenceClassificationHead))
    assert {layer.dtype_policy.name for layer in (backbone, head)} == {"mixed_bfloat16"}
    assert backbone.blocks[0].mixer.in_proj.compute_dtype == "bfloat16"
    assert model.outputs[0].dtype == "float32"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float16_classifier_scales_its_loss(family):
    model = WITH_HEAD[family](small_model(family).config, TASK, dtype="mixed_float16")
    model.compile("adam", "mse")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
