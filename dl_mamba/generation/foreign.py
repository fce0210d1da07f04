"""Samplers of keras_hub, or any object of their signature.

Their loop asks for logits by `next(prompt, cache, index)`, which reads the token before `index`. A recurrent state must
not read a token twice, so the prompt is read here up to its last token, which the sampler's first call then reads.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from keras import ops

from dl_mamba.generation.decoding import read
from dl_mamba.generation.programs import Programs
from dl_mamba.generation.request import Request


def generate_with(request: Request) -> np.ndarray:
    """New tokens (batch, max_new_tokens); a program is compiled for each prompt length and number of tokens."""
    model, sampler, (_, _, ids, mask) = request.model, request.sampler, request.prompts
    state = model.initial_state(len(ids)) if request.memory is None else request.memory.state
    length = ids.shape[1]
    if length > 1:
        state = read(model, ids[:, :-1], mask[:, :-1], state).state

    def run(prompt: Any, fixed: Any, state: Any) -> Any:
        return sampler(
            next=partial(next_logits, model),
            prompt=prompt,
            cache=state,
            index=length,
            mask=fixed,
            stop_token_ids=list(request.end) or None,
            hidden_states=None,
            model=model,
        )

    room = next(i for i in range(len(request.end) + 1) if i not in request.end)  # must not look like an end
    prompt = np.pad(ids, [[0, 0], [0, request.max_new_tokens]], constant_values=room)
    fixed = np.broadcast_to(np.arange(prompt.shape[1]) < length, prompt.shape)
    key = ("foreign", sampler, length, request.end)
    program = Programs.of(model).compiled(key, run, getattr(sampler, "variables", ()))
    tokens = program(ops.convert_to_tensor(prompt), ops.convert_to_tensor(fixed), state)
    tokens = ops.convert_to_numpy(tokens)[:, length:].astype("int32")
    ended = np.cumsum(np.isin(tokens, request.end), axis=1) - np.isin(tokens, request.end)
    return np.where(ended > 0, request.pad, tokens)


def next_logits(model: Any, prompt: Any, cache: Any, index: Any) -> tuple[Any, None, Any]:
    """What keras_hub calls `next`: logits behind the token before `index`, no hidden states, and the new state."""
    token = ops.slice(prompt, (0, index - 1), (prompt.shape[0], 1))
    logits, cache = model.next_logits(token, None, cache)
    return logits, None, cache
