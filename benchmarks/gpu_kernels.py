"""The Triton kernels on an NVIDIA GPU, from torch or JAX (KERAS_BACKEND): `python -m benchmarks.gpu_kernels`.

`--official FOLDER` names an unpacked source package of mamba_ssm, whose Triton kernels of SSD then run beside ours; its
selective scan does where its CUDA extension, `selective_scan_cuda`, can be imported. `--only` chooses rows by their
beginning, `--length` by their length. `--tune` prints time and error of each configuration of each kernel of SSD. On
torch the yardsticks run in the same process: causal attention with half as many channels, and our portable program (not
as a CUDA graph: it copies constants from the CPU).

The floor is every input read and every output written once, at 3.02 TB/s, for the selective scan also one exponential
for each state forward and two with backward, at 4.09 a picosecond (both measured on an H100).
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import keras
import numpy as np
import typer
from keras import ops

from benchmarks.gpu_times import both_of, forward_of, on_gpu, waited
from dl_mamba.ops import causal_conv1d, gated_rms_norm, selective_scan, ssd

BATCH, HEADS, WIDTH, CHANNELS, STATES = 8, 32, 64, 2048, 16
LENGTHS = (512, 1024, 2048, 8192)
LONG = (65536, 524288)
BYTES_PER_MS, EXPS_PER_MS = 3.02e9, 4.09e9


class Row(NamedTuple):
    """One line of the table: an op, what makes its inputs, and floors in ms, forward and with backward."""

    name: str
    length: int
    op: Callable
    inputs: Callable[[], dict[str, Any]]
    floors: tuple[float, float] | None = None
    captured: bool = True
    trained: bool = True


def draw(*shape: int, dtype: str = "bfloat16") -> Any:
    """Normal numbers."""
    return ops.cast(keras.random.normal(shape), dtype)


def ssd_inputs(batch: int, length: int, d_state: int) -> dict[str, Any]:
    """Random inputs of SSD in bfloat16, decays as a fresh Mamba-2 has them."""
    half = {"x": draw(batch, length, HEADS, WIDTH), "dt": 0.5 * draw(batch, length, HEADS)}
    half |= {name: draw(batch, length, 1, d_state) for name in ("B", "C")}
    A = np.random.default_rng(0).uniform(-16.0, -1.0, HEADS)
    return half | {"A": _float32(A), "D": draw(HEADS, dtype="float32"), "dt_bias": _bias(HEADS)}


def scan_inputs(batch: int, length: int) -> dict[str, Any]:
    """Random inputs of the selective scan in bfloat16, decays as a fresh Mamba has them."""
    half = {"x": draw(batch, length, CHANNELS), "dt": 0.5 * draw(batch, length, CHANNELS)}
    half |= {name: draw(batch, length, STATES) for name in ("B", "C")}
    A = np.tile(-np.arange(1.0, STATES + 1), (CHANNELS, 1))
    return half | {"A": _float32(A), "D": draw(CHANNELS, dtype="float32"), "dt_bias": _bias(CHANNELS)}


def ssd_rows(op: Callable, name: str, **options: Any) -> Iterator[Row]:
    """SSD of the shapes of Mamba-2, and of one long row."""
    for d_state in (64, 128):
        for batch, length in [(BATCH, length) for length in LENGTHS] + [(1, length) for length in LONG]:
            inputs = partial(ssd_inputs, batch, length, d_state)
            width = HEADS * WIDTH
            forward = 2 * width + 2 * d_state + HEADS
            backward = 3 * width + 4 * d_state + 2 * HEADS
            floors = _floors(batch * length, forward, backward)
            title = f"{name} n={d_state} batch {batch}"
            yield Row(title, length, partial(op, **options), inputs, floors, trained=batch > 1)


def rows() -> Iterator[Row]:
    """Every line of ours, and on torch its yardsticks."""
    yield from ssd_rows(ssd, "ssd", implementation="triton")
    for length in LENGTHS:
        forward, backward = 3 * CHANNELS + 2 * STATES, 5 * CHANNELS + 4 * STATES
        exps = BATCH * length * CHANNELS * STATES / EXPS_PER_MS
        floors = tuple(map(max, _floors(BATCH * length, forward, backward), (exps, 2 * exps)))
        op = partial(selective_scan, implementation="triton")
        yield Row("selective scan n=16", length, op, partial(scan_inputs, BATCH, length), floors)
    weights = lambda *shape: draw(*shape, dtype="float32")  # noqa: E731
    x = lambda: draw(BATCH, 2048, CHANNELS)  # noqa: E731
    taps = lambda: {"x": x(), "weight": weights(4, CHANNELS), "bias": weights(CHANNELS)}  # noqa: E731
    floor = _floors(BATCH * 2048, 2 * CHANNELS, 3 * CHANNELS)
    yield Row("causal conv + SiLU, 2048", 2048, partial(causal_conv1d, implementation="triton"), taps, floor)
    gated = lambda: {"x": x(), "weight": weights(CHANNELS), "z": x()}  # noqa: E731
    floor = _floors(BATCH * 2048, 3 * CHANNELS, 5 * CHANNELS)
    yield Row("gated RMS norm, 2048", 2048, partial(gated_rms_norm, implementation="triton"), gated, floor)
    for batch in (1, 64):
        yield _ssd_step(batch)
    if keras.backend.backend() == "torch":
        yield from yardsticks()


def yardsticks() -> Iterator[Row]:
    """Attention of torch, and our portable programs."""
    from torch.nn.attention import SDPBackend

    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        for length in LENGTHS:
            name = f"torch {backend.name.lower()}"
            yield Row(name, length, partial(attention, backend), partial(attention_inputs, length))
    portable = {"captured": False}
    inputs = partial(ssd_inputs, BATCH, 2048, 128)
    yield Row("ssd n=128, portable", 2048, partial(ssd, implementation="chunked"), inputs, **portable)
    inputs = partial(scan_inputs, BATCH, 2048)
    yield Row("selective scan, portable", 2048, partial(selective_scan, implementation="chunked"), inputs, **portable)


def attention(backend: Any, **inputs: Any) -> Any:
    """Causal attention of torch."""
    import torch
    from torch.nn.attention import sdpa_kernel

    with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(**inputs, is_causal=True)


def attention_inputs(length: int) -> dict[str, Any]:
    """16 heads of 64 channels, half as many as SSD has."""
    return {name: draw(BATCH, 16, length, 64) for name in ("query", "key", "value")}


def official_rows(folder: Path) -> Iterator[Row]:
    """SSD of mamba_ssm from its Python sources, and its selective scan where that has been compiled."""
    for name in ("", ".ops", ".utils"):
        package = types.ModuleType(f"mamba_ssm{name}")
        package.__path__ = [str(Path(folder, "mamba_ssm", *name.split(".")[1:]))]
        sys.modules[package.__name__] = package
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    yield from ssd_rows(mamba_chunk_scan_combined, "mamba_ssm", chunk_size=256, dt_softplus=True)
    if importlib.util.find_spec("selective_scan_cuda") is None:
        print("mamba_ssm selective scan: selective_scan_cuda is not installed", flush=True)
        return
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    for length in LENGTHS:
        yield Row("mamba_ssm scan n=16", length, partial(_official_scan, selective_scan_fn), partial(_turned, length))


def _official_scan(run, dt_bias, **inputs):
    u, delta = inputs.pop("x"), inputs.pop("dt")
    return run(u, delta, **inputs, delta_bias=dt_bias, delta_softplus=True)


def _turned(length):
    """The inputs of the selective scan as mamba_ssm wants them: channels before tokens."""
    inputs = scan_inputs(BATCH, length)
    return {k: v.transpose(1, 2).contiguous() if len(v.shape) == 3 else v for k, v in inputs.items()}


def _ssd_step(batch):
    size = HEADS * WIDTH * 128  # float32, read and written

    def inputs():
        return {**ssd_inputs(batch, 1, 128), "initial_state": draw(batch, HEADS, WIDTH, 128, dtype="float32")}

    op = partial(ssd, return_final_state=True, implementation="triton")
    return Row(f"ssd step n=128 batch {batch}", 1, op, inputs, _floors(batch, 4 * size, 0), trained=False)


def _floors(tokens, forward, backward):
    """Milliseconds for so many bfloat16 numbers of a token, forward and with backward."""
    return 2.0 * tokens * forward / BYTES_PER_MS, 2.0 * tokens * (forward + backward) / BYTES_PER_MS


def _float32(values):
    return ops.convert_to_tensor(values, dtype="float32")


def _bias(count):
    steps = np.logspace(-3, -1, count)
    return _float32(steps + np.log(-np.expm1(-steps)))


def measure(table: Sequence[Row]) -> None:
    """Print the table."""
    print(
        f"{'ms':30s} {'length':>7s} {'forward GPU':>14s} {'wall':>7s} {'with backward':>16s} {'wall':>7s}", flush=True
    )
    for row in table:
        inputs = row.inputs()
        works = [forward_of(row.op, inputs)] + ([both_of(row.op, inputs)] if row.trained else [])
        line = f"{row.name:30s} {row.length:7d}"
        for i, work in enumerate(works):
            wall = waited(work)
            gpu = on_gpu(work) if row.captured else float("nan")
            share = f"{100 * row.floors[i] / gpu:3.0f} %" if row.floors and row.captured else "     "
            line += f"  {gpu:8.4f} {share} {wall:7.3f}"
        print(line, flush=True)


def tune() -> None:
    """Print what each configuration of each kernel of SSD takes, and the largest error of what comes out."""
    from dl_mamba.ops.kernels import ssd as kernels

    op = partial(ssd, implementation="triton")
    for n in (64, 128):
        inputs, chosen = ssd_inputs(BATCH, 2048, n), {k: dict(v) for k, v in kernels.CONFIGURATIONS.items()}
        wanted = ops.cast(ssd(**inputs, implementation="chunked"), "float32")
        for kernel in chosen:
            for configuration in [(warps, stages) for warps in (4, 8) for stages in (1, 2, 3)]:
                kernels.CONFIGURATIONS[kernel][n] = configuration
                error = ops.norm(ops.cast(op(**inputs), "float32") - wanted) / ops.norm(wanted)
                times = on_gpu(forward_of(op, inputs)), on_gpu(both_of(op, inputs))
                print(n, kernel, configuration, times, f"error {float(error):.1e}", flush=True)
            kernels.CONFIGURATIONS[kernel][n] = chosen[kernel][n]


def main(
    official: Annotated[Path | None, typer.Option(help="An unpacked source package of mamba_ssm.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Rows whose name begins so; may be given again.")] = None,
    length: Annotated[int, typer.Option(help="Rows of this length alone; 0 for all.")] = 0,
    tuned: Annotated[bool, typer.Option("--tune", help="Print each configuration of SSD instead.")] = False,
) -> None:
    """Tune, or print the table."""
    if tuned:
        return tune()
    if official and keras.backend.backend() != "torch":
        raise typer.BadParameter("mamba_ssm runs on torch alone; set KERAS_BACKEND=torch.", param_hint="--official")
    if official and not (official / "mamba_ssm").is_dir():
        raise typer.BadParameter(
            f"{official} has no folder mamba_ssm; unpack its source package.", param_hint="--official"
        )
    found = chain(rows(), official_rows(official) if official else ())
    table = [row for row in found if row.name.startswith(tuple(only or [""])) and length in (0, row.length)]
    if not table:
        raise typer.BadParameter(f"no row for --only {only} --length {length}; leave them out to see all.")
    print(
        f"{keras.backend.backend()}; GPU and wall as in benchmarks/gpu_times.py, share of the floor beside", flush=True
    )
    measure(table)
    return None


if __name__ == "__main__":
    typer.run(main)
