"""Each head learns: planted patterns with a known ceiling, held-out rows, 95 % of the ceiling. Run with -m slow -s."""

import time

import keras
import numpy as np
import pytest
from harness import numpy
from model_harness import WITH_HEAD

from dl_mamba.heads import NLPTaskConfig, compile_options

pytestmark = pytest.mark.slow

TRAIN, TEST, LENGTH, VOCABULARY = 2048, 512, 16, 24
SIZE = {"vocab_size": VOCABULARY, "d_model": 32, "num_layers": 1, "d_state": 16, "headdim": 16, "chunk_size": 16}


def texts(rows, seed, length=LENGTH):
    """Random tokens 4 to 23 (the rest have a meaning) of 8 to `length` tokens a row, padded on the right."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(4, VOCABULARY, (rows, length)).astype("int32")
    mask = np.arange(length) < rng.integers(length // 2, length + 1, (rows, 1))
    return np.where(mask, ids, 0).astype("int32"), mask, rng


def fed(ids, mask, **others):
    return {"input_ids": ids, "attention_mask": mask.astype("int32"), **others}


def entities(rows, seed):
    """BIO tags: token 4 opens an entity that lasts three tokens, whatever they are; the last one may be cut."""
    ids, mask, _ = texts(rows, seed)
    tags, left = np.zeros_like(ids), np.zeros(rows, int)
    for t in range(LENGTH):
        opens = (ids[:, t] == 4) & (left == 0)
        tags[:, t] = np.where(opens, 1, np.where(left > 0, 2, 0))
        left = np.where(opens, 2, np.maximum(left - 1, 0))
    return fed(ids, mask), np.where(mask, tags, -100)


def spans(rows, seed):
    """The span from the token 2 to the token 3, of one to four tokens."""
    ids, mask, rng = texts(rows, seed)
    start = np.array([rng.integers(0, n - 5) for n in mask.sum(1)])
    end = start + rng.integers(1, 5, rows)
    ids[np.arange(rows), start], ids[np.arange(rows), end] = 2, 3
    return fed(ids, mask), np.stack([start, end], axis=1)


def pairs(rows, seed):
    """Whether two texts are about the same one of four subjects (tokens 4-8, 9-13, 14-18, 19-23)."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 4, rows)
    second = np.where(rng.random(rows) < 0.5, first, rng.integers(0, 4, rows))
    inputs = {}
    for before, subject in (("", first), ("pair_", second)):
        _, mask, _ = texts(rows, seed + len(before))
        ids = 4 + 5 * subject[:, None] + rng.integers(0, 5, (rows, LENGTH))
        inputs |= {f"{before}{k}": v for k, v in fed(np.where(mask, ids, 0).astype("int32"), mask).items()}
    return inputs, (first == second).astype("int32")


