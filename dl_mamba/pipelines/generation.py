"""A prompt continued by a language model from a folder, the hub or a file, piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dl_mamba.generation import Greedy, Sampler
from dl_mamba.heads.task_model import TaskModel
from dl_mamba.models.causal_lm import CausalLM
from dl_mamba.pipelines.checkpoints import MODELS
from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.files import load_model
from dl_mamba.tokenizers import ByteTokenizer, HuggingFaceTokenizer
from dl_mamba.weights import Checkpoint, resolve
from dl_mamba.weights.containers import DTYPES


class Continuation:
    """The new text of a prompt, as an iterator over its pieces, one for each token.

    Args:
        model: a language model with a tokenizer.
        prompt: what it continues.
        max_new_tokens: at most so many tokens.
        sampler: how each is chosen; see `dl_mamba.generation`.
        **options: of `generate`, such as `seed` and `stop`.

    Attributes:
        tokens: how many came so far.
        first: seconds until the first one, with reading the prompt and with compilation.
        rate: tokens a second after the first one.

    Raises:
        InputError: an option does not fit.

    Example:

    >>> import dl_mamba
    >>> from dl_mamba.pipelines.generation import Continuation
    >>> model = dl_mamba.MambaCausalLM(256, 8, 1, tokenizer=dl_mamba.tokenizers.ByteTokenizer())
    >>> text = Continuation(model, "The", 3)
    >>> type("".join(text)).__name__, text.tokens
    ('str', 3)
    """

    def __init__(self, model: CausalLM, prompt: str, max_new_tokens: int, sampler: Any = "greedy", **options: Any):
        if model.tokenizer is None:
            raise InputError(
                f"there is no tokenizer.json beside the weights, and the model's {model.config.vocab_size} tokens are "
                "not the 256 bytes; name a tokenizer.json with --tokenizer."
            )
        self.tokens, self.first, self.rate = 0, 0.0, 0.0
        self._begin = time.perf_counter()
        try:
            self._pieces = model.generate(prompt, max_new_tokens, sampler, stream=True, **options)
        except ValueError as error:
            raise InputError(str(error)) from error

    def __iter__(self) -> Iterator[str]:
        piece = next(self._pieces)
        while piece is not None:
            now = time.perf_counter() - self._begin
            following = next(self._pieces, None)
            if following is not None:  # the last piece is text that waited, no token
                self.tokens += 1
                self.first = self.first or now
                self.rate = (self.tokens - 1) / (now - self.first) if self.tokens > 1 else 0.0
            yield piece
            piece = following


def load_language_model(
    source: str | Path, dtype: str | None = None, revision: str | None = None, tokenizer: str | Path | None = None
) -> CausalLM:
    """The language model of a checkpoint or of a .keras file.

    A model of 256 tokens that has no tokenizer reads bytes.

    Args:
        source: a folder, a repository of the Hugging Face hub, or a .keras file.
        dtype: of a checkpoint's model; float32 if None.
        revision: branch, tag or commit of the repository.
        tokenizer: a tokenizer.json, or the folder of one, in place of the model's own.

    Raises:
        InputError: a file is missing or holds another kind of model.
        CheckpointError: the checkpoint is damaged or unknown.

    Example:

    >>> import tempfile, dl_mamba
    >>> from dl_mamba.pipelines.generation import load_language_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1).save_pretrained(folder)
    ...     type(load_language_model(folder)).__name__
    'MambaCausalLM'
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
    own = None if tokenizer is None else _tokenizer(Path(tokenizer))
    if Path(source).suffix == ".keras":
        model = load_model(source, (CausalLM, TaskModel), "a MambaCausalLM, Mamba2CausalLM or TaskModel")
        model = _of_task(model, source) if isinstance(model, TaskModel) else model
    else:
        checkpoint = Checkpoint(resolve(source, revision))
        model = MODELS[type(checkpoint.config)].from_pretrained(checkpoint.folder, dtype=dtype)
    if own is not None:
        model.tokenizer = own
    elif model.tokenizer is None and model.config.vocab_size == ByteTokenizer.vocab_size:
        model.tokenizer = ByteTokenizer()
    return model


def _of_task(model: TaskModel, source: str | Path) -> CausalLM:
    try:
        return model.to_causal_lm()
    except ValueError as error:
        raise InputError(f"{source} continues no texts: {error}") from error


def sampler_of(temperature: float | None, repetition_penalty: float | None, **filters: Any) -> Sampler:
    """A sampler of the filters that are given; greedy if there is none and no temperature.

    Raises:
        InputError: a number lies outside its range.

    Example:

    >>> from dl_mamba.pipelines.generation import sampler_of
    >>> type(sampler_of(None, None, top_k=None)).__name__, sampler_of(None, None, top_k=3).top_k
    ('Greedy', 3)
    """
    given = {name: value for name, value in filters.items() if value is not None}
    try:
        if temperature is None and not given:
            return Greedy(repetition_penalty=repetition_penalty)
        return Sampler(
            temperature=1.0 if temperature is None else temperature, repetition_penalty=repetition_penalty, **given
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _tokenizer(path: Path) -> HuggingFaceTokenizer:
    if not path.exists():
        raise InputError(f"{path} does not exist; a tokenizer.json or the folder of one is needed.")
    try:
        return HuggingFaceTokenizer.from_folder(path if path.is_dir() else path.parent)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise InputError(f"{path} gives no tokenizer: {error}") from error
