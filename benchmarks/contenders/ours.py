"""The backbones and ops of this library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

import dl_mamba
from benchmarks.case import NEW_TOKENS, Case
from benchmarks.contenders import Work
from benchmarks.contenders.keras_work import COMPILED, layers_of, work_of
from benchmarks.contenders.op_work import on_keras
from benchmarks.contenders.parameters import config_of
from benchmarks.weights import token_ids, value

BACKBONES = {"mamba": dl_mamba.Mamba, "mamba2": dl_mamba.Mamba2}
LANGUAGE_MODELS = {"mamba": "MambaCausalLM", "mamba2": "Mamba2CausalLM"}  # an earlier revision may have none
PIECE = 4096  # tokens


def prepare(case: Case, **options: Any) -> Work:
    if case.op:
        return on_keras(case, getattr(dl_mamba.ops, case.op))
    if case.work == "generate":
        return _generate(case)
    model = BACKBONES[case.family](**config_of(case).to_dict(), **options)
    for variable in model.variables:
        for part in layers_of(variable):
            part.assign(value(part.path.partition("/")[2], tuple(part.shape)))
    if case.work in _STATEFUL:
        return _STATEFUL[case.work](case, model)
    return work_of(case, model, _hidden)


def _hidden(outputs: dict[str, Any]) -> Any:
    return outputs["last_hidden_state"]


def _token(case: Case, model: keras.Model) -> Work:
    """One more token after a prompt; the state travels from call to call."""
    ids = keras.ops.convert_to_tensor(token_ids(case.batch, 1, case.vocab_size))
    step = _with_state(case, model)
    outputs = {"state": model.initial_state(case.batch)}

    def run() -> Any:
        outputs.update(step(ids, outputs["state"]))
        return outputs["last_hidden_state"]

    return Work(run)


def _stream(case: Case, model: keras.Model) -> Work:
    """A sequence of any length, a piece at a time; the state travels from piece to piece."""
    ids = token_ids(case.batch, case.length, case.vocab_size)
    step = _with_state(case, model)

    def run() -> Any:
        outputs = {"state": model.initial_state(case.batch)}
        for start in range(0, case.length, PIECE):
            outputs = step(keras.ops.convert_to_tensor(ids[:, start : start + PIECE]), outputs["state"])
        return outputs["last_hidden_state"]

    return Work(run)


def _with_state(case: Case, model: keras.Model) -> Callable:
    return COMPILED[case.backend](lambda x, state: model(x, state=state, return_state=True), model)


def _generate(case: Case) -> Work:
    """New tokens after a prompt, prefill included."""
    model = getattr(dl_mamba, LANGUAGE_MODELS[case.family])(**config_of(case).to_dict())
    for name, variable in model.pretrained_variables().items():
        variable.assign(value(name, tuple(variable.shape)))
    ids = token_ids(case.batch, case.length, case.vocab_size)
    return Work(lambda: model.generate(ids, NEW_TOKENS), lambda tokens: {"tokens": tokens})


_STATEFUL = {"token": _token, "stream": _stream}
