"""What a token costs after 10 and after 10,000 others and in which precision, and a prompt beside a forward pass.

`KERAS_BACKEND=jax python -m benchmarks.long_generation` prints one table for models of the shape of 130m with random
weights; each time is the median of some runs.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import keras
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import dl_mamba
from benchmarks.report import machine
from dl_mamba.generation.programs import Programs

MODELS = {"mamba": dl_mamba.MambaCausalLM, "mamba2": dl_mamba.Mamba2CausalLM}
TOKENS = 64
PROMPT = 2048


def main(
    rounds: Annotated[int, typer.Option(help="Runs of each.", min=1)] = 5,
    layers: Annotated[int, typer.Option(help="Residual blocks.", min=1)] = 24,
    position: Annotated[int, typer.Option(help="Tokens before the late ones.", min=11)] = 10_000,
) -> None:
    """Measure both families on the backend of this process."""
    table = Table("family", "weights", "what", "ms", "of", "ms", "ratio", "MiB more")
    for family in MODELS:
        model = MODELS[family].from_variant("130m", num_layers=layers)
        table.add_row(family, "float32", *_positions(model, rounds, position))
        table.add_row(family, "float32", *_prompt(model, rounds))
        plain = _token(model, rounds)
        half = MODELS[family].from_variant("130m", num_layers=layers, dtype="bfloat16")
        table.add_row(family, "bfloat16", "a token", *_against(_token(half, rounds), "float32", plain), "")
        model.quantize("int8")
        table.add_row(family, "int8", "a token", *_against(_token(model, rounds), "float32", plain), "")
    console = Console(width=120)
    console.print(machine(os.cpu_count() or 1))
    console.print(table)


def _positions(model: keras.Model, rounds: int, position: int) -> tuple[str, ...]:
    early, late = _ages(model, rounds, position)
    memory, before = model.prefill(np.ones((1, 10), "int32")), _peak()
    model.generate(None, position, state=memory)
    grown = f"{_peak() - before:.0f}"
    return f"a token at {position:,}", *_against(late, "at 10", early), grown


def _ages(model: keras.Model, rounds: int, position: int) -> list[float]:
    """Seconds of a token after 10 and after `position` others, each first in turn: other work slows both alike."""
    seconds = {n: [] for n in (10, position)}
    memories = {n: model.prefill(np.ones((1, n), "int32")) for n in seconds}
    for turn in range(1 + rounds):
        for n in list(seconds)[:: -1 if turn % 2 else 1]:
            begin = time.perf_counter()
            model.generate(None, TOKENS, state=memories[n])
            seconds[n].append(time.perf_counter() - begin)
    return [statistics.median(found[1:]) / TOKENS for found in seconds.values()]


def _prompt(model: keras.Model, rounds: int) -> tuple[str, ...]:
    ids = np.ones((1, PROMPT), "int32")
    forward = Programs.of(model).compiled("plain forward", lambda x: model.backbone(x)["last_hidden_state"][:, -1])
    plain = _median(lambda: keras.ops.convert_to_numpy(forward(keras.ops.convert_to_tensor(ids))), rounds)
    prompt = _median(lambda: keras.ops.convert_to_numpy(model.prefill(ids).logits), rounds)
    return f"a prompt of {PROMPT:,}", *_against(prompt, "a forward pass", plain), ""


def _token(model: keras.Model, rounds: int) -> float:
    memory = model.prefill(np.ones((1, 10), "int32"))
    return _median(lambda: model.generate(None, TOKENS, state=memory), rounds) / TOKENS


def _against(seconds: float, name: str, other: float) -> tuple[str, str, str, str]:
    return f"{1e3 * seconds:.2f}", name, f"{1e3 * other:.2f}", f"{seconds / other:.2f}"


def _median(run: Callable[[], Any], rounds: int) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
