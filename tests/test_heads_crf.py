"""Laws of the linear-chain CRF, against the enumeration of all paths in float64."""

import itertools

import numpy as np
import pytest
from harness import assert_close, numpy, values_and_gradients
from keras import ops
from model_harness import run

from dl_mamba.heads import NLPTaskConfig, create_nlp_head
from dl_mamba.heads.crf import log_partition, log_potentials, negative_log_likelihood, viterbi
from dl_mamba.heads.losses import TaskLoss

C = 3
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], "bool")
LABELS = np.array([[0, 2, 1, 1], [2, -100, 0, 0], [9, 1, 9, 0], [1, 1, 1, -100], [0, 0, 0, 0]])  # padding has any
FORWARD, GRADIENT = 1e-5, 1e-4  # the project's bounds for float32


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"emissions": (len(MASK), 4, C), "transitions": (C, C), "start": (C,), "end": (C,)}
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def enumerated(w, row):
    """Score of every path over the real tokens of a row, and how often it uses each weight."""
    places = np.flatnonzero(MASK[row])
    for path in itertools.product(range(C), repeat=len(places)):
        used = {name: np.zeros(array.shape) for name, array in w.items()}
        for place, label in zip(places, path, strict=True):
            used["emissions"][row, place, label] += 1
        for pair in itertools.pairwise(path):
            used["transitions"][pair] += 1
        if path:
            used["start"][path[0]] += 1
            used["end"][path[-1]] += 1
        yield path, sum(float(np.sum(used[name] * w[name].astype("float64"))) for name in w), used


def agrees(path, row):
    wanted = LABELS[row][MASK[row]]
    return all(label in (want, want if want >= 0 else label) for label, want in zip(path, wanted, strict=True))


def expectation(paths):
    """log of the summed scores, and how often each weight is used on average."""
    scores = np.array([score for _, score, _ in paths])
    total = np.logaddexp.reduce(scores)
    shares = np.exp(scores - total)
    return total, {
        name: sum(p * used[name] for p, (_, _, used) in zip(shares, paths, strict=True)) for name in weights()
    }


def chain(emissions, transitions, start, end):
    return log_potentials(emissions, transitions, start, end, ops.convert_to_tensor(MASK))


def test_the_loss_and_its_gradients_are_those_of_the_enumeration_of_all_paths():
    w = weights()
    values = np.random.default_rng(0).normal(size=len(MASK)).astype("float32")  # the projection of the harness
    losses, gradients = [], {name: np.zeros(array.shape) for name, array in w.items()}
    for row in range(len(MASK)):
        paths = list(enumerated(w, row))
        total, everywhere = expectation(paths)
        agreeing, there = expectation([path for path in paths if agrees(path[0], row)])
        losses.append(total - agreeing)
        for name in w:
            gradients[name] += values[row] * (everywhere[name] - there[name])
    came = values_and_gradients(lambda **x: (negative_log_likelihood(chain(**x), LABELS),), w, compiled=True)
    assert_close(came[0][0], losses, FORWARD)
    for name in w:
        assert_close(came[1][name], gradients[name], GRADIENT, name)
    assert losses[4] == 0.0  # padding alone
    partitions = numpy(log_partition(chain(**w)))
    assert_close(partitions, [expectation(list(enumerated(w, row)))[0] for row in range(len(MASK))], FORWARD)


def test_viterbi_finds_the_best_of_all_paths():
    for seed in range(5):
        w = weights(seed)
        came = run(viterbi, numpy(chain(**w)))
        assert np.all(came[~MASK] == -100)
        for row in range(len(MASK)):
            best = max(enumerated(w, row), key=lambda path: path[1])[0]
            assert tuple(came[row][MASK[row]]) == best


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "mixed_bfloat16"])
def test_half_precision_and_large_scores_leave_a_crf_finite(policy):
    task = NLPTaskConfig("tags", "sequence_labeling", num_classes=C, use_crf=True, dropout_rate=0.0)
    head = create_nlp_head(task, dtype=policy)
    x = np.full((2, 64, 8), 300.0, "float32")
    mask = np.ones((2, 64), "int32")
    mask[1] = 0
    inputs = {"last_hidden_state": ops.cast(x, policy.removeprefix("mixed_")), "attention_mask": mask}
    potentials = head(inputs)
    loss = TaskLoss("crf")(np.ones((2, 64), "int32"), potentials)
    assert np.all(np.isfinite(numpy(potentials)))
    assert np.isfinite(numpy(loss))
    assert head.decode(potentials).shape == (2, 64)


def test_rows_and_tokens_without_labels_leave_the_mean_over_the_others():
    potentials = numpy(chain(**weights()))
    loss, labels = TaskLoss("crf"), np.array(LABELS)
    known = [int(((labels[row] >= 0) & MASK[row]).sum()) for row in range(len(MASK))]
    each = numpy(negative_log_likelihood(potentials, np.where(MASK, labels, -100)))
    labels[~MASK] = -100
    assert float(loss(labels, potentials)) == pytest.approx(each.sum() / sum(known), rel=FORWARD)
    labels[1] = -100
    rest = [0, 2, 3]
    wanted = each[rest].sum() / sum(known[row] for row in rest)
    assert float(loss(labels, potentials)) == pytest.approx(wanted, rel=FORWARD)
    weight = np.array([1.0, 0.0, 1.0, 1.0, 1.0])
    assert float(loss(np.where(MASK, LABELS, -100), potentials, weight)) == pytest.approx(wanted, rel=FORWARD)
    by_token = np.repeat(weight[:, None], 4, axis=1)
    assert float(loss(np.where(MASK, LABELS, -100), potentials, by_token)) == pytest.approx(wanted, rel=FORWARD)
    assert float(loss(np.full_like(labels, -100), potentials)) == 0.0
