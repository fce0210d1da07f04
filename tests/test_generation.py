"""Laws of generation: it says what full forwards say, whatever the padding, the pieces, and how tokens are taken."""

import keras
import numpy as np
import pytest
from generation_harness import PROMPT, full_logits, lm, text_lm
from harness import BACKEND, numpy
from keras import ops
from model_harness import FAMILIES, SMALL_MODEL, perturb, place, tokens

import dl_mamba
from dl_mamba.generation import Beam, Memory, Sampler, TopK, TopP, decoding, fork
from dl_mamba.generation.prompts import chunks
from dl_mamba.tokenizers import BytePairTokenizer, HuggingFaceTokenizer
from dl_mamba.weights import Checkpoint, convert

MANY = Sampler(temperature=0.8, top_k=8, top_p=0.95, min_p=0.01, repetition_penalty=1.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_greedy_is_uncached_greedy_for_more_tokens_than_one_program_takes(family):
    model, new = lm(family, num_layers=2), decoding.BLOCK + 44
    ids = model.generate(PROMPT, new)
    assert (ids.shape, ids.dtype) == ((1, 5 + new), "int32")
    np.testing.assert_array_equal(ids[:, :5], PROMPT)
    np.testing.assert_array_equal(full_logits(model, ids).argmax(-1)[:, 4:-1], ids[:, 5:])
    assert len(np.unique(ids)) > 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right", "between"])
def test_prompts_of_unlike_lengths_are_continued_as_each_alone(family, side):
    rows = [tokens(n, seed=n) for n in (5, 2, 1)]
    padded, mask = place(rows, 7, side, 3)
    together = lm(family).generate(padded, 6, attention_mask=mask)
    np.testing.assert_array_equal(together[:, :7], padded)
    for row, found in zip(rows, together, strict=True):
        np.testing.assert_array_equal(lm(family).generate(row[None], 6)[0, len(row) :], found[7:])
    ragged = lm(family).generate([row.tolist() for row in rows], 6)
    np.testing.assert_array_equal(ragged[:, 5:], together[:, 7:])


@pytest.mark.parametrize("sampler", [MANY, "random", "top_k", "top_p", "min_p"])
def test_a_seed_gives_the_same_tokens_and_another_seed_others(sampler):
    first, again, other = (lm("mamba").generate(PROMPT, 40, sampler=sampler, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("sampler", ["greedy", MANY])
def test_streamed_tokens_are_those_that_come_at_once(sampler, monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK", 3)  # at once from three programs, streamed from nine
    options = {"sampler": sampler, "seed": 3, "eos_token_id": 10}
    prompts = tokens(2, 4)
    at_once = lm("mamba2").generate(prompts, 9, **options)[:, 4:]
    streamed = np.stack(list(lm("mamba2").generate(prompts, 9, stream=True, **options)), axis=1)
    np.testing.assert_array_equal(streamed, at_once[:, : streamed.shape[1]])
    assert (at_once[:, streamed.shape[1] :] == 10).all()


@pytest.mark.usefixtures("eager_generation")
def test_a_row_that_ends_is_padded_and_the_others_go_on():
    prompts = tokens(4, 3)
    free = lm("mamba").generate(prompts, 12)
    end = int(free[0, 6])
    found = lm("mamba").generate(prompts, 12, eos_token_id=[end], pad_token_id=0)
    for row, ids in zip(free[:, 3:], found[:, 3:], strict=True):
        length = np.append(np.flatnonzero(row == end), 11)[0] + 1
        np.testing.assert_array_equal(ids[:length], row[:length])
        assert not ids[length:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_document_serves_many_questions(family):
    document, questions = tokens(1, 6), tokens(3, 2, seed=1)
    memory = lm(family).prefill(document)
    found = lm(family).generate(questions, 5, state=fork(memory, 3))
    whole = lm(family).generate(np.concatenate([document.repeat(3, 0), questions], axis=1), 5)
    np.testing.assert_array_equal(found[:, 2:], whole[:, 8:])
    np.testing.assert_array_equal(lm(family).generate(questions[:1], 5, state=memory), found[:1])


@pytest.mark.usefixtures("eager_generation")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_returned_memory_goes_on_where_it_stopped_even_if_rows_had_ended(family):
    model, prompts = lm(family), tokens(3, 4)
    whole = model.generate(prompts, 10)
    first, memory = model.generate(prompts, 4, return_state=True)
    np.testing.assert_array_equal(np.concatenate([first, model.generate(None, 6, state=memory)], axis=1), whole)
    end = int(whole[0, 4])
    first, memory = model.generate(prompts, 6, eos_token_id=end, return_state=True)
    np.testing.assert_array_equal(model.generate(None, 2, state=memory)[0], model.generate(first[:1, :5], 2)[0, 5:])
    text = first[:, 4:]
    rows = [
        np.append(p, t[: np.append(np.flatnonzero(t == end), 5)[0] + 1]) for p, t in zip(prompts, text, strict=True)
    ]
    wanted = model.generate([row.tolist() for row in rows], 3)[:, -3:]
    np.testing.assert_array_equal(model.generate(None, 3, state=memory), wanted)
    _, memory = model.generate(prompts, 3, sampler=Beam(width=3), return_state=True)
    best = model.generate(prompts, 3, sampler=Beam(width=3))
    np.testing.assert_array_equal(model.generate(None, 3, state=memory), model.generate(best, 3)[:, 7:])


@pytest.mark.parametrize("family", FAMILIES)
def test_several_tokens_after_a_state_equal_a_full_forward(family):
    ids = tokens(2, 9)
    state = lm(family)(ids[:, :4], return_state=True)["state"]
    found = lm(family).generate(ids[:, 4:], 4, state=state)
    np.testing.assert_array_equal(found[:, 5:], lm(family).generate(ids, 4)[:, 9:])


def test_continuations_of_one_prompt_are_neighbours_and_drawn_apart():
    prompts = tokens(2, 4)
    found = lm("mamba").generate(prompts, 8, sampler="random", seed=0, num_return_sequences=3)
    np.testing.assert_array_equal(found[:, :4], prompts.repeat(3, axis=0))
    assert len(np.unique(found[:3, 4:], axis=0)) == 3


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9, 11, 12])
@pytest.mark.parametrize("compiled", [False, True])
def test_pieces_hold_the_rows_in_order_and_few_lengths_are_compiled(length, compiled, monkeypatch):
    ids = np.arange(2 * length).reshape(2, length)
    mask = np.array([[True] * length, [False] * (length - 1) + [True]])
    monkeypatch.setattr("dl_mamba.generation.prompts.SHORTEST", 2)
    pieces = list(chunks(ids, mask, 4, compiled))
    real = [np.ones(piece.shape, bool) if m is None else m for piece, m in pieces]
    joined, masks = np.concatenate([p for p, _ in pieces], axis=1), np.concatenate(real, axis=1)
    np.testing.assert_array_equal(joined[masks], ids[mask])
    assert masks[:, -1].all()
    assert all(piece.shape[1] in ((2, 4) if compiled else range(1, 5)) for piece, _ in pieces)


def test_a_prompt_read_in_pieces_is_the_prompt_and_memory_does_not_grow():
    model, ids, mask = lm("mamba2"), tokens(2, 50), np.ones((2, 50), bool)
    mask[1, :17] = False
    whole, pieces = (decoding.read(model, ids, mask, None, chunk) for chunk in (64, 8))
    for came, wanted in zip(keras.tree.flatten(pieces), keras.tree.flatten(whole), strict=True):
        np.testing.assert_allclose(numpy(came), numpy(wanted), atol=1e-4)
    empty = [tuple(leaf.shape) for leaf in keras.tree.flatten(model.initial_state(2))]
    assert [tuple(leaf.shape) for leaf in keras.tree.flatten(pieces.state)] == empty


@pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing")
def test_neither_numbers_of_tokens_nor_of_samplers_compile_anew(monkeypatch):
    model, traced = lm("mamba"), []
    for length, count, sampler in ((5, 3, TopP(p=0.5)), (8, 9, TopP(p=0.9, temperature=2.0)), (7, 70, TopP(p=0.1))):
        model.generate(tokens(1, length), count, sampler=sampler, seed=0)
        traced = traced or monkeypatch.setattr(type(model), "next_logits", lambda *args: pytest.fail("traced")) or [1]


def test_changed_weights_are_used_at_once():
    model = perturb(dl_mamba.MambaCausalLM(**SMALL_MODEL["mamba"]))
    before = model.generate(PROMPT, 40)
    np.testing.assert_array_equal(model.generate(PROMPT, 40), before)
    perturb(model, seed=1)
    after = model.generate(PROMPT, 40)
    assert (after != before).any()
    np.testing.assert_array_equal(full_logits(model, after).argmax(-1)[:, 4:-1], after[:, 5:])


@pytest.mark.usefixtures("eager_generation")
def test_text_goes_in_and_comes_out_and_streams_in_pieces():
    model = text_lm()
    text = model.generate("déjà", 20)
    ids = model.generate(np.array([list("déjà".encode())]), 20)
    assert text == bytes(ids[0].astype("uint8").tolist()).decode(errors="replace")
    assert "".join(model.generate("déjà", 20, stream=True)) == text.removeprefix("déjà")
    both = model.generate(["déjà", "x"], 20)
    assert both[0] == text
    assert both[1] == model.generate("x", 20)


@pytest.mark.usefixtures("eager_generation")
def test_stop_strings_end_a_row_and_are_left_out():
    model = text_lm()
    ids = model.generate(np.array([[97, 98]]), 12, sampler=TopK(k=90, temperature=5.0), seed=0)
    new = model.tokenizer.decode(ids[:, 2:])[0]
    options = {"sampler": TopK(k=90, temperature=5.0), "seed": 0, "stop": [new[4:6], "not there"]}
    assert model.generate("ab", 12, **options) == "ab" + new[: new.find(new[4:6])]
    assert "".join(model.generate("ab", 12, stream=True, **options)) == new[: new.find(new[4:6])]
    found = model.generate(np.array([[97, 98]]), 12, pad_token_id=0, **options)[0]
    assert found[-1] == 0


def hugging_face(vocab_size=40):
    library = pytest.importorskip("tokenizers", reason='needs pip install "dl-mamba[hf]"')
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the state of the art of the state"] * 3, trainer)
    return tokenizer.to_str()


@pytest.mark.usefixtures("eager_generation")
def test_a_tokenizer_json_and_the_end_of_text_go_with_the_model_into_every_format(tmp_path):
    definition = hugging_face(270)
    (tmp_path / "tokenizer.json").write_text(definition)
    tokenizer = HuggingFaceTokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode(["the état of art"])["input_ids"]) == ["the état of art"]
    assert tokenizer.token_id("<|endoftext|>") == 0
    assert tokenizer.decode([[0, tokenizer.vocab_size + 3]]) == [""]
    model = perturb(dl_mamba.MambaCausalLM(vocab_size=280, d_model=8, num_layers=1, tokenizer=tokenizer))
    text = model.generate("the state", 12)
    assert "".join(model.generate("the state", 12, stream=True)) == text.removeprefix("the state")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.generate("the state", 12) == text
    again.carried = {"eos_token_id": int(model.generate([[5]], 1)[0, 1])}
    again.save_pretrained(tmp_path / "hf")
    convert(Checkpoint(tmp_path / "hf"), tmp_path / "mamba_ssm", "mamba_ssm")
    for name in ("hf", "mamba_ssm"):
        assert (tmp_path / name / "tokenizer.json").read_text() == definition
        assert type(model).from_pretrained(tmp_path / name).generate("the state", 12, eos_token_id=()) == text
        assert type(model).from_pretrained(tmp_path / name, tokenizer=None).tokenizer is None
    loaded = type(model).from_pretrained(tmp_path / "hf")
    loaded.save(tmp_path / "model.keras")
    for ending in (loaded, keras.models.load_model(tmp_path / "model.keras")):
        assert ending.generate([[5]], 3, pad_token_id=7)[0, 2:].tolist() == [7, 7]


@pytest.mark.usefixtures("eager_generation")
def test_new_text_of_byte_pairs_keeps_its_spaces():
    tokenizer = BytePairTokenizer.learn(["a b a b a b"], vocab_size=300)
    model = perturb(dl_mamba.MambaCausalLM(vocab_size=tokenizer.vocab_size, d_model=8, num_layers=1))
    model.tokenizer = tokenizer
    ids = model.generate([tokenizer.rows(["a b"])[0].tolist()], 8)
    assert model.generate("a b", 8) == tokenizer.decode(ids)[0]


BAD = [
    ({"input_ids": np.zeros((1, 0), "int32")}, "row 0 of input_ids holds no token"),
    ({"input_ids": []}, "input_ids"),
    ({"input_ids": [[1], []]}, "row 1 of input_ids holds no token"),
    ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "row 0 of input_ids holds no token"),
    ({"input_ids": [[11]]}, "input_ids holds 11; ids from 0 to 10 are needed"),
    ({"input_ids": [[-1]]}, "input_ids holds -1"),
    ({"input_ids": [[1.5]]}, "integers of shape"),
    ({"input_ids": [1, 2]}, r"input_ids has shape \(2,\)"),
    ({"input_ids": None}, "input_ids is None; a prompt is needed"),
    ({"input_ids": "text"}, "a text was given and the model has no tokenizer"),
    ({"attention_mask": [[1, 1]]}, r"attention_mask has shape \(1, 2\); that of input_ids, \(1, 3\), is needed"),
    ({"max_new_tokens": 0}, "max_new_tokens=0; an integer >= 1 is needed"),
    ({"max_new_tokens": -3}, "max_new_tokens=-3"),
    ({"max_new_tokens": 2.0}, "max_new_tokens=2.0"),
    ({"sampler": "greddy"}, "sampler='greddy' is unknown; choose one of"),
    ({"sampler": TopP}, "a name, or an object such as TopP"),
    ({"eos_token_id": 99}, "eos_token_id=99; ids from 0 to 10 are needed"),
    ({"num_return_sequences": 0}, "num_return_sequences=0"),
    ({"sampler": "beam", "stream": True}, "stream=True cannot go with sampler=Beam"),
    ({"stop": "x"}, "stop strings need a tokenizer"),
    ({"stream": True, "return_state": True}, "stream=True cannot go with return_state=True"),
    ({"state_dtype": "float16"}, "state_dtype='float16'; one of 'float32', 'bfloat16' is needed"),
    ({"sampler": lambda **given: None, "state_dtype": "bfloat16"}, "state_dtype='bfloat16' cannot go with sampler="),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_refused_before_anything_is_computed(options, message, monkeypatch):
    model = lm("mamba")
    monkeypatch.setattr(type(model), "next_logits", lambda *args: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        model.generate(**{"input_ids": [[1, 2, 3]], "max_new_tokens": 2, **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_states_in_bfloat16_are_rounded_between_tokens_and_memories_are_not(family):
    model, document = lm(family), lm(family).prefill(PROMPT)
    rounded = lambda layer: layer._replace(ssm=ops.cast(ops.cast(layer.ssm, "bfloat16"), "float32"))  # noqa: E731
    tokens, memory = model.generate(None, 1, state=document, state_dtype="bfloat16", return_state=True)
    logits, (wanted,) = model.next_logits(ops.convert_to_tensor(tokens), None, tuple(map(rounded, document.state)))
    np.testing.assert_allclose(numpy(memory.logits), numpy(logits), rtol=1e-5, atol=1e-6)
    (layer,) = memory.state
    assert keras.backend.standardize_dtype(layer.ssm.dtype) == "float32"
    np.testing.assert_array_equal(numpy(layer.ssm), numpy(rounded(layer).ssm))
    np.testing.assert_allclose(numpy(layer.ssm), numpy(wanted.ssm), rtol=2**-8, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_memory_that_was_kept_in_half_precision_goes_on_in_float32(family):
    model, document = lm(family), lm(family).prefill(PROMPT)
    cast = lambda dtype: lambda layer: layer._replace(ssm=ops.cast(layer.ssm, dtype))  # noqa: E731
    half = document._replace(state=tuple(map(cast("bfloat16"), document.state)))
    wide = half._replace(state=tuple(map(cast("float32"), half.state)))
    came, wanted = (model.generate(None, 6, state=memory, return_state=True) for memory in (half, wide))
    np.testing.assert_array_equal(came[0], wanted[0])
    for a, b in zip(*map(keras.tree.flatten, (came[1], wanted[1])), strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))


def test_a_state_of_another_batch_or_model_is_refused():
    model = lm("mamba")
    memory = Memory(model.initial_state(1), None)
    with pytest.raises(ValueError, match=r"for a batch of 1; .* batch of 2.*fork\(state, 2\)"):
        model.generate([[1], [2]], 2, state=memory)
    with pytest.raises(ValueError, match="of the same model are needed"):
        model.generate([[1]], 2, state=lm("mamba2").initial_state(1))
