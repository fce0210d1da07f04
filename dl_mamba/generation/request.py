"""What is asked of `generate`, read and checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import keras
import numpy as np
from keras import ops

from dl_mamba.generation.beam import Beam
from dl_mamba.generation.decoding import Decoding, Memory, read
from dl_mamba.generation.prompts import Prompts, read_prompts
from dl_mamba.generation.samplers import Greedy, MinP, Random, Sampler, TopK, TopP
from dl_mamba.generation.text import Texts

NAMES = {"greedy": Greedy, "random": Random, "top_k": TopK, "top_p": TopP, "min_p": MinP, "beam": Beam}

STATE_DTYPES = ("float32", "bfloat16")
_ROWS: WeakKeyDictionary[Any, list[tuple[int, ...]]] = WeakKeyDictionary()  # shapes of the state of one row, by model


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of `generate`; the fields are its arguments.

    Attributes:
        texts: the prompts as strings, or None for ids.
        single: whether one string came, not a list.
        end: ids that end a row.
    """

    model: keras.Model
    prompts: Prompts
    texts: list[str] | None
    single: bool
    max_new_tokens: int
    sampler: Any
    end: tuple[int, ...]
    pad: int
    seed: int | None
    copies: int
    stop: tuple[str, ...]
    memory: Memory | None
    keep: bool
    state_dtype: str
    tokenizer: Any

    def begin(self) -> Decoding:
        """Read the prompts."""
        memory = self.memory
        if self.prompts.ids.shape[1]:
            memory = read(self.model, self.prompts.ids, self.prompts.mask, None if memory is None else memory.state)
        rows = self.copies * self.sampler.rows
        return Decoding(
            self.model,
            self.sampler,
            fork(memory, rows),
            seen=self._seen().repeat(rows, axis=0) if self.sampler.needs_seen else None,
            end=self.end,
            pad=self.pad,
            seed=self.seed,
            keep=self.keep,
            state_dtype=self.state_dtype,
            expected=self.max_new_tokens,
        )

    def new_texts(self) -> Texts:
        """The new texts of the rows that are returned."""
        rows = [ids[real] for ids, real in zip(self.prompts.ids, self.prompts.mask, strict=True)]
        return Texts(self.tokenizer, [row for row in rows for _ in range(self.copies)], self.end)

    def _seen(self) -> np.ndarray:
        seen = np.zeros((len(self.prompts.ids), self.model.config.vocab_size), bool)
        row, column = np.nonzero(self.prompts.mask)
        seen[row, self.prompts.ids[row, column]] = True
        return seen


def fork(memory: Memory, copies: int) -> Memory:
    """Each row of a memory `copies` times, next to each other: one document, many questions.

    Args:
        memory: what `prefill` or `generate(..., return_state=True)` returned.
        copies: how many, >= 1.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.generation import fork
    >>> model = dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1)
    >>> fork(model.prefill(np.array([[3, 1, 4]])), 3).logits.shape[0]
    3
    """
    check_count("copies", copies)
    if copies == 1:
        return memory
    return keras.tree.map_structure(lambda x: None if x is None else ops.repeat(x, copies, axis=0), memory)


def as_texts(prompts: Any) -> list[str] | None:
    """A string or a list of strings as a list; None for anything else."""
    if isinstance(prompts, str):
        return [prompts]
    texts = isinstance(prompts, list | tuple) and len(prompts) > 0 and all(isinstance(p, str) for p in prompts)
    return list(prompts) if texts else None


def encoded(texts: list[str] | None, prompts: Any, tokenizer: Any) -> Any:
    """The ids of texts; other prompts stay as they are."""
    if texts is None:
        return prompts
    if tokenizer is None:
        raise ValueError(
            "a text was given and the model has no tokenizer; set model.tokenizer, e.g. to "
            "dl_mamba.tokenizers.ByteTokenizer(), or pass token ids."
        )
    return [row.tolist() for row in tokenizer.rows(texts)]


