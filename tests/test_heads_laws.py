"""Laws of single heads: padding, half precision, and each head's scores and answers against its definition."""

import numpy as np
import pytest
from harness import assert_close, numpy
from head_harness import LENGTH, LENGTHS, features_of, head_of, inputs_of, labels_of, task_of
from model_harness import SMALL_MODEL, WITH_HEAD, perturb, run
from test_heads_tasks import ONE_OF_EACH_HEAD, VARIATIONS

from dl_mamba.heads import compile_options, create_nlp_head
from dl_mamba.heads.arcs import best_arcs
from dl_mamba.heads.losses import TaskLoss
from dl_mamba.heads.metrics import TaskScore
from dl_mamba.heads.spans import best_spans

FORWARD = 1e-5
NOWHERE = -1e9
CASES = {**{str(t): (str(t), {}) for t in ONE_OF_EACH_HEAD.values()}, **VARIATIONS}
SMALL = {**SMALL_MODEL["mamba2"], "num_layers": 1}


def places(side, length):
    """Where the real tokens of the two rows are."""
    return [np.arange(n) if side == "right" else np.arange(length - n, length) for n in LENGTHS]


def at_real_tokens(output, task, side, length):
    """The output of each row without its padding, which must be NOWHERE."""
    token_axes = {"ArcHead": 2, "TokenClassificationHead": 1, "SpanHead": 1, "CausalLMHead": 1, "MaskedLMHead": 1}
    axes = token_axes.get(task.head_class.__name__, 0)
    if not axes:
        return [output]
    rows = []
    for row, real in zip(output, places(side, length), strict=True):
        padding = np.setdiff1d(np.arange(length), real)
        assert task.use_crf or np.all(row[padding] == NOWHERE)
        row = row[real]
        if axes == 2:
            row = row[:, np.concatenate([[0], real + 1])] if task.problem_type == "single_label" else row[:, real]
        rows.append(row)
    return rows


@pytest.mark.parametrize("case", CASES)
def test_padding_on_either_side_changes_nothing_that_a_head_says(case):
    task = task_of(CASES[case][0], **CASES[case][1])
    head, wanted = head_of(task), None
    for side, length, filler in (("right", LENGTH, 50.0), ("left", LENGTH, -50.0), ("left", LENGTH + 2, 1.0)):
        output = run(head, features_of(inputs_of(task, side, length), filler))
        if task.use_crf:  # what the chain says, for it has start and end scores at its ends
            labels, real = head.decode(output), places(side, length)
            assert all((np.delete(row, place) == -100).all() for row, place in zip(labels, real, strict=True))
            rows = [labels[i][place] for i, place in enumerate(real)]
        else:
            rows = at_real_tokens(output, task, side, length)
        wanted = wanted or rows
        for came, want in zip(rows, wanted, strict=True):
            assert_close(came, want, FORWARD)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_on_either_side_changes_no_label_of_a_model(bidirectional):
    task = task_of("token_classification")
    model = perturb(WITH_HEAD["mamba2"]("tiny", task, bidirectional=bidirectional, **SMALL), size=0.1)
    left, right = (run(model, inputs_of(task, side)) for side in ("left", "right"))
    for i, n in enumerate(LENGTHS):
        assert_close(left[i, LENGTH - n :], right[i, :n], FORWARD)


@pytest.mark.parametrize("case", ["token_classification", "crf", "masked_language_modeling", "text_generation"])
def test_labels_of_padding_count_for_nothing(case):
    task = task_of(CASES[case][0], **CASES[case][1])
    inputs = inputs_of(task)
    labels = labels_of(task, inputs)
    output, loss = run(head_of(task), features_of(inputs)), compile_options(task)["loss"]
    wanted = run(loss, labels, output)
    assert run(loss, np.where(inputs["attention_mask"], labels, 1), output) == pytest.approx(wanted, rel=FORWARD)


@pytest.mark.parametrize("case", CASES)
def test_half_precision_gives_finite_outputs_and_losses_with_rows_of_padding_alone(case):
    task = task_of(CASES[case][0], **CASES[case][1])
    inputs = inputs_of(task)
    labels = labels_of(task, inputs)
    for name in inputs:
        if name.endswith("attention_mask"):
            inputs[name][1] = 0
    features = {k: v * 100 if v.dtype == "float32" else v for k, v in features_of(inputs).items()}
    half = {k: v.astype("float16") if "hidden" in k else v for k, v in features.items()}
    output = run(head_of(task, dtype="mixed_float16"), half)
    assert output.dtype == "float32"
    assert np.all(np.isfinite(output))
    assert np.isfinite(run(compile_options(task)["loss"], labels, output))


