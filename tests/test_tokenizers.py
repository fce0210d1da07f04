"""Laws of the byte tokenizer: nothing is lost, nothing is invented, and a config makes the same one again."""

import json
import sys

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl_mamba.tokenizers import BytePairTokenizer, ByteTokenizer, HuggingFaceTokenizer

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4)


@given(TEXTS, st.sampled_from(["left", "right"]))
def test_decoding_gives_back_every_text(texts, padding):
    tokenizer = ByteTokenizer(padding=padding)
    assert tokenizer.decode(**tokenizer.encode(texts)) == texts


@given(TEXTS, st.integers(1, 9), st.sampled_from(["left", "right"]))
def test_a_cut_keeps_the_other_end_of_the_text(texts, max_length, side):
    rows = ByteTokenizer(max_length, truncation=side).rows(texts)
    for text, row in zip(texts, rows, strict=True):
        whole = text.encode()
        assert bytes(row.tolist()) == (whole[:max_length] if side == "right" else whole[-max_length:])


def test_ids_and_mask_are_padded_int32_of_one_shape():
    batch = ByteTokenizer().encode(["abc", "", "é"])
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "input_ids": ((3, 3), "int32"),
        "attention_mask": ((3, 3), "int32"),
    }
    assert batch["attention_mask"].sum(1).tolist() == [3, 0, 2]


def test_a_batch_of_empty_texts_has_one_masked_column():
    batch = ByteTokenizer().encode(["", ""])
    assert batch["input_ids"].shape == (2, 1)
    assert not batch["attention_mask"].any()


def test_every_byte_is_a_token_zero_included():
    assert ByteTokenizer().rows(["\0a"])[0].tolist() == [0, 97]
    assert ByteTokenizer.vocab_size == 256


def test_the_config_makes_the_same_tokenizer_again():
    tokenizer = ByteTokenizer(5, truncation="left", padding="left")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(tokenizer))
    assert isinstance(again, ByteTokenizer)
    assert again.get_config() == tokenizer.get_config()
    np.testing.assert_array_equal(again.encode(["abcdefg"])["input_ids"], tokenizer.encode(["abcdefg"])["input_ids"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "max_length=0; an integer >= 1 is needed"),
        ({"max_length": 2.5}, "max_length=2.5; an integer >= 1 is needed"),
        ({"truncation": "middle"}, "truncation='middle' is unknown; choose 'left' or 'right'"),
        ({"padding": None}, "padding=None is unknown; choose 'left' or 'right'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ByteTokenizer(**arguments)


def test_a_lone_string_is_refused_instead_of_read_letter_by_letter():
    with pytest.raises(TypeError, match="'abc' is one string; a list of strings is needed"):
        ByteTokenizer().encode("abc")


def test_something_else_than_text_is_named_with_its_place():
    with pytest.raises(TypeError, match="text 1 is 3 of type int; a string is needed"):
        ByteTokenizer().encode(["a", 3])


def test_an_id_that_is_no_byte_is_refused():
    with pytest.raises(ValueError, match="input_ids go from 0 to 256; tokens go from 0 to 255"):
        ByteTokenizer().decode([[0, 256]])


TEXTS = ["the cat sat on the mat", "the hat, the cat: 12 hats!", "naïve _café_ 😀\n\n"] * 2


def test_byte_pairs_give_every_text_back():
    tokenizer = BytePairTokenizer.learn(TEXTS, vocab_size=300)
    others = [*TEXTS, "", "  two spaces", "unseen 東京 words\t"]
    assert tokenizer.decode(**tokenizer.encode(others)) == others


def test_byte_pairs_are_fewer_than_bytes_and_the_most_frequent_pair_comes_first():
    tokenizer = BytePairTokenizer.learn(TEXTS, vocab_size=300)
    assert bytes(tokenizer.merges[0]) == b"at"
    assert len(tokenizer.rows(["the cat"])[0]) < len("the cat")


def test_the_same_texts_teach_the_same_merges_and_a_config_brings_them_back():
    tokenizer = BytePairTokenizer.learn(TEXTS, vocab_size=300, max_length=7)
    assert BytePairTokenizer.learn(list(reversed(TEXTS)), vocab_size=300).merges == tokenizer.merges
    again = BytePairTokenizer.from_config(json.loads(json.dumps(tokenizer.get_config())))
    for came, wanted in zip(again.rows(TEXTS), tokenizer.rows(TEXTS), strict=True):
        np.testing.assert_array_equal(came, wanted)
        assert len(came) <= 7


def test_varied_rows_spell_the_same_texts_and_follow_their_seed():
    tokenizer = BytePairTokenizer.learn(TEXTS, vocab_size=300)
    first, second, other = (tokenizer.varied(TEXTS, 0.5, seed=seed)() for seed in (0, 0, 1))
    assert [tokenizer.decode(row[None])[0] for row in first] == TEXTS
    assert [row.tolist() for row in first] == [row.tolist() for row in second]
    assert [row.tolist() for row in first] != [row.tolist() for row in other]


def test_without_dropout_varied_rows_are_the_plain_ones():
    tokenizer = BytePairTokenizer.learn(TEXTS, vocab_size=300)
    plain = [row.tolist() for row in tokenizer.rows(TEXTS)]
    assert [row.tolist() for row in tokenizer.varied(TEXTS, 0.0, seed=0)()] == plain


@pytest.mark.parametrize(("merges", "message"), [([(300, 1)], "two ids from 0 to 255"), ([(1, -1)], "two ids")])
def test_a_merge_of_an_unknown_id_is_refused(merges, message):
    with pytest.raises(ValueError, match=message):
        BytePairTokenizer(merges)


def test_a_missing_library_of_tokenizers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "dl-mamba\[hf\]"'):
        HuggingFaceTokenizer("{}")
