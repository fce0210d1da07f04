"""What heads answer: trees, texts without a span, entities; and the tokens that labels of a text belong to."""

import itertools

import keras
import numpy as np
import pytest
from head_harness import task_of
from model_harness import perturb

import dl_mamba
from dl_mamba.heads import NLPTaskConfig, check_labels, create_nlp_head, to_causal_lm
from dl_mamba.heads.arcs import best_trees
from dl_mamba.heads.raw_texts import LanguageReader, MaskedReader
from dl_mamba.heads.raw_words import ArcReader, SpanReader, TagReader
from dl_mamba.heads.spans import best_spans
from dl_mamba.pipelines.place_scores import entity_scores
from dl_mamba.tokenizers import BytePairTokenizer, ByteTokenizer

NOWHERE = -1e9


def _trees(size):
    """Every choice of heads that is a tree with one root."""
    for heads in itertools.product(range(size + 1), repeat=size):
        reached = {0}
        for _ in heads:
            reached |= {place for place, head in enumerate(heads, 1) if head in reached}
        if heads.count(0) == 1 and len(reached) == size + 1:
            yield np.array(heads)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_tree_of_a_row_is_the_best_of_all_trees_with_one_root(size):
    rng, trees = np.random.default_rng(size), list(_trees(size))
    assert len(trees) == size ** (size - 1)
    for _ in range(40):
        scores = rng.normal(size=(size, size + 1))
        best = max(trees, key=lambda heads: scores[np.arange(size), heads].sum())
        np.testing.assert_array_equal(best_trees(scores[None, ..., None])[0, :, 0], best)


def test_padding_anywhere_has_no_arc_and_changes_no_tree():
    rng, real = np.random.default_rng(0), np.array([1, 2, 4])
    scores = rng.normal(size=(3, 4, 3))
    wide = np.full((1, 6, 7, 3), NOWHERE)
    wide[0][np.ix_(real, np.append(0, real + 1))] = scores
    heads, relations = best_trees(scores[None])[0].T
    found = best_trees(wide)[0]
    np.testing.assert_array_equal(found[real, 0], np.append(0, real + 1)[heads])
    np.testing.assert_array_equal(found[real, 1], relations)
    assert (found[[0, 3, 5]] == -100).all()


def test_dependencies_are_decoded_as_trees_and_antecedents_are_not():
    assert NLPTaskConfig("d", "dependency_parsing", 2).tree
    assert not NLPTaskConfig("c", "coreference_resolution").tree
    with pytest.raises(ValueError, match="tree=True needs one head for each token"):
        NLPTaskConfig("r", "relation_extraction", 2, tree=True)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_may_hold_no_span_and_padding_on_either_side_does_not_change_that(side):
    task = task_of("question_answering", unanswerable=True)
    head = create_nlp_head(task)
    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype("float32")
    alone = keras.ops.convert_to_numpy(head({"last_hidden_state": x}))
    perturb(head)
    alone = keras.ops.convert_to_numpy(head({"last_hidden_state": x}))
    assert alone.shape == (2, 5, 2)
    before = 2 if side == "left" else 0
    padded = np.pad(x, [(0, 0), (before, 2 - before), (0, 0)], constant_values=7.0)
    mask = np.zeros((2, 6), "int32")
    mask[:, before : before + 4] = 1
    outputs = keras.ops.convert_to_numpy(head({"last_hidden_state": padded, "attention_mask": mask}))
    real = np.append(0, np.arange(4) + 1 + before)
    np.testing.assert_allclose(outputs[:, real], alone, atol=1e-5)
    assert (np.delete(outputs, real, axis=1) == np.float32(NOWHERE)).all()
    loss, labels = task.head_class.make_loss(task), np.array([[0, 0], [1, 2]])
    shifted = np.where(labels > 0, labels + before, 0)
    np.testing.assert_allclose(float(loss(shifted, outputs)), float(loss(labels, alone)), rtol=1e-5)
    check_labels(task, shifted, mask)