def best_by_hand(logits, longest):
    real = np.flatnonzero(logits[:, 0] > NOWHERE / 2)
    found = None
    for i, start in enumerate(real):
        for end in real[i : i + longest]:
            score = float(logits[start, 0] + logits[end, 1])
            if found is None or score > found[1]:
                found = ((start, end), score)
    return found


@pytest.mark.parametrize("longest", [1, 2, 3, None])
def test_the_best_span_is_that_of_a_search_over_all(longest):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 7, 2)).astype("float32")
    mask = rng.random((20, 7)) < 0.6
    mask[0], mask[1] = True, False
    logits[~mask] = NOWHERE
    spans, scores = run(lambda x: best_spans(x, longest), logits)
    assert spans[1].tolist() == [-100, -100]
    for row in np.flatnonzero(mask.any(axis=1)):
        wanted, score = best_by_hand(logits[row], longest or 7)
        assert tuple(spans[row]) == wanted
        assert scores[row] == pytest.approx(score, rel=FORWARD)


def test_arcs_score_as_their_paper_says():
    head = create_nlp_head(task_of("dependency_parsing"))
    x = np.random.default_rng(0).normal(size=(1, 3, 5)).astype("float32")
    head.build((None, None, 5))
    perturb(head)
    logits = run(head, x)[0]
    w = {v.path.removeprefix("task/"): numpy(v.value).astype("float64") for v in head.weights if "seed" not in v.path}

    def role(name):
        return np.maximum(x[0] @ w[f"{name}/kernel"] + w[f"{name}/bias"], 0.0)

    d, h = role("dependent"), np.vstack([w["root"][0], role("head")])
    rd, rh = role("relation_dependent"), np.vstack([w["root"][1], role("relation_head")])
    for i in range(3):
        for j in range(4):
            if j == i + 1:
                assert np.all(logits[i, j] == NOWHERE)
                continue
            arc = d[i] @ w["arc"] @ h[j] + w["arc_prior"] @ h[j]
            assert logits[i, j, 0] == pytest.approx(arc, rel=1e-4, abs=1e-5)
            for r in range(2):
                sides = rd[i] @ w["relation_sides"][0][:, r] + rh[j] @ w["relation_sides"][1][:, r]
                score = rd[i] @ w["relation"][:, r] @ rh[j] + sides + w["relation_bias"][r]
                assert logits[i, j, 1 + r] == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_the_loss_of_arcs_is_that_of_the_head_and_of_the_relation_along_it():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype("float32")
    labels = np.array([[[0, 1], [3, 0], [-100, -100]], [[2, -100], [-100, 1], [-100, 0]]])

    def entropy(scores, label):
        return np.log(np.exp(scores.astype("float64")).sum()) - scores[label]

    wanted = [entropy(logits[0, 0, :, 0], 0) + entropy(logits[0, 0, 0, 1:], 1)]
    wanted += [entropy(logits[0, 1, :, 0], 3) + entropy(logits[0, 1, 3, 1:], 0)]
    wanted += [entropy(logits[1, 0, :, 0], 2)]
    assert numpy(TaskLoss("arc")(labels, logits)) == pytest.approx(np.mean(wanted), rel=FORWARD)
    found = run(best_arcs, logits)
    np.testing.assert_array_equal(found[..., 0], logits[..., 0].argmax(-1))
    assert found[0, 0, 1] == logits[0, 0, found[0, 0, 0], 1:].argmax()


@pytest.mark.parametrize("kind", ["cosine", "dot", "learned"])
def test_a_pair_is_compared_as_its_similarity_says(kind):
    task = task_of("text_similarity", similarity=kind, problem_type="regression", num_classes=1)
    head = create_nlp_head(task)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(2, n, 4)).astype("float32") for n in (3, 5))
    came = numpy(head({"last_hidden_state": x, "pair_last_hidden_state": y}))
    u, v = x.mean(1), y.mean(1)
    product = np.sum(u * v, axis=1)
    if kind == "learned":
        wanted = np.hstack([u, v, abs(u - v), u * v]) @ numpy(head.logits.kernel.value) + numpy(head.logits.bias.value)
    else:
        length = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
        wanted = (product / (length if kind == "cosine" else 2.0))[:, None]
    assert_close(came, wanted, FORWARD)


