"""Log-likelihoods of given tokens, piece by piece with carried state: logits of one piece are all that is kept."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from dl_mamba.generation.programs import Programs
from dl_mamba.generation.prompts import chunks, read_prompts
from dl_mamba.models.loss import token_losses

CHUNK = 256  # tokens; logits of 50,000 words take 200 KB a token


class Score(NamedTuple):
    """Log-likelihoods in nats.

    Attributes:
        total: (batch,) float32, of each row.
        tokens: (batch, length) float32, of each token under those before it; 0 for the first one and for padding.

    Example:

    >>> import numpy as np, dl_mamba
    >>> model = dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1)
    >>> bool(model.score([[3, 1, 4]]).total[0] < 0)
    True
    """

    total: np.ndarray
    tokens: np.ndarray


def score(model: keras.Model, input_ids: Any, attention_mask: Any = None) -> Score:
    """See `CausalLM.score`."""
    prompts = read_prompts(input_ids, attention_mask, model.config.vocab_size)
    targets = np.pad(prompts.ids[:, 1:], [[0, 0], [0, 1]])
    compiled = keras.backend.backend() != "torch"
    program = Programs.of(model).compiled("score", lambda *args: _piece(model, *args))
    state, found = model.initial_state(len(prompts.ids)), []
    pieces = zip(
        chunks(prompts.ids, prompts.mask, CHUNK, compiled), chunks(targets, prompts.mask, CHUNK, compiled), strict=True
    )
    for (ids, mask), (targets, _) in pieces:
        mask = None if mask is None else ops.convert_to_tensor(mask)
        values, state = program(ops.convert_to_tensor(ids), ops.convert_to_tensor(targets), mask, state)
        found.append(ops.convert_to_numpy(values))
    # the value of a token stands at the one before it, and the first piece may begin with more padding
    packed = np.pad(np.concatenate(found, axis=1)[:, -prompts.ids.shape[1] :][:, :-1], [[0, 0], [1, 0]])
    first = np.cumsum(prompts.mask, axis=1) == 1
    tokens = np.zeros(prompts.given.shape, "float32")
    tokens[prompts.real] = np.where(first, 0.0, packed)[prompts.mask]
    return Score(tokens.sum(axis=1), tokens)


def _piece(model: keras.Model, ids: Any, targets: Any, mask: Any, state: Any) -> tuple[Any, Any]:
    outputs = model({"input_ids": ids, "attention_mask": mask}, state=state, return_state=True)
    return -token_losses(outputs["logits"], targets), outputs["state"]