def test_no_other_span_starts_or_ends_where_no_span_stands():
    logits = np.array([[[5.0, 0.0], [0.0, 4.0], [1.0, 5.0]]])
    spans, scores = (keras.ops.convert_to_numpy(x) for x in best_spans(logits, unanswerable=True))
    assert spans.tolist() == [[1, 2]] or spans.tolist() == [[2, 2]]
    assert scores[0] == 6.0
    logits[0, 0] = [5.0, 2.0]
    assert keras.ops.convert_to_numpy(best_spans(logits, unanswerable=True)[0]).tolist() == [[0, 0]]


def test_labels_of_a_span_outside_the_text_are_named_where_there_may_be_none():
    task = NLPTaskConfig("answer", "question_answering", unanswerable=True)
    with pytest.raises(ValueError, match="row 1 names position 3, which is no real token of its 2"):
        check_labels(task, np.array([[0, 0], [1, 4]]), np.array([[1, 1, 1], [1, 1, 0]]))


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_language_model_of_a_head_has_its_logits(family, tied):
    create = {"mamba": dl_mamba.create_mamba_with_head, "mamba2": dl_mamba.create_mamba2_with_head}[family]
    task = NLPTaskConfig("story", "text_generation", tie_word_embeddings=tied)
    sizes = {"d_model": 16, "num_layers": 1, "pad_vocab_size_multiple": 8}
    model = create("tiny", [task, NLPTaskConfig("mood", "spam_detection", 2)], vocab_size=11, **sizes)
    perturb(model)
    ids = np.array([[3, 1, 4, 1, 5]], "int32")
    wanted = model({"input_ids": ids, "attention_mask": np.ones_like(ids)})["story"]
    found = to_causal_lm(model)(ids)["logits"]
    np.testing.assert_allclose(*(keras.ops.convert_to_numpy(x) for x in (found, wanted)), atol=1e-5)
    with pytest.raises(ValueError, match="task='mood'; the name of a task with a CausalLMHead"):
        to_causal_lm(model, "mood")


TEXT = "Zoë, who came — late — said: ‘no’"


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), BytePairTokenizer.learn([TEXT] * 3, 300)], ids=["bytes", "pairs"]
)
def test_offsets_lead_from_tokens_to_their_letters(tokenizer):
    ids, offsets = tokenizer.ids_and_offsets(TEXT)
    assert len(ids) == len(offsets)
    for start in range(len(TEXT)):
        for end in (start + 1, len(TEXT)):
            touched = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start))
            assert offsets[touched[0], 0] <= start
            assert offsets[touched[-1], 1] >= end
    single = [TEXT[a:b] for a, b in offsets if b - a == 1 and a]
    assert all(letter in TEXT for letter in single)


def test_a_span_comes_back_as_the_text_that_its_tokens_stand_for():
    task = NLPTaskConfig("answer", "question_answering", unanswerable=True)
    reader = SpanReader(task, BytePairTokenizer.learn([TEXT] * 3, 300))
    record = {"question": "how?", "context": TEXT, "answers": [{"text": "late", "start": TEXT.index("late")}]}
    (row,) = reader.rows(record)
    logits = np.full((len(row) + 1, 2), -5.0)
    logits[row.label, [0, 1]] = 5.0
    logits[1, 0] = 50.0  # a token of the question, which no answer starts at
    assert reader.answer(create_nlp_head(task), logits, row) == {"text": "late", "start": TEXT.index("late")}


def test_a_word_of_several_tokens_is_labelled_and_read_at_its_last_one():
    task = NLPTaskConfig("tags", "named_entity_recognition", label_names=("B", "O"))
    (row,) = TagReader(task, ByteTokenizer()).rows({"tokens": ["ab", "c"], "tags": ["B", "O"]})
    assert row.label.tolist() == [-100, 0, -100, 1]
    logits = np.zeros((6, 2))
    logits[[1, 3], [0, 1]] = 1.0
    assert TagReader(task, ByteTokenizer()).answer(create_nlp_head(task), logits, row)["tags"] == ["B", "O"]


