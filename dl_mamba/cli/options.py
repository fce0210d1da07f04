"""Options and arguments that several commands take, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None, typer.Option(help="Training data: .csv, .tsv, .jsonl, .parquet or the task's own.", show_default=False)
]
Task = Annotated[
    str | None, typer.Option(help="Task, such as named_entity_recognition: see docs/tasks.md.", show_default=False)
]
Name = Annotated[str | None, typer.Option("--task", help="Name of the task, for a model of several.")]
Directions = Annotated[
    bool | None,
    typer.Option("--bidirectional/--causal", help="Read both ways, or left to right; by the task.", show_default=False),
]
Model = Annotated[Path, typer.Argument(help="Model file that dl-mamba train wrote.", show_default=False)]
Column = Annotated[str | None, typer.Option(help="Name of the column in the file's header.", show_default=False)]
Check = Annotated[
    bool,
    typer.Option(
        "--check", help="Compare the GPU kernels with the portable program; what is wrong is not used any more."
    ),
]
Family = Annotated[str | None, typer.Option(help="mamba or mamba2.", show_default=False)]
Source = Annotated[
    str, typer.Argument(help="Folder, hub repository such as state-spaces/mamba-130m-hf, or .keras file.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.", show_default=False)]