def choices(rows, seed):
    """The one of four choices that has the token 2."""
    ids, mask, rng = texts(4 * rows, seed)
    ids, mask, right = ids.reshape(rows, 4, -1), mask.reshape(rows, 4, -1), rng.integers(0, 4, rows)
    ids[np.arange(rows), right, rng.integers(0, LENGTH // 2, rows)] = 2
    return fed(ids, mask), right


def arcs(rows, seed):
    """A token hangs on the last one before it that is below 8, by the relation of its parity; or on the root."""
    ids, mask, _ = texts(rows, seed)
    heads, latest = np.zeros_like(ids), np.zeros(rows, int)
    for t in range(LENGTH):
        heads[:, t] = latest
        latest = np.where(ids[:, t] < 8, t + 1, latest)
    return fed(ids, mask), np.where(mask[..., None], np.stack([heads, ids % 2], axis=-1), -100)


def numbers(rows, seed):
    """The share of tokens below 8, times 4, with noise of standard deviation 0.1."""
    ids, mask, rng = texts(rows, seed)
    share = ((ids < 8) & mask).sum(1) / mask.sum(1)
    return fed(ids, mask), (4 * share + 0.1 * rng.normal(size=rows)).astype("float32")


def topics(rows, seed):
    """The fifth of the vocabulary that three tokens are planted from, among others from everywhere."""
    ids, mask, rng = texts(rows, seed)
    topic = rng.integers(0, 3, rows)
    for row in range(rows):
        ids[row, rng.choice(LENGTH // 2, 2, replace=False)] = 1 + topic[row]
    return fed(ids, mask), topic


def cloze(rows, seed):
    """Rows that count up from a random token; a fifth of the tokens is hidden (1) and to be told."""
    _, mask, rng = texts(rows, seed)
    ids = 4 + (rng.integers(0, 20, (rows, 1)) + np.arange(LENGTH)) % 20
    hidden = mask & (rng.random(ids.shape) < 0.2)
    return fed(np.where(mask, np.where(hidden, 1, ids), 0).astype("int32"), mask), np.where(hidden, ids, -100)


def continued(rows, seed):
    """Rows that count up by one or by two, in a circle of 20."""
    _, mask, rng = texts(rows, seed)
    step = rng.integers(1, 3, (rows, 1))
    ids = 4 + (rng.integers(0, 20, (rows, 1)) + step * np.arange(LENGTH)) % 20
    return fed(np.where(mask, ids, 0).astype("int32"), mask), np.where(mask, ids, -100)


def after(rows, seed):
    """Whether the next token is below 12: nothing that a causal encoder has seen tells."""
    ids, mask, _ = texts(rows, seed)
    following = np.pad(mask[:, 1:], [[0, 0], [0, 1]])
    return fed(ids, mask), np.where(following, np.pad(ids[:, 1:] < 12, [[0, 0], [0, 1]]), -100).astype("int32")


def learned(task, data, metric, epochs=12, **options):
    """The metric on held-out rows (R2 for numbers), and the seconds of one core, whatever else the machine does."""
    keras.utils.set_random_seed(0)
    start = time.process_time()
    model = WITH_HEAD["mamba2"]("tiny", task, **SIZE, **options)
    (x, y), (held_x, held_y) = data(TRAIN, 1), data(TEST, 2)
    steps = epochs * TRAIN // 64
    schedule = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=1e-2, warmup_steps=steps // 10)
    model.compile(keras.optimizers.AdamW(schedule, clipnorm=1.0), **compile_options(task))
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=0)
    if metric == "r2":
        residual = numpy(model.predict(held_x, batch_size=128, verbose=0))[:, 0] - held_y
        value = 1.0 - float(np.mean(residual**2) / np.var(held_y))
    else:
        value = model.evaluate(held_x, held_y, batch_size=128, verbose=0, return_dict=True)[metric]
    return value, time.process_time() - start


def task(kind, **fields):
    return NLPTaskConfig("task", kind, dropout_rate=0.0, **fields)


# The ceiling is 1 where the rule tells all, and 1 minus the share of the noise in the variance for numbers.
CASES = {
    "sequence": (task("topic_classification", num_classes=3), topics, "accuracy", 1.0, {}),
    "regression": (task("text_regression"), numbers, "r2", None, {}),
    "entities": (task("named_entity_recognition", num_classes=3), entities, "accuracy", 1.0, {}),
    "entities, CRF": (
        *(task("named_entity_recognition", num_classes=3, use_crf=True), entities, "viterbi_accuracy", 1.0, {}),
    ),
    "spans": (task("question_answering"), spans, "exact_match", 1.0, {}),
    "pairs, learned": (task("paraphrase_detection", num_classes=2), pairs, "accuracy", 1.0, {}),
    "pairs, cosine": (task("paraphrase_detection", num_classes=2, similarity="cosine"), pairs, "accuracy", 1.0, {}),
    "choices": (task("multiple_choice"), choices, "accuracy", 1.0, {}),
    "arcs": (task("dependency_parsing", num_classes=2, hidden_size=32), arcs, "las", 1.0, {}),
    "masked LM": (task("masked_language_modeling"), cloze, "accuracy", 1.0, {"bidirectional": True}),
    "causal LM": (task("text_generation"), continued, "perplexity", None, {}),
}


def told(capsys, case, metric, value, ceiling, seconds):
    """`docs/learning_table.py` makes its table of these lines."""
    with capsys.disabled():
        print(f"\n{case}: {metric} {value:.4f}, ceiling {ceiling:.4f}, {seconds:.0f} s")


@pytest.mark.parametrize("case", CASES)
def test_a_head_learns_what_is_planted(case, capsys):
    config, data, metric, ceiling, options = CASES[case]
    value, seconds = learned(config, data, metric, **options)
    _, labels = data(TEST, 2)
    if metric == "r2":
        ceiling = 1.0 - 0.1**2 / float(np.var(labels))
    elif metric == "perplexity":
        # one of 15 or fewer predictions of a row, the first one, is a choice of two; the others are certain
        ceiling = float(np.exp(TEST * np.log(2) / ((labels >= 0).sum() - TEST)))
    told(capsys, case, metric, value, ceiling, seconds)
    assert value <= ceiling / 0.95 if metric == "perplexity" else value >= 0.95 * ceiling
    assert seconds < 120


@pytest.mark.parametrize(
    ("directions", "options", "ceiling"),
    [
        ("two directions", {"bidirectional": True}, 1.0),
        ("two directions, shared weights", {"bidirectional": True, "share_weights": True}, 1.0),
        ("one direction", {}, 0.6),  # always "not below 12" is right for 12 of 20 tokens
    ],
)
def test_two_directions_see_the_right_context_that_one_does_not(directions, options, ceiling, capsys):
    config = task("part_of_speech_tagging", num_classes=2)
    value, seconds = learned(config, after, "accuracy", epochs=6, **options)
    told(capsys, f"label to the right, {directions}", "accuracy", value, ceiling, seconds)
    assert value > 0.95 if ceiling == 1.0 else value < 0.7
