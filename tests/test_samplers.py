"""How tokens are taken: beams, filters, penalties, and samplers of others."""

import itertools

import numpy as np
import pytest
from generation_harness import PROMPT, full_logits, lm
from harness import numpy
from keras import ops
from model_harness import FAMILIES, place, tokens

from dl_mamba.generation import Beam, Greedy, MinP, Random, TopK, TopP, samplers


def numpy_beam(model, prompt, width, count):
    """(best sequence, its log-probability) from full forwards alone."""
    beams = [([], 0.0)]
    for _ in range(count):
        ids = np.zeros((len(beams), len(prompt) + count), "int32")
        for row, (new, _) in enumerate(beams):
            ids[row, : len(prompt) + len(new)] = [*prompt, *new]
        ids = np.pad(ids, [[0, width - len(beams)], [0, 0]])
        logits = full_logits(model, ids)[: len(beams), len(prompt) + len(beams[0][0]) - 1].astype("float64")
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        grown = [
            ([*new, token], score + log_p[row, token])
            for row, (new, score) in enumerate(beams)
            for token in range(logits.shape[1])
        ]
        beams = sorted(grown, key=lambda beam: -beam[1])[:width]
    return beams[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_are_those_of_full_forwards_so_the_state_follows_its_beam(family):
    for seed in range(3):
        prompt = tokens(4, seed=seed)
        best, _ = numpy_beam(lm(family), prompt, 3, 6)
        found = lm(family).generate(prompt[None], 6, sampler=Beam(width=3))
        assert found[0, 4:].tolist() == best


@pytest.mark.usefixtures("eager_generation")
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_sequences():
    model = lm("mamba", vocab_size=3)
    prompt = tokens(2, 3, vocab_size=3)
    ends = np.array(list(itertools.product(range(3), repeat=4)), "int32")
    found = model.generate(prompt, 4, sampler=Beam(width=27))
    for row, ids in zip(prompt, found, strict=True):
        score = model.score(np.concatenate([np.repeat(row[None], len(ends), 0), ends], axis=1)).tokens[:, 3:].sum(1)
        assert ids[3:].tolist() == ends[score.argmax()].tolist()


def test_a_beam_of_width_1_is_greedy():
    prompts = tokens(3, 4)
    np.testing.assert_array_equal(
        lm("mamba").generate(prompts, 12, sampler=Beam(width=1)), lm("mamba").generate(prompts, 12)
    )


@pytest.mark.usefixtures("eager_generation")
def test_ended_beams_keep_their_probability_and_the_length_penalty_divides_by_new_tokens():
    model, prompt, end = lm("mamba", vocab_size=3), tokens(1, 3, vocab_size=3), 1
    scores = {}
    for length in (1, 2, 3):
        for new in itertools.product(range(3), repeat=length):
            if end in new[:-1] or (length < 3 and new[-1] != end):
                continue
            ids = np.array([[*prompt[0], *new]], "int32")
            scores[new] = float(model.score(ids).tokens[0, 3:].sum())
    for penalty in (0.0, 1.0, 2.0):
        best = max(scores, key=lambda new: scores[new] / len(new) ** penalty)
        found = model.generate(prompt, 3, sampler=Beam(width=9, length_penalty=penalty), eos_token_id=end)
        assert found[0, 3:].tolist() == [*best, *[end] * (3 - len(best))]


def kept_by_definition(logits, top_k=None, top_p=None, min_p=None):
    """The tokens that the filters leave, one row at a time, by sorting."""
    kept = np.zeros(logits.shape, bool)
    for row, out in zip(logits.astype("float64"), kept, strict=True):
        order = np.argsort(-row)[:top_k]
        p = np.exp(row[order] - row.max())
        if top_p is not None:
            order = order[: np.searchsorted(np.cumsum(p) / p.sum(), top_p) + 1]
        p = np.exp(row[order] - row.max())
        out[order[p >= (min_p or 0.0)]] = True
    return kept


@pytest.mark.parametrize(
    "options",
    [{"top_k": 1}, {"top_k": 7}, {"top_k": 999}, {"top_p": 0.1}, {"top_p": 0.9}, {"top_p": 0.99}, {"min_p": 0.2}]
    + [{"top_k": 9, "top_p": 0.8}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}],
)
def test_filters_keep_what_their_definitions_keep(options):
    logits = (3 * np.random.default_rng(0).normal(size=(5, 50))).astype("float32")
    numbers = {name: ops.convert_to_tensor(float(value)) for name, value in options.items()}
    logits_tensor = ops.convert_to_tensor(logits)
    kept = numpy(ops.cast(logits_tensor >= samplers.threshold(logits_tensor, numbers), "int32")).astype(bool)
    np.testing.assert_array_equal(kept, kept_by_definition(logits, **options))


