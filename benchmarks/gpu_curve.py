"""The loss curve of one small model by the kernels and by the portable program: `python -m benchmarks.gpu_curve FILE`.

Trains a byte-level Mamba-2 (4 x 256, bfloat16 with float32 weights) on the text of FILE, same weights and batches
every time, once for each implementation of the backend of this process, and prints losses and their largest difference.
`--save` keeps the curves, `--against` compares with those of another process, e.g. of the other backend.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import keras
import numpy as np
import typer

import dl_mamba
from benchmarks.weights import value
from dl_mamba.ops import implementation_scope

BATCH, LENGTH, SMOOTHED = 16, 256, 20
SIZES = {"vocab_size": 256, "d_model": 256, "num_layers": 4, "d_state": 64, "headdim": 64}


def main(
    text: Annotated[Path, typer.Argument(help="Read as bytes.")],
    steps: Annotated[int, typer.Option(min=2)] = 500,
    implementations: Annotated[str, typer.Option(help="Which, with commas.")] = "triton,chunked",
    save: Annotated[Path | None, typer.Option(help="An .npz file.")] = None,
    against: Annotated[Path | None, typer.Option(help="An .npz file.")] = None,
) -> None:
    """Train, print, compare."""
    data = np.frombuffer(text.read_bytes(), "uint8").astype("int32")
    backend = keras.backend.backend()
    curves = {f"{backend} {name}": curve(data, steps, name) for name in implementations.split(",")}
    if save:
        np.savez(save, **curves)
    if against:
        curves = {**np.load(against), **curves}
    first = next(iter(curves))
    for name, losses in curves.items():
        smooth = smoothed(losses)
        difference = np.abs(smooth - smoothed(curves[first])).max()
        shown = " ".join(f"{smooth[min(i, len(smooth) - 1)]:.4f}" for i in range(0, steps, max(1, steps // 5)))
        print(f"{name:16s} {shown} end {smooth[-1]:.4f}; largest distance from {first}: {difference:.4f}", flush=True)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Means of `SMOOTHED` neighbours."""
    return np.convolve(losses, np.ones(SMOOTHED) / SMOOTHED, "valid")


def curve(data: np.ndarray, steps: int, implementation: str) -> np.ndarray:
    """The loss of each step."""
    model = dl_mamba.Mamba2CausalLM(**SIZES, dtype="mixed_bfloat16")
    for name, variable in model.pretrained_variables().items():
        variable.assign(value(name, tuple(variable.shape)) * (0.02 if name.endswith("embeddings") else 1.0))
    model.compile(dl_mamba.training.recipe(model, steps, 2e-3), jit_compile=keras.backend.backend() != "torch")
    starts = np.random.default_rng(0).integers(0, len(data) - LENGTH, (steps, BATCH))
    losses = []
    # "triton" is what "auto" takes on a GPU; a scope would ask kernels of every op
    with nullcontext() if implementation == "triton" else implementation_scope(implementation):
        for row in starts:
            ids = np.stack([data[start : start + LENGTH] for start in row])
            losses.append(float(model.train_on_batch(ids, return_dict=True)["loss"]))
            model.reset_metrics()
    return np.array(losses)


if __name__ == "__main__":
    typer.run(main)
