"""The commands: options in, a call into `dl_mamba.pipelines`, a few lines out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dl_mamba import BACKEND, REASON

app = typer.Typer(
    help="Mamba state-space models for Keras 3: train a classifier from a file, use it, look around.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Data = Annotated[Path, typer.Option(help="Training data: .csv, .tsv, .jsonl or .parquet.", show_default=False)]
Column = Annotated[str | None, typer.Option(help="Name of the column in the file's header.", show_default=False)]
Family = Annotated[str | None, typer.Option(help="mamba or mamba2.", show_default=False)]
Source = Annotated[
    str, typer.Argument(help="Folder, hub repository such as state-spaces/mamba-130m-hf, or .keras file.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.", show_default=False)]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the model, its metrics and figures.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(help="Passes over the data, at most.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, split and order.")] = 0,
) -> None:
    """Learn handwritten digits, save the model, load it in a new process, compare, draw."""
    with _session():
        from dl_mamba.pipelines.demo import run_demo
        from dl_mamba.pipelines.progress import RichProgress

        with RichProgress() as progress:
            report = run_demo(out, callbacks=[progress], epochs=epochs, seed=seed)
    metrics = report.metrics
    _show(
        {
            "held-out accuracy": f"{report.accuracy:.2%} of {report.examples} digits",
            "parameters": f"{metrics['parameters']:,}",
            "epochs": f"{len(metrics['history']['loss'])}, best {metrics['best_epoch']}",
            "training took": f"{metrics['seconds']:.0f} s",
            "loaded in a new process": ("same probabilities" if report.agrees else "OTHER PROBABILITIES")
            + f" (largest difference {report.difference:.1e}, allowed 1e-05)",
            **{f"{name} file": str(file) for name, file in report.files.items()},
        }
    )
    if not report.agrees:
        raise typer.Exit(1)


@app.command()
def train(
    data: Data,
    valid: Annotated[Path | None, typer.Option(help="Validation data; a part of --data if not given.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test data, scored once at the end.")] = None,
    out: Annotated[Path, typer.Option(help="Model file to write.")] = Path("model.keras"),
    family: Family = None,
    variant: Annotated[str | None, typer.Option(help="Size: see dl-mamba variants.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data, at most.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step.", show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default=False)] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout rate, 0 to below 1.", show_default=False)] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, last, max or attention.", show_default=False)] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a gain before it stops.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest text in bytes; the rest is cut.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, split and order.")] = 0,
    text_column: Column = None,
    label_column: Column = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also fit a bag-of-words logistic regression.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the run's state; go on if it was killed.")] = False,
) -> None:
    """Train a classifier of texts, or of rows of numbers, and write it as one .keras file."""
    changes = {"family": family, "variant": variant, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    changes |= {"learning_rate": learning_rate, "dropout_rate": dropout, "pooling": pooling, "patience": patience}
    files = {"valid": valid, "test": test, "out": out, "text_column": text_column, "label_column": label_column}
    with _session():
        from dl_mamba.pipelines.progress import RichProgress
        from dl_mamba.pipelines.training import train as run

        with RichProgress() as progress:
            kept = {"baseline": baseline, "resume": resume, "callbacks": [progress], "max_length": max_length}
            outcome = run(data, **files, **kept, **changes)
    for note in outcome.notes:
        print(note, file=sys.stderr)
    _show(_training_lines(outcome))


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Model file that dl-mamba train wrote.", show_default=False)],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to classify.")] = None,
    data: Annotated[Path | None, typer.Option(help="File to classify: .csv, .tsv, .jsonl or .parquet.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for all probabilities: .csv, .jsonl or .parquet.")] = None,
    text_column: Column = None,
    label_column: Column = None,
) -> None:
    """Print the label and its probability for each text, or for each row of a file."""
    with _session():
        from dl_mamba.pipelines.prediction import predict as run

        columns = {"text_column": text_column, "label_column": label_column}
        found = run(model, texts or (), data=data, out=out, **columns)
    if out is None:
        for label, row, given in zip(found.labels, found.probabilities, found.inputs, strict=True):
            print(f"{label}\t{row.max():.4f}" + (f"\t{given}" if isinstance(given, str) else ""))
    else:
        print(f"wrote {len(found.labels)} predictions to {out}")
    if found.accuracy is not None:
        print(f"accuracy {found.accuracy:.4f} of {len(found.labels)}", file=sys.stderr)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Folder, hub repository or .keras file.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input.", show_default=False)],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens, at most.")] = 100,
    temperature: Annotated[float | None, typer.Option(help="Draw, from logits divided by this.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the tokens that make up this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Draw from tokens so probable beside the first.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: what was said is less probable.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text at which it ends; may be given again.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Of a checkpoint's model; float32 if not given.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json, if not beside the weights.")] = None,
    revision: Revision = None,
) -> None:
    """Continue a text, token by token; greedy unless an option draws."""
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    with _session():
        from dl_mamba.pipelines.generation import Continuation, load_language_model, sampler_of

        sampler = sampler_of(temperature, repetition_penalty, **filters)
        prompt = sys.stdin.read() if prompt == "-" else prompt
        found = load_language_model(model, dtype, revision, tokenizer)
        text = Continuation(found, prompt, max_new_tokens, sampler, seed=seed, stop=stop or ())
        print(prompt, end="", flush=True)
        for piece in text:
            print(piece, end="", flush=True)
    print()
    print(f"{text.tokens} tokens, the first after {text.first:.2f} s, then {text.rate:.1f} a second", file=sys.stderr)


@app.command()
def convert(
    source: Source,
    destination: Annotated[str, typer.Argument(help="Folder to write, or a .keras file.", show_default=False)],
    format: Annotated[str | None, typer.Option(help="hf, mamba_ssm or keras; by the name of DESTINATION.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; as it is if not given.")] = None,
    revision: Revision = None,
) -> None:
    """Write a published checkpoint in another format."""
    with _session(say=False):
        from dl_mamba.pipelines.checkpoints import convert as run

        lines = run(source, destination, format=format, dtype=dtype, revision=revision)
    _show(lines)


@app.command()
def inspect(source: Source, revision: Revision = None) -> None:
    """Show config and tensors of a published checkpoint, and what would be loaded as what."""
    with _session(say=False):
        from dl_mamba.pipelines.checkpoints import inspect as run
        from dl_mamba.weights import Checkpoint, resolve

        checkpoint = Checkpoint(resolve(source, revision))
        found = run(checkpoint)
        _show({**found.lines, "options": ", ".join(f"{name}={value!r}" for name, value in found.options.items())})
        rows = [(f"{count}x", *cells) for count, *cells in found.tensors]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        checkpoint.check()


@app.command()
def variants(family: Family = None) -> None:
    """List the sizes that --variant takes."""
    with _session(say=False):
        from dl_mamba.pipelines.environment import variant_rows

        rows = variant_rows(family)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row.values()))
    Console().print(table)


@app.command()
def info() -> None:
    """Show versions, backend, devices and the implementations of each op."""
    with _session():
        from dl_mamba.pipelines.environment import describe

        found = describe()
    _show(
        {
            **found["versions"],
            "devices": ", ".join(found["devices"]),
            "Triton kernels": found["kernels"],
            **{f"implementations of {op}": ", ".join(names) for op, names in found["implementations"].items()},
        }
    )


@contextmanager
def _session(say: bool = True) -> Iterator[None]:
    """Says which backend runs; a user's mistake becomes one line and exit code 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    signal.signal(signal.SIGTERM, _terminate)
    if say:
        print(f"backend: {BACKEND} ({REASON})", file=sys.stderr)
    from dl_mamba.pipelines.errors import InputError
    from dl_mamba.weights import CheckpointError

    try:
        yield
    except (InputError, CheckpointError) as error:
        _fail(error)


