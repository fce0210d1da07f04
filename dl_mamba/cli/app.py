"""The commands: options in, a call into `dl_mamba.pipelines`, a few lines out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from dl_mamba.cli import options
from dl_mamba.cli.session import session, show

app = typer.Typer(
    help="Mamba state-space models for Keras 3: train a classifier from a file, use it, look around.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the model, its metrics and figures.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(help="Passes over the data, at most.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Of weights, split and order.")] = 0,
) -> None:
    """Learn handwritten digits, save the model, load it in a new process, compare, draw."""
    with session():
        from dl_mamba.pipelines.demo import run_demo
        from dl_mamba.pipelines.progress import RichProgress

        with RichProgress() as progress:
            report = run_demo(out, callbacks=[progress], epochs=epochs, seed=seed)
    metrics = report.metrics
    show(
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
    data: options.Data = None,
    task: options.Task = None,
    tasks: Annotated[Path | None, typer.Option(help="Several tasks: a TOML or JSON file.", show_default=False)] = None,
    valid: Annotated[Path | None, typer.Option(help="Validation data; a part of --data if not given.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test data, scored once at the end.")] = None,
    out: Annotated[Path, typer.Option(help="Model file to write.")] = Path("model.keras"),
    init: Annotated[str | None, typer.Option(help="Pretrained: folder, hub repository or .keras file.")] = None,
    lora: Annotated[int | None, typer.Option(help="Train adapters of this rank in place of the backbone.")] = None,
    lora_target: Annotated[list[str] | None, typer.Option(help="What they adapt, e.g. embedding; repeatable.")] = None,
    bidirectional: options.Directions = None,
    family: options.Family = None,
    variant: Annotated[str | None, typer.Option(help="Size: see dl-mamba variants.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data, at most.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step.", show_default=False)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default=False)] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout rate, 0 to below 1.", show_default=False)] = None,
    pooling: Annotated[str | None, typer.Option(help="mean, last, max or attention.", show_default=False)] = None,
    patience: Annotated[int | None, typer.Option(help="Epochs without a gain before it stops.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest text in tokens; the rest is cut.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, split and order.")] = 0,
    text_column: options.Column = None,
    label_column: options.Column = None,
    baseline: Annotated[bool, typer.Option("--baseline", help="Also fit a bag-of-words logistic regression.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the run's state; go on if it was killed.")] = False,
) -> None:
    """Train a model for a task, or for several, and write it as one .keras file.

    Without --task it classifies texts, or rows of numbers. docs/data_formats.md has the format of each task's data.
    """
    changes = {"family": family, "variant": variant, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    changes |= {"learning_rate": learning_rate, "dropout_rate": dropout, "pooling": pooling, "patience": patience}
    changes |= {"max_length": max_length, "init": init, "lora": lora, "lora_targets": lora_target}
    changes |= {"bidirectional": bidirectional, "resume": resume}
    files = {"data": data, "valid": valid, "test": test, "text_column": text_column, "label_column": label_column}
    with session():
        from dl_mamba.pipelines.progress import RichProgress
        from dl_mamba.pipelines.runs import run

        with RichProgress() as progress:
            outcome = run(task, tasks, files, out=out, baseline=baseline, callbacks=[progress], **changes)
    for note in outcome.notes:
        print(note, file=sys.stderr)
    show(_training_lines(outcome))


@app.command()
def predict(
    model: options.Model,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to read.")] = None,
    data: Annotated[Path | None, typer.Option(help="File to read, in the format of the task.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for all results: .jsonl; .csv or .parquet of classes.")] = None,
    task: options.Name = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of a task that continues texts.")] = 100,
    text_column: options.Column = None,
    label_column: options.Column = None,
) -> None:
    """Print the label and its probability for each text or row of a file, or the answer of another task as JSON."""
    with session():
        from dl_mamba.pipelines.prediction import Predictions
        from dl_mamba.pipelines.prediction import predict as run

        columns = {"text_column": text_column, "label_column": label_column}
        found = run(model, texts or (), data=data, out=out, task=task, max_new_tokens=max_new_tokens, **columns)
    lines = found.lines()
    if out is None:
        print("\n".join(lines))
    else:
        print(f"wrote {len(lines)} predictions to {out}")
    if isinstance(found, Predictions) and found.accuracy is not None:
        print(f"accuracy {found.accuracy:.4f} of {len(found.labels)}", file=sys.stderr)


@app.command()
def evaluate(
    model: options.Model,
    data: Annotated[Path, typer.Option(help="Labelled data, in the format of the task.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json, classes.csv and figures.")] = Path("report"),
    task: options.Name = None,
    text_column: options.Column = None,
    label_column: options.Column = None,
) -> None:
    """Score a model on labelled data: metrics, a table of the classes, and figures."""
    with session():
        from dl_mamba.pipelines.evaluation import evaluate as run

        found = run(model, data, out, task=task, text_column=text_column, label_column=label_column)
    for note in found.notes:
        print(note, file=sys.stderr)
    show({**_flat(found.metrics), **{f"{name} file": str(file) for name, file in found.files.items()}})


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
    revision: options.Revision = None,
) -> None:
    """Continue a text, token by token; greedy unless an option draws."""
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    with session():
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
    source: options.Source,
    destination: Annotated[str, typer.Argument(help="Folder to write, or a .keras file.", show_default=False)],
    format: Annotated[str | None, typer.Option(help="hf, mamba_ssm or keras; by the name of DESTINATION.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; as it is if not given.")] = None,
    revision: options.Revision = None,
) -> None:
    """Write a published checkpoint in another format."""
    with session(say=False):
        from dl_mamba.pipelines.checkpoints import convert as run

        lines = run(source, destination, format=format, dtype=dtype, revision=revision)
    show(lines)


@app.command()
def inspect(source: options.Source, revision: options.Revision = None) -> None:
    """Show config and tensors of a published checkpoint, and what would be loaded as what."""
    with session(say=False):
        from dl_mamba.pipelines.checkpoints import inspect as run
        from dl_mamba.weights import Checkpoint, resolve

        checkpoint = Checkpoint(resolve(source, revision))
        found = run(checkpoint)
        show({**found.lines, "options": ", ".join(f"{name}={value!r}" for name, value in found.options.items())})
        rows = [(f"{count}x", *cells) for count, *cells in found.tensors]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        checkpoint.check()


@app.command()
def variants(family: options.Family = None) -> None:
    """List the sizes that --variant takes."""
    with session(say=False):
        from dl_mamba.pipelines.environment import variant_rows

        rows = variant_rows(family)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row.values()))
    Console().print(table)


@app.command()
def info(check: options.Check = False) -> None:
    """Show versions, backend, devices and the implementations of each op."""
    with session():
        from dl_mamba.pipelines.environment import check_kernels, describe

        if check:
            check_kernels()
        found = describe()
    show(
        {
            **found["versions"],
            "devices": ", ".join(found["devices"]),
            "Triton kernels": found["kernels"],
            **{f"implementations of {op}": ", ".join(names) for op, names in found["implementations"].items()},
        }
    )


def _training_lines(outcome: Any) -> dict[str, str]:
    metrics = outcome.metrics
    start = metrics.get("init", f"{metrics['recipe']['family']} {metrics['recipe']['variant']}")
    lines = {
        "model": f"{start}, {metrics['parameters']:,} parameters",
        "epochs": f"{len(metrics['history']['loss'])}, best {metrics['best_epoch']}, {metrics['seconds']:.0f} s",
    }
    if "trainable" in metrics:
        lines["trained"] = f"{metrics['trainable']:,} weights"
    for part in ("train", "valid", "test"):
        for name, value in metrics.get(part, {}).items():
            if name not in ("examples", "loss"):
                lines[f"{part} {name.replace('_', ' ')}"] = f"{value:.4f} of {metrics[part]['examples']}"
    if "baseline" in metrics:
        lines["bag of words"] = f"{metrics['baseline']['accuracy']:.4f} on {metrics['baseline']['scored_on']}"
    return {**lines, **{f"{name} file": str(file) for name, file in outcome.files.items()}}


def _flat(metrics: dict[str, Any], before: str = "") -> dict[str, str]:
    """Metrics as lines; those inside another one behind its name."""
    lines = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            lines |= _flat(value, f"{before}{name} ")
        else:
            shown = f"{value:.4f}" if isinstance(value, float) else "none" if value is None else f"{value:,}"
            lines[f"{before}{name}".replace("_", " ")] = shown
    return lines