def test_a_joint_pair_pools_each_text_of_the_row():
    head = create_nlp_head(task_of("text_similarity", encoding="joint"))
    x = np.random.default_rng(0).normal(size=(1, 4, 4)).astype("float32")
    joint = {
        "last_hidden_state": x,
        "token_type_ids": np.array([[0, 0, 1, 1]]),
        "attention_mask": np.array([[1, 1, 1, 0]]),
    }
    u, v = x[0, :2].mean(0), x[0, 2]
    assert_close(numpy(head(joint))[0, 0], u @ v / np.linalg.norm(u) / np.linalg.norm(v), FORWARD)
    with pytest.raises(ValueError, match="'token_type_ids' is needed"):
        head({"last_hidden_state": x})


def test_tied_logits_are_products_with_the_rows_of_the_vocabulary_alone():
    head = create_nlp_head(task_of("text_generation", vocab_size=5))
    rng = np.random.default_rng(0)
    x, rows = rng.normal(size=(1, 2, 4)).astype("float32"), rng.normal(size=(8, 4)).astype("float32")
    assert_close(numpy(head({"last_hidden_state": x, "embeddings": rows})), x @ rows[:5].T, FORWARD)
    with pytest.raises(ValueError, match="'embeddings' is needed"):
        head({"last_hidden_state": x})
    with pytest.raises(ValueError, match="vocab_size=None; the task 'task' needs"):
        create_nlp_head(task_of("text_generation"))


def test_smoothed_labels_leave_out_what_is_no_class():
    logits = np.array([[2.0, 1.0, NOWHERE]], "float32")
    probabilities = np.exp([2.0, 1.0]) / np.exp([2.0, 1.0]).sum()
    wanted = -0.9 * np.log(probabilities[0]) - 0.1 * np.log(probabilities).mean()
    assert numpy(TaskLoss("softmax", 0.1)(np.array([0]), logits)) == pytest.approx(wanted, rel=FORWARD)


def test_losses_of_labels_numbers_and_ranks_are_those_of_their_definitions():
    logits = np.array([[1.0, -2.0], [0.5, 3.0]], "float32")
    p = 1 / (1 + np.exp(-logits.astype("float64")))
    entropy = -np.log([p[0, 0], 1 - p[0, 1]]).mean()
    labels = np.array([[1, 0], [-100, -100]])
    assert numpy(TaskLoss("sigmoid")(labels, logits)) == pytest.approx(entropy, rel=FORWARD)
    numbers = np.array([[1.5, -2.0], [np.nan, 1.0]])
    assert numpy(TaskLoss("squared_error")(numbers, logits)) == pytest.approx(0.125)
    share = np.exp([1.0, 0.0]) / np.exp([1.0, 0.0]).sum()
    ranks = -(share * (logits[0] - np.log(np.exp(logits[0]).sum()))).sum()
    relevance = np.array([[1.0, 0.0], [np.nan, np.nan]])
    assert numpy(TaskLoss("listwise")(relevance, logits)) == pytest.approx(ranks, rel=FORWARD)


def test_scores_pass_over_what_has_no_label():
    cases = {
        "accuracy": ([0, 1, -100], [[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]], 0.5),
        "binary_accuracy": ([[1, 0], [1, 1], [-100, 0]], [[1.0, 1.0]] * 3, 0.75),
        "mean_absolute_error": ([1.0, np.nan, 4.0], [[2.0], [7.0], [4.0]], 0.5),
        "exact_match": ([[0, 1], [0, 0], [-100, -100]], [[[3.0, 0.0], [0.0, 3.0]]] * 3, 0.5),
        "mean_reciprocal_rank": ([[0.0, 1.0, 0.5], [1.0, np.nan, 0.0]], [[3.0, 2.0, 1.0]] * 2, 0.75),
    }
    for kind, (labels, outputs, wanted) in cases.items():
        score = TaskScore(kind)
        score.update_state(np.array(labels), np.array(outputs, "float32"))
        assert numpy(score.result()) == pytest.approx(wanted), kind
        weighed = TaskScore(kind)
        weighed.update_state(np.array(labels), np.array(outputs, "float32"), np.eye(len(labels))[0])
        first = TaskScore(kind)
        first.update_state(np.array(labels)[:1], np.array(outputs, "float32")[:1])
        assert numpy(weighed.result()) == pytest.approx(numpy(first.result())), kind
