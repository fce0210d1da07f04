"""Fine-tuning: learning rates by depth, what is decayed, frozen blocks, adapters that start as nothing and merge."""

import keras
import numpy as np
import pytest
from harness import assert_close, numpy
from keras import ops
from model_harness import FAMILIES, MODELS, SMALL_MODEL, perturb, tokens

import dl_mamba
from dl_mamba import training
from dl_mamba.training import LayerwiseAdamW, enable_lora, freeze, merge_lora, recipe
from dl_mamba.weights import CheckpointError

IDS = tokens(2, 6)


def language_model(family="mamba", num_layers=2):
    model_class = {"mamba": dl_mamba.MambaCausalLM, "mamba2": dl_mamba.Mamba2CausalLM}[family]
    return perturb(model_class(**{**SMALL_MODEL[family], "num_layers": num_layers}))


def values(model):
    return {variable.path: numpy(variable) for variable in model.weights}


def changed(model, before):
    """Paths of the weights that are not what they were."""
    return {path for path, value in values(model).items() if not np.array_equal(value, before[path])}


def test_the_first_update_of_a_block_is_the_decayed_rate():
    model = language_model(num_layers=3)
    before = values(model)
    optimizer = LayerwiseAdamW(1e-3, layer_decay=0.5, weight_decay=0.0, epsilon=1e-12)
    model.compile(optimizer, run_eagerly=True)
    model.fit(IDS, verbose=0)
    after = values(model)
    steps = {path: np.abs(after[path] - before[path]).max() for path in before}
    for i, scale in enumerate((1 / 8, 1 / 4, 1 / 2)):  # Adam's first step is its rate, whatever the gradient
        found = [step for path, step in steps.items() if f"/layers/{i}/" in path and path.endswith("out_proj/kernel")]
        np.testing.assert_allclose(found, 1e-3 * scale, rtol=1e-2)
    embedding = next(step for path, step in steps.items() if path.endswith("embedding/embeddings"))
    np.testing.assert_allclose(embedding, 1e-3 / 16, rtol=1e-2)


def test_layerwise_decay_of_weights_follows_the_rate():
    model = language_model(num_layers=1)
    optimizer = LayerwiseAdamW(0.1, layer_decay=0.5, weight_decay=0.2)
    variables = model.trainable_variables
    optimizer.build(variables)
    before = [numpy(variable) for variable in variables]
    optimizer.apply([ops.zeros(variable.shape, dtype=variable.dtype) for variable in variables])
    for variable, value in zip(variables, before, strict=True):
        assert_close(numpy(variable), value * (1 - 0.1 * 0.2 * optimizer.scale_of(variable)), 1e-6)