def check_count(name: str, value: Any) -> None:
    """Refuse what is no integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name}={value!r}; an integer >= 1 is needed.")


def to_sampler(sampler: Any) -> Any:
    """The sampler of a name; an object stays as it is."""
    if isinstance(sampler, str):
        if sampler not in NAMES:
            raise ValueError(f"sampler={sampler!r} is unknown; choose one of {list(NAMES)}, or an object such as TopP.")
        return NAMES[sampler]()
    if not isinstance(sampler, Sampler) and (sampler in NAMES.values() or not callable(sampler)):
        raise ValueError(f"sampler={sampler!r}; a name, or an object such as TopP(p=0.9) is needed.")
    return sampler


def to_state_dtype(dtype: Any) -> str:
    """The dtype of states between tokens."""
    if dtype not in STATE_DTYPES:
        raise ValueError(f"state_dtype={dtype!r}; one of {', '.join(map(repr, STATE_DTYPES))} is needed.")
    return dtype


def to_prompts(model: keras.Model, input_ids: Any, attention_mask: Any, state: Any) -> Prompts:
    """The prompts; none at all if a memory is to be continued as it is."""
    if input_ids is None and isinstance(state, Memory):
        nothing = np.zeros((state.logits.shape[0], 0), "int32")
        return Prompts(nothing, nothing.astype(bool), nothing, nothing.astype(bool))
    if input_ids is None:
        raise ValueError("input_ids is None; a prompt is needed, or as state the Memory that an earlier call returned.")
    return read_prompts(input_ids, attention_mask, model.config.vocab_size)


def to_memory(model: keras.Model, state: Any, batch: int) -> Memory | None:
    """The given state as a memory, if its shapes fit the model and the number of prompts."""
    if state is None:
        return None
    memory = state if isinstance(state, Memory) else Memory(state, None)
    shapes = lambda state: [tuple(leaf.shape) for leaf in keras.tree.flatten(state)]  # noqa: E731
    if model not in _ROWS:
        _ROWS[model] = shapes(model.initial_state(1))
    wanted, came = [(batch, *shape[1:]) for shape in _ROWS[model]], shapes(memory.state)
    if wanted != came:
        rows = came[0][0] if came else 0
        way = f" fork(state, {batch}) makes one row serve {batch} prompts." if rows == 1 else ""
        raise ValueError(
            f"state has {len(came)} tensors for a batch of {rows}; {len(wanted)} for a batch of {batch}, one row for "
            f"each prompt, of the same model are needed.{way}"
        )
    return memory


def check_combination(request: Request, stream: bool) -> None:
    """Refuse what a sampler cannot do."""
    asked = {
        "stream=True": stream,
        "stop": bool(request.stop),
        f"num_return_sequences={request.copies}": request.copies > 1,
        "return_state=True": request.keep,
        f"state_dtype={request.state_dtype!r}": request.state_dtype != STATE_DTYPES[0],
    }
    impossible = list(asked) if not isinstance(request.sampler, Sampler) else []
    impossible = list(asked)[:3] if isinstance(request.sampler, Beam) else impossible
    for name in impossible:
        if asked[name]:
            raise ValueError(f"{name} cannot go with sampler={request.sampler!r}; choose a sampler such as TopP.")
    if stream and request.keep:
        raise ValueError("stream=True cannot go with return_state=True; `prefill` the tokens that were streamed.")
    if request.stop and request.tokenizer is None:
        raise ValueError("stop strings need a tokenizer and the model has none; use eos_token_id, or set one.")
    if not isinstance(request.sampler, Sampler) and not request.prompts.ids.shape[1]:
        raise ValueError(f"sampler={request.sampler!r} needs a prompt; pass the last token as input_ids.")


def to_ids(end: int | Sequence[int] | None, name: str, vocab_size: int) -> tuple[int, ...]:
    """One id, or several, or none."""
    ids = () if end is None else tuple(int(i) for i in np.atleast_1d(end))
    for i in ids:
        if not 0 <= i < vocab_size:
            raise ValueError(f"{name}={end!r}; ids from 0 to {vocab_size - 1} are needed.")
    return ids