def test_arcs_between_words_are_arcs_between_their_last_tokens_and_back():
    task = NLPTaskConfig("tree", "dependency_parsing", label_names=("a", "b"))
    reader = ArcReader(task, ByteTokenizer())
    (row,) = reader.rows({"tokens": ["ab", "c", "d"], "heads": [2, 0, 1], "relations": ["a", "b", "a"]})
    assert row.label[row.places].tolist() == [[4, 0], [0, 1], [2, 0]]
    logits = np.full((len(row), len(row) + 1, 3), -3.0)
    for place in row.places:
        head, relation = row.label[place]
        logits[place, head, [0, 1 + relation]] = 3.0
    answer = reader.answer(create_nlp_head(task), logits, row)
    assert (answer["heads"], answer["relations"]) == ([2, 0, 1], ["a", "b", "a"])


def _entities(tags):
    """(type, start, end) as conlleval reads them, written anew for this test."""
    found, begun = [], None
    for place, tag in enumerate([*tags, "O"]):
        if begun and (tag == "O" or tag.startswith("B-") or tag[2:] != begun[0]):
            found.append((*begun, place))
            begun = None
        if tag != "O" and begun is None:
            begun = (tag[2:], place)
    return set(found)


def test_entity_scores_are_those_of_conlleval():
    rng, tags = np.random.default_rng(0), ["O", "O", "B-A", "I-A", "B-B", "I-B"]
    rows = [[[str(tag) for tag in rng.choice(tags, 6)] for _ in range(30)] for _ in range(2)]
    pairs = [(_entities(a), _entities(b)) for a, b in zip(*rows, strict=True)]
    found = entity_scores(*rows)
    for name, row in {"": found.metrics, "A": found.table[0], "B": found.table[1]}.items():
        kept = [[{e for e in part if e[0].startswith(name)} for part in pair] for pair in pairs]
        right, wanted, given = (sum(len(x) for x in xs) for xs in zip(*((a & b, a, b) for a, b in kept), strict=True))
        assert row["precision"] == pytest.approx(right / given)
        assert row["recall"] == pytest.approx(right / wanted)
        assert row["support"] == wanted


def test_a_completion_is_learned_behind_its_prompt_and_asked_for_in_the_same_way():
    task = NLPTaskConfig("s", "text_summarization", vocab_size=256)
    reader = LanguageReader(task, ByteTokenizer())
    (row,) = reader.rows({"prompt": "ab", "completion": "c"})
    assert bytes(row.inputs["input_ids"].astype("uint8")) == b"ab\nc\0"
    assert row.label.tolist() == [-100, -100, -100, 99, 0]
    assert reader.beginning({reader.from_text: "ab"}) == "ab\n"
    story = LanguageReader(NLPTaskConfig("g", "text_generation", vocab_size=256), ByteTokenizer(max_length=2))
    assert story.beginning({story.from_text: "ab"}) == "ab"
    assert [row.label.tolist() for row in story.rows({"text": "abc"})] == [[97, 98], [99, 0]]


def test_hidden_tokens_are_labelled_with_themselves_and_others_not_at_all():
    reader = MaskedReader(NLPTaskConfig("m", "masked_language_modeling", vocab_size=256), ByteTokenizer())
    (row,) = reader.rows({"text": "x" * 499})
    random, ids = np.random.default_rng(0), row.record["ids"]
    drawn = [reader.hidden(row, random) for _ in range(20)]
    chosen = np.concatenate([found.label >= 0 for found in drawn])
    read, true = np.concatenate([found.inputs["input_ids"] for found in drawn]), np.tile(ids, 20)
    np.testing.assert_array_equal(np.concatenate([found.label for found in drawn])[chosen], true[chosen])
    np.testing.assert_array_equal(read[~chosen], true[~chosen])
    assert chosen.mean() == pytest.approx(0.15, abs=0.02)
    assert (read[chosen] == 0).mean() == pytest.approx(0.8, abs=0.05)
    assert (read[chosen] == true[chosen]).mean() == pytest.approx(0.1, abs=0.04)
    (asked,) = reader.rows({"text": "a [MASK] c"})
    assert asked.inputs["input_ids"].tolist() == [97, 0, 32, 99]
    assert asked.places.tolist() == [1]