def test_a_layerwise_optimizer_comes_back_from_its_config():
    again = keras.optimizers.deserialize(keras.optimizers.serialize(LayerwiseAdamW(layer_decay=0.7)))
    assert again.layer_decay == 0.7
    with pytest.raises(ValueError, match="layer_decay=0.0; a number with 0 < factor <= 1"):
        LayerwiseAdamW(layer_decay=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_decays_matrices_alone(family):
    network = dl_mamba.create_mamba_with_head if family == "mamba" else dl_mamba.create_mamba2_with_head
    task = dl_mamba.heads.NLPTaskConfig("mood", "sentiment_analysis", num_classes=2, hidden_size=3)
    model = network("tiny", task, vocab_size=11, num_layers=1, bias=True)
    optimizer = recipe(model, steps=10, weight_decay=0.3)
    optimizer.build(model.trainable_variables)
    decayed = {variable.path.rsplit("/", 1)[1] for variable in model.weights if optimizer._use_weight_decay(variable)}
    assert decayed == {"kernel", "embeddings"}


def test_a_recipe_warms_up_and_ends_at_zero_in_updates():
    optimizer = recipe(language_model(), steps=200, learning_rate=0.1, warmup=0.1, accumulate=2)
    rate = lambda step: float(optimizer._learning_rate(step))  # noqa: E731
    assert [rate(0), rate(5), rate(10), rate(100)] == pytest.approx([0.0, 0.05, 0.1, 0.0], abs=1e-7)
    assert rate(55) == pytest.approx(0.05)


def test_accumulated_batches_and_an_average_of_weights_train():
    model = language_model()
    before = values(model)
    model.compile(recipe(model, steps=4, accumulate=2, ema=0.5, layer_decay=0.9), run_eagerly=True)
    model.fit(tokens(4, 6), batch_size=2, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 2
    assert "backbone/layers/0/mixer/in_proj/kernel" in changed(model, before)
    average = numpy(model.optimizer._model_variables_moving_average[0])
    np.testing.assert_array_equal(average, numpy(model.trainable_variables[0]))  # fit ends with the average


BAD = [
    ({"steps": 0}, "steps=0; a whole number >= 1"),
    ({"learning_rate": 0.0}, "learning_rate=0.0; a number > 0"),
    ({"warmup": 1.0}, "warmup=1.0; a share"),
    ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ({"accumulate": 0}, "accumulate=0"),
    ({"ema": 1.0}, "ema=1.0"),
    ({"layer_decay": 1.5}, "layer_decay=1.5"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_numbers_of_a_recipe_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recipe(language_model(num_layers=1), **{"steps": 10, **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_blocks_stay_as_they_are(family):
    model = language_model(family)
    freeze(model, 1)
    before = values(model)
    model.compile(recipe(model, steps=2), run_eagerly=True)
    model.fit(IDS, epochs=2, verbose=0)
    learned = changed(model, before)
    assert not any(name.startswith(("backbone/embedding", "backbone/layers/0")) for name in learned)
    assert any(name.startswith("backbone/layers/1") for name in learned)
    for part in (model, model.backbone):
        again = type(part).from_config(part.get_config())
        assert len(again.trainable_variables) == len(part.trainable_variables)
    with pytest.raises(ValueError, match="num_blocks=3; 0 to 2 are needed"):
        freeze(model, 3)
    with pytest.raises(ValueError, match="contains no Mamba or Mamba2 backbone"):
        freeze(keras.Sequential([keras.layers.Dense(1)]), 0)


PROJECTION_FACTORS = {"lora_kernel_a", "lora_kernel_b"}
EMBEDDING_FACTORS = {"lora_embeddings_a", "lora_embeddings_b"}


@pytest.mark.parametrize(
    ("family", "targets", "factors"),
    [
        ("mamba", training.adapting.PROJECTIONS, PROJECTION_FACTORS),
        ("mamba2", ("embedding", "in_proj"), PROJECTION_FACTORS | EMBEDDING_FACTORS),
    ],
)
def test_adapters_change_nothing_at_first_learn_alone_merge_and_are_saved(family, targets, factors, tmp_path):
    model = language_model(family)
    plain = numpy(model(IDS)["logits"])
    share = enable_lora(model, rank=2, targets=targets)
    assert share.trainable == sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert {variable.name for variable in model.trainable_variables} == factors
    assert_close(numpy(model(IDS)["logits"]), plain, 1e-6)
    before = values(model)
    model.compile(recipe(model, steps=4, learning_rate=0.05), run_eagerly=True)
    model.fit(IDS, epochs=4, verbose=0)
    assert {name.rsplit("/", 1)[1] for name in changed(model, before)} == factors
    tuned = numpy(model(IDS)["logits"])
    assert np.abs(tuned - plain).max() > 1e-3
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_close(numpy(again(IDS)["logits"]), tuned, 1e-5)
    before = values(again)
    again.compile(recipe(again, steps=6, learning_rate=0.05), run_eagerly=True)
    again.fit(IDS, epochs=4, verbose=0)
    learned = changed(again, before)
    assert {name.rsplit("/", 1)[1] for name in learned} == factors
    assert len(learned) == len(again.trainable_variables)
    with pytest.raises(CheckpointError, match=r"call dl_mamba.training.merge_lora\(model\) first"):
        model.save_pretrained(tmp_path / "hf")
    merge_lora(model)
    assert_close(numpy(model(IDS)["logits"]), tuned, 1e-5)
    model.save_pretrained(tmp_path / "hf")
    assert_close(numpy(type(model).from_pretrained(tmp_path / "hf")(IDS)["logits"]), tuned, 1e-5)


def test_adapters_of_what_has_none_are_refused():
    model = MODELS["mamba2"](**SMALL_MODEL["mamba2"])
    with pytest.raises(ValueError, match="rank=0; an integer >= 1"):
        enable_lora(model, 0)
    with pytest.raises(ValueError, match=r"targets=\['query'\] .* it has \['embedding', 'in_proj', 'out_proj'\]"):
        enable_lora(model, 1, targets=["query"])
    with pytest.raises(ValueError, match=r"targets=\['in_proj', 'embeddings'\] are not all known"):
        enable_lora(model, 1, targets=["in_proj", "embeddings"])
    with pytest.raises(ValueError, match="has no adapters; call enable_lora first"):
        merge_lora(model)
    assert str(training.TrainableShare(1, 8)) == "1 of 8 weights train (12.50 %)"


def test_the_state_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    def fit(path, num_layers, stopping=()):
        model = language_model(num_layers=num_layers)
        model.compile(recipe(model, steps=1), run_eagerly=True)
        before = values(model)
        try:
            model.fit(IDS, callbacks=[*stopping, training.Resume(path, stopping)], verbose=0)
        except ValueError:
            assert not changed(model, before)
            raise

    fit(tmp_path / "run.npz", num_layers=1)
    with pytest.raises(ValueError, match="is the state of another run: .* has shape .* there, .* here"):
        fit(tmp_path / "run.npz", num_layers=2)
    with pytest.raises(ValueError, match="it has 0 callbacks of early stopping"):
        fit(tmp_path / "run.npz", num_layers=1, stopping=[keras.callbacks.EarlyStopping("loss")])
    (tmp_path / "bad.npz").write_bytes((tmp_path / "run.npz").read_bytes()[:-500])
    with pytest.raises(ValueError, match="is no state of a run, or is damaged"):
        training.Resume(tmp_path / "bad.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.npz", "run.npz"]