def test_draws_follow_the_probabilities_of_the_tokens_that_are_kept():
    logits = np.array([[0.0, 1.0, 2.0, -30.0, 1.5]], "float32").repeat(4000, axis=0)
    draw = ops.convert_to_tensor(np.random.default_rng(0).random((4000, 2)).astype("float32"))
    logits = ops.convert_to_tensor(logits)
    found = numpy(samplers.sampled(logits, samplers.threshold(logits, {"top_k": ops.convert_to_tensor(3.0)}), draw))
    wanted = np.exp([-np.inf, 1.0, 2.0, -np.inf, 1.5])
    np.testing.assert_allclose(np.bincount(found, minlength=5) / 4000, wanted / wanted.sum(), atol=0.03)
    assert set(found.tolist()) == {1, 2, 4}
    edges = ops.convert_to_tensor(np.array([[0.0, 0.0], [1.0, 1.0]], "float32"))
    assert numpy(samplers.sampled(logits[:2], samplers.threshold(logits[:2], {}), edges)).tolist() == [0, 4]


def test_the_repetition_penalty_divides_positive_logits_and_multiplies_negative_ones():
    model, penalty = lm("mamba2"), 3.0
    ids = PROMPT
    for _ in range(12):
        logits = full_logits(model, np.pad(ids, [[0, 0], [0, 17 - ids.shape[1]]]))[0, ids.shape[1] - 1]
        seen = np.isin(np.arange(11), ids)
        logits = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
        ids = np.append(ids, [[logits.argmax()]], axis=1)
    np.testing.assert_array_equal(model.generate(PROMPT, 12, sampler=Greedy(repetition_penalty=penalty)), ids)


class ForeignSampler:
    """A greedy sampler of the signature of keras_hub, with a loop of its own."""

    def __call__(self, next, prompt, cache, index, mask, stop_token_ids=None, hidden_states=None, model=None):  # noqa: A002
        length = prompt.shape[1]

        def more(prompt, cache, index):
            ended = ops.zeros_like(prompt, dtype="bool")
            for end in stop_token_ids or ():
                ended = ops.logical_or(ended, ops.logical_and(ops.equal(prompt, end), ops.logical_not(mask)))
            return ops.logical_and(index < length, ops.logical_not(ops.all(ops.any(ended, axis=-1))))

        def step(prompt, cache, index):
            logits, _, cache = next(prompt, cache, index)
            token = ops.cast(ops.argmax(logits, axis=-1), prompt.dtype)
            token = ops.where(ops.take(mask, index, axis=1), ops.take(prompt, index, axis=1), token)
            return ops.slice_update(prompt, (0, index), token[:, None]), cache, index + 1

        loop = ops.while_loop(more, step, (prompt, cache, ops.convert_to_tensor(index, "int32")))
        return loop[0]


def test_a_sampler_of_keras_hub_reads_no_token_twice():
    model, rows = lm("mamba2"), [tokens(n, seed=n) for n in (5, 2, 1)]
    sampler = ForeignSampler()
    padded, mask = place(rows, 6, "right", 0)
    np.testing.assert_array_equal(
        model.generate(padded, 7, sampler=sampler, attention_mask=mask), model.generate(padded, 7, attention_mask=mask)
    )
    end = int(model.generate(PROMPT, 7)[0, 7])
    np.testing.assert_array_equal(
        model.generate(PROMPT, 7, sampler=sampler, eos_token_id=end), model.generate(PROMPT, 7, eos_token_id=end)
    )
    one = PROMPT[:, :1]
    np.testing.assert_array_equal(model.generate(one, 7, sampler=sampler), model.generate(one, 7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Random(temperature=0.0), "temperature=0.0; a number > 0 is needed"),
        (lambda: TopK(k=0), "top_k=0; an integer >= 1"),
        (lambda: TopP(p=1.5), "top_p=1.5; a number > 0 and <= 1"),
        (lambda: MinP(p=-0.1), "min_p=-0.1"),
        (lambda: Beam(width=0), "width=0; an integer >= 1"),
        (lambda: Greedy(repetition_penalty=0.0), "repetition_penalty=0.0"),
    ],
)
def test_numbers_of_samplers_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