def _terminate(number: int, frame: Any) -> None:
    """End at once, and leave nothing half-written: an exception would be lost where Python code runs in a callback."""
    from dl_mamba.weights.publishing import discard_unfinished

    discard_unfinished()
    Console(stderr=True).show_cursor()
    os._exit(128 + number)


def _fail(error: Exception) -> None:
    print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
    raise typer.Exit(2) from error


def _training_lines(outcome: Any) -> dict[str, str]:
    metrics = outcome.metrics
    lines = {
        "model": f"{metrics['recipe']['family']} {metrics['recipe']['variant']}, {metrics['parameters']:,} parameters",
        "epochs": f"{len(metrics['history']['loss'])}, best {metrics['best_epoch']}, {metrics['seconds']:.0f} s",
    }
    for part in ("train", "valid", "test"):
        if part in metrics:
            lines[f"{part} accuracy"] = f"{metrics[part]['accuracy']:.4f} of {metrics[part]['examples']}"
    if "baseline" in metrics:
        lines["bag of words"] = f"{metrics['baseline']['accuracy']:.4f} on {metrics['baseline']['scored_on']}"
    return {**lines, **{f"{name} file": str(file) for name, file in outcome.files.items()}}


def _show(lines: dict[str, str]) -> None:
    table = Table(show_header=False, box=None)
    for name, value in lines.items():
        table.add_row(f"[bold]{name}[/bold]", value)
    Console(soft_wrap=True).print(table)
