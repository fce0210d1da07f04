"""`generate`: prompts in, prompts with their continuations out, as ids or as text, at once or token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.generation.beam import Beam
from dl_mamba.generation.decoding import Decoding, Memory, read
from dl_mamba.generation.foreign import generate_with
from dl_mamba.generation.prompts import read_prompts
from dl_mamba.generation.request import (
    Request,
    as_texts,
    check_combination,
    check_count,
    encoded,
    to_ids,
    to_memory,
    to_prompts,
    to_sampler,
    to_state_dtype,
)
from dl_mamba.generation.samplers import Sampler
from dl_mamba.generation.text import Texts, cut


def generate(
    model: keras.Model,
    input_ids: Any,
    max_new_tokens: int,
    sampler: Any = "greedy",
    attention_mask: Any = None,
    eos_token_id: int | Sequence[int] | None = None,
    seed: int | None = None,
    *,
    pad_token_id: int | None = None,
    num_return_sequences: int = 1,
    stop: str | Sequence[str] = (),
    stream: bool = False,
    state: Any = None,
    return_state: bool = False,
    state_dtype: str = "float32",
    tokenizer: Any = None,
) -> Any:
    """Continue prompts. The state has a fixed size, so that each token costs the same, whatever came before.

    Args:
        model: a language model that carries state, such as `dl_mamba.MambaCausalLM`.
        input_ids: (batch, length) int; a list of rows of any lengths; a string or a list of strings, if there is a
            tokenizer; None to go on from `state` alone.
        max_new_tokens: new tokens of each row, >= 1.
        sampler: `"greedy"`, `"random"`, `"top_k"`, `"top_p"`, `"min_p"`, `"beam"`, an object such as
            `TopP(p=0.9, temperature=0.7)`, or a sampler of keras_hub.
        attention_mask: (batch, length), true at real tokens. A row gives what it gives alone, wherever its padding is.
        eos_token_id: id, or ids, that end a row; that of the checkpoint's config if None and the model came from one,
            and `()` for none.
        seed: makes what is drawn the same again, on any backend; None draws anew.
        pad_token_id: what fills a row behind its end; the (first) `eos_token_id`, or 0, if None.
        num_return_sequences: continuations of each prompt, drawn apart; they stand next to each other.
        stop: strings at which a row ends (needs a tokenizer). Text leaves them out.
        stream: return an iterator over the new tokens instead: (rows,) int32 a step, or pieces of text.
        state: a `Memory` to go on from, or the state that the model returned. Its batch is that of the prompts.
        return_state: return `(result, Memory)`; the memory has read every token up to the end of its row.
        state_dtype: dtype of the recurrent states (`MixerState.ssm`) between new tokens, `"float32"` or `"bfloat16"`,
            which halves what many rows read and write for a token, and rounds them each time; prompts are read in
            float32, and memories that are returned have that.
        tokenizer: in place of `model.tokenizer`.

    Returns:
        (batch x num_return_sequences, length + max_new_tokens) int32: the prompts as they came and their new tokens.
        For text, the prompts with their continuations, a string or a list as they came.

    Raises:
        ValueError: an empty prompt, an id outside the vocabulary, a number below 1, an unknown sampler, a mask or a
            state that does not fit; before anything is computed.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.generation import TopP
    >>> model = dl_mamba.MambaCausalLM(vocab_size=256, d_model=8, num_layers=1)
    >>> model.generate(np.array([[3, 1, 4]]), max_new_tokens=3, sampler=TopP(p=0.9), seed=0).shape
    (1, 6)
    >>> model.tokenizer = dl_mamba.tokenizers.ByteTokenizer()
    >>> text = model.generate("The", max_new_tokens=5)
    >>> text.startswith("The")
    True
    """
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    check_count("max_new_tokens", max_new_tokens)
    check_count("num_return_sequences", num_return_sequences)
    texts = as_texts(input_ids)
    prompts = to_prompts(model, encoded(texts, input_ids, tokenizer), attention_mask, state)
    if eos_token_id is None:
        eos_token_id = getattr(model, "carried", {}).get("eos_token_id")
    end = to_ids(eos_token_id, "eos_token_id", model.config.vocab_size)
    pad = to_ids(pad_token_id, "pad_token_id", model.config.vocab_size)
    request = Request(
        model=model,
        prompts=prompts,
        texts=texts,
        single=isinstance(input_ids, str) and num_return_sequences == 1,
        max_new_tokens=int(max_new_tokens),
        sampler=to_sampler(sampler),
        end=end,
        pad=(pad or end or (0,))[0],
        seed=seed,
        copies=int(num_return_sequences),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        memory=to_memory(model, state, len(prompts.given)),
        keep=return_state,
        state_dtype=to_state_dtype(state_dtype),
        tokenizer=tokenizer,
    )
    check_combination(request, stream)
    if stream:
        return _stream(request)
    tokens, memory = _all_tokens(request)
    result = _result(request, tokens)
    return (result, memory) if return_state else result


def prefill(model: keras.Model, input_ids: Any, attention_mask: Any = None, state: Any = None) -> Memory:
    """Read prompts, at flat memory whatever their length, and keep what is needed to go on from there.

    Args:
        model, input_ids, attention_mask, state: those of `generate`.

    Returns:
        The `Memory` behind each row's last token: for `generate(..., state=)`, any number of times.

    Raises:
        ValueError: as `generate`.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.generation import fork, prefill
    >>> model = dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1)
    >>> document = prefill(model, np.array([[3, 1, 4, 1, 5]]))
    >>> model.generate(np.array([[7], [8]]), max_new_tokens=2, state=fork(document, 2)).shape
    (2, 3)
    """
    prompts = encoded(as_texts(input_ids), input_ids, getattr(model, "tokenizer", None))
    prompts = read_prompts(prompts, attention_mask, model.config.vocab_size)
    memory = to_memory(model, state, len(prompts.given))
    return read(model, prompts.ids, prompts.mask, None if memory is None else memory.state)


def _all_tokens(request: Request) -> tuple[np.ndarray, Memory | None]:
    """New tokens (rows, taken), and the memory behind them if it is wanted."""
    if not isinstance(request.sampler, Sampler):
        return generate_with(request), None
    decoding = request.begin()
    if isinstance(request.sampler, Beam):
        return _best_beams(request, decoding)
    size = 1 if request.stop else request.max_new_tokens
    parts = [tokens for tokens, _ in _steps(request, decoding, size)]
    return np.concatenate(parts, axis=1), decoding.memory() if request.keep else None


def _best_beams(request: Request, decoding: Decoding) -> tuple[np.ndarray, Memory | None]:
    written = decoding.take(request.max_new_tokens)
    tokens, winners = request.sampler.best(written["token"], written["parent"], decoding.carry)
    if not request.keep:
        return tokens, None
    rows = ops.convert_to_tensor(winners.astype("int32"))
    return tokens, keras.tree.map_structure(lambda x: ops.take(x, rows, axis=0), decoding.memory())


def _steps(request: Request, decoding: Decoding, size: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """New tokens (rows, n) as they come, `size` at a time, and all new texts so far if they matter on the way."""
    texts = request.new_texts() if size == 1 and (request.stop or request.texts) else None
    tokens = np.zeros((len(request.prompts.given) * request.copies, 0), "int32")
    while tokens.shape[1] < request.max_new_tokens and not decoding.finished:
        new = decoding.take(min(size, request.max_new_tokens - tokens.shape[1]))["token"].T
        tokens = np.concatenate([tokens, new], axis=1)
        so_far = [] if texts is None else [texts.of(row, ids) for row, ids in enumerate(tokens)]
        if request.stop:
            decoding.end_rows(np.array([cut(text, request.stop)[1] for text in so_far]))
        yield new, so_far


def _stream(request: Request) -> Iterator[Any]:
    texts = request.new_texts() if request.texts else None
    so_far: list[str] = []
    for tokens, so_far in _steps(request, request.begin(), 1):
        yield tokens[:, 0] if texts is None else _pieces(request, texts, so_far, last=False)
    if texts is not None:
        yield _pieces(request, texts, so_far, last=True)


def _pieces(request: Request, texts: Texts, so_far: list[str], last: bool) -> str | list[str]:
    """What of each text can be shown now and was not shown yet."""
    pieces = []
    for row, text in enumerate(so_far):
        text, ended = cut(text, request.stop)
        pieces.append(texts.fresh(row, text, request.stop, last or ended))
    return pieces[0] if request.single else pieces


def _result(request: Request, tokens: np.ndarray) -> Any:
    """Ids (rows, length + max_new_tokens), or texts."""
    if request.texts is None:
        prompts = request.prompts.given.repeat(request.copies, axis=0)
        missing = request.max_new_tokens - tokens.shape[1]
        return np.concatenate([prompts, np.pad(tokens, [[0, 0], [0, missing]], constant_values=request.pad)], axis=1)
    new, prompts = request.new_texts(), [text for text in request.texts for _ in range(request.copies)]
    found = [prompts[row] + cut(new.of(row, ids), request.stop)[0] for row, ids in enumerate(tokens)]
    return found[0] if request.single else found
