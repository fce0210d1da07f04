"""Whole classifiers: raw inputs in, names out, one file; padding and order of the batches change nothing."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from dl_mamba.heads import NLPTaskConfig, create_mamba2_with_head, create_mamba_with_head
from dl_mamba.heads.batches import LengthBatches, length_edges
from dl_mamba.heads.sequence_classifier import SequenceNormalization, create_sequence_classifier
from dl_mamba.heads.text_classifier import TextClassifier
from dl_mamba.tokenizers import ByteTokenizer

SMALL = {"d_model": 8, "num_layers": 1, "d_state": 4}
TEXTS = ["a fine film", "no", "", "déjà vu", "on and on", "so so"]  # few shapes: JAX compiles for each
LABELS = ["good", "bad", "bad", "good", "bad", "good"]
TOLERANCE = 1e-5  # float32, and other padded lengths add in another order

RELOAD = """
import sys, keras, numpy, dl_mamba
model = keras.saving.load_model(sys.argv[1])
model.run_eagerly = True
data = numpy.load(sys.argv[2])
x = [text for text in data["x"]] if data["x"].dtype.kind == "U" else data["x"]
print(model.label_names, float(numpy.abs(model.predict(x, verbose=0) - data["y"]).max()))
"""


def _text_model(family="mamba2", **options):
    task = NLPTaskConfig("mood", "sentiment_analysis", num_classes=2)
    create = {"mamba": create_mamba_with_head, "mamba2": create_mamba2_with_head}[family]
    extra = {"headdim": 8} if family == "mamba2" else {}
    keras.utils.set_random_seed(3)
    network = create("tiny", task, vocab_size=256, **SMALL, **extra)
    return _eager(TextClassifier(network, label_names=["bad", "good"], **options))


def _number_model(rows=([0.0, 1.0], [2.0, 3.0, 4.0]), family="mamba2"):
    extra = {"headdim": 8} if family == "mamba2" else {}
    keras.utils.set_random_seed(3)
    rows = [np.array(row) for row in rows]
    return _eager(create_sequence_classifier(rows, ["down", "up", "flat"], family=family, **SMALL, **extra))


def _eager(model):
    model.run_eagerly = True  # many models, few steps each: compiling would be most of the work
    return model


def _logits(model, inputs):
    return keras.ops.convert_to_numpy(model(inputs))


def _compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def text_model():
    return _text_model()


@pytest.fixture(scope="module")
def number_model():
    return _number_model()


def _loaded_elsewhere(path, x, y, tmp_path):
    """What a process that imports keras and dl_mamba alone finds in the file."""
    np.savez(tmp_path / "data.npz", x=x, y=y)
    environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
    command = [sys.executable, "-c", RELOAD, str(path), str(tmp_path / "data.npz")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    names, _, gap = result.stdout.strip().splitlines()[-1].rpartition(" ")
    return names, float(gap)


def test_strings_and_their_encoded_batch_give_the_same_logits(text_model):
    encoded = text_model.predict(ByteTokenizer().encode(TEXTS), verbose=0)
    np.testing.assert_allclose(text_model.predict(TEXTS, verbose=0), encoded, atol=TOLERANCE)
    np.testing.assert_allclose(text_model.predict(np.array(TEXTS), verbose=0), encoded, atol=TOLERANCE)


def test_each_text_alone_gets_the_logits_it_gets_in_a_batch(text_model):
    together = text_model.predict(TEXTS, verbose=0)
    for place in (0, 3):
        alone = _logits(text_model, ByteTokenizer().encode(TEXTS[place : place + 1]))
        np.testing.assert_allclose(together[place : place + 1], alone, atol=TOLERANCE)


def test_batches_of_several_lengths_give_the_logits_in_the_order_of_the_texts(text_model):
    texts = ["x" * 40, *TEXTS[:3]]
    expected = _logits(text_model, ByteTokenizer().encode(texts))
    found = text_model.predict(texts, batch_size=2, verbose=0)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_ids_without_a_mask_are_all_real(text_model):
    encoded = ByteTokenizer().encode(["a fine film"] * 6)
    expected = _logits(text_model, encoded)
    np.testing.assert_allclose(_logits(text_model, encoded["input_ids"]), expected, atol=TOLERANCE)


def test_classify_gives_names_and_probabilities_in_the_order_of_the_inputs(text_model):
    labels, probabilities = text_model.classify(TEXTS)
    logits = text_model.predict(TEXTS, verbose=0)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=TOLERANCE)
    assert labels == [["bad", "good"][place] for place in logits.argmax(-1)]


def test_label_names_and_class_numbers_train_and_score_alike():
    scores = []
    for labels in (LABELS, [["bad", "good"].index(label) for label in LABELS]):
        model = _compiled(_text_model())
        model.fit(TEXTS, labels, batch_size=6, epochs=1, shuffle=False, validation_data=(TEXTS, labels), verbose=0)
        scores.append(model.evaluate(TEXTS, labels, verbose=0))
    np.testing.assert_allclose(scores[0], scores[1], atol=TOLERANCE)


def test_a_label_that_is_no_class_is_refused(text_model):
    with pytest.raises(ValueError, match=r"label 'fair' is no class of this model; its classes are \['bad', 'good'\]"):
        text_model.batches(["a"], ["fair"])


def test_labels_of_another_number_are_refused(text_model):
    with pytest.raises(ValueError, match="2 rows came with 1 labels"):
        text_model.batches(["a", "b"], ["bad"])


def test_a_validation_split_of_strings_is_refused():
    with pytest.raises(ValueError, match="validation_split cannot cut raw inputs"):
        _compiled(_text_model()).fit(TEXTS, LABELS, validation_split=0.5)


def test_label_names_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="give 2 different names"):
        TextClassifier(_text_model().network, label_names=["same", "same"])


def test_a_text_classifier_loads_in_a_process_that_only_imports_dl_mamba(tmp_path):
    model = _text_model("mamba")
    model.tokenizer = ByteTokenizer(max_length=9, truncation="left")
    model.save(tmp_path / "model.keras")
    names, gap = _loaded_elsewhere(tmp_path / "model.keras", TEXTS, model.predict(TEXTS, verbose=0), tmp_path)
    assert names == "['bad', 'good']"
    assert gap <= TOLERANCE


def test_a_bare_copy_shares_the_weights_and_leaves_the_optimizer_out(tmp_path):
    model = _compiled(_text_model())
    model.fit(TEXTS, LABELS, epochs=1, verbose=0)
    model.save(tmp_path / "whole.keras")
    model.bare().save(tmp_path / "bare.keras")
    bare = _eager(keras.saving.load_model(tmp_path / "bare.keras"))
    np.testing.assert_array_equal(bare.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0))
    assert not bare.compiled
    assert (tmp_path / "bare.keras").stat().st_size < 0.7 * (tmp_path / "whole.keras").stat().st_size


def test_a_loaded_classifier_goes_on_training(tmp_path):
    model = _compiled(_text_model())
    model.fit(TEXTS, LABELS, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = _eager(keras.saving.load_model(tmp_path / "model.keras"))
    loaded.fit(TEXTS, LABELS, epochs=1, verbose=0)
    assert int(loaded.optimizer.iterations) == 2


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_sequences_of_any_lengths_equal_their_padded_batch_and_each_alone(family):
    model = _number_model(family=family)
    random = np.random.default_rng(0)
    rows = [random.normal(size=length) for length in (3, 7)]
    together = model.predict(rows, verbose=0)
    padded = model.collate(model.rows(rows), 9)
    np.testing.assert_allclose(model.predict(padded, verbose=0), together, atol=TOLERANCE)
    alone = _logits(model, rows[0][None, :, None].astype("float32"))
    np.testing.assert_allclose(alone, together[:1], atol=TOLERANCE)


def test_missing_steps_before_after_and_between_are_as_if_never_there(number_model):
    row = np.array([1.0, 3.0, 2.0], "float32")
    nan = np.nan
    expected = number_model.predict([row], verbose=0)
    holes = [[nan, nan, nan, 1, 3, 2], [1, 3, 2, nan, nan, nan], [1, nan, 3, nan, nan, 2]]
    found = number_model.predict([np.array(row) for row in holes], verbose=0)
    np.testing.assert_allclose(found, np.repeat(expected, 3, axis=0), atol=TOLERANCE)


def test_a_row_without_any_step_gives_finite_logits(number_model):
    assert np.isfinite(number_model.predict([np.full(4, np.nan), np.ones(2)], verbose=0)).all()


def test_statistics_ignore_what_is_missing_and_leave_constants_in_scale():
    rows = [np.array([[1.0, 5.0], [np.nan, 5.0]]), np.array([[3.0, 5.0]])]
    assert SequenceNormalization.statistics(rows) == {"mean": [2.0, 5.0], "scale": [1.0, 1.0]}


def test_shifted_and_scaled_data_train_the_same_model():
    rows = [np.array([0.0, 1.0]), np.array([2.0, 3.0, 4.0])]
    moved = [1000 + 50 * row for row in rows]
    plain = _number_model(rows).predict(rows, verbose=0)
    np.testing.assert_allclose(_number_model(moved).predict(moved, verbose=0), plain, atol=1e-4)  # 1000 +- 50 rounds


def test_a_sequence_classifier_loads_in_a_process_that_only_imports_dl_mamba(number_model, tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 6, 1)).astype("float32")
    x[1, 3:] = np.nan
    number_model.save(tmp_path / "model.keras")
    names, gap = _loaded_elsewhere(tmp_path / "model.keras", x, number_model.predict(x, verbose=0), tmp_path)
    assert names == "['down', 'up', 'flat']"
    assert gap <= TOLERANCE


def test_sequences_of_another_width_are_refused(number_model):
    with pytest.raises(ValueError, match=r"sequence 1 has shape \(4, 2\); this model reads \(length, 1\)"):
        number_model.predict([np.ones(3), np.ones((4, 2))])


def test_an_unknown_family_is_refused_with_the_list():
    with pytest.raises(ValueError, match="family='mamba3' is unknown; choose 'mamba' or 'mamba2'"):
        create_sequence_classifier([np.ones(3)], ["a", "b"], family="mamba3")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_batches_hold_every_row_in_few_shapes(shuffle, batch_size):
    lengths = np.random.default_rng(1).integers(0, 300, size=57)
    rows = [np.zeros(length) for length in lengths]
    batches = LengthBatches(
        rows, [np.arange(57)], batch_size=batch_size, collate=lambda rows, length: (len(rows), length), shuffle=shuffle
    )
    for _ in range(2):
        shapes = {batches[i][0] for i in range(len(batches))}
        assert set(batches.order.tolist()) == set(range(57))
        assert len(shapes) <= len(length_edges(lengths)) + 1
        assert all(lengths[places].max() <= batches[i][0][1] for i in range(len(batches)) for places in [batches[i][1]])
        batches.on_epoch_end()


def test_shuffled_batches_differ_between_epochs_and_agree_between_equal_seeds():
    rows = [np.zeros(5)] * 40
    one, two = (LengthBatches(rows, batch_size=4, collate=lambda r, n: n, shuffle=True, seed=5) for _ in range(2))
    first = one.order.tolist()
    assert first == two.order.tolist()
    one.on_epoch_end()
    assert one.order.tolist() != first


def test_the_first_step_is_traced_once(monkeypatch):
    calls = []
    model = _text_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, run_eagerly=False, jit_compile=False)
    real = keras.Model.train_step
    monkeypatch.setattr(TextClassifier, "train_step", lambda self, *args: calls.append(1) or real(self, *args))
    model.fit(TEXTS[:2], LABELS[:2], batch_size=2, epochs=1, verbose=0)
    assert len(calls) == 1
