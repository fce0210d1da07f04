"""A progress bar for `fit` that says what matters: epoch, loss, validation accuracy, time."""

from __future__ import annotations

from typing import Any

import keras

from dl_mamba.pipelines.errors import require


class RichProgress(keras.callbacks.Callback):
    """One line of progress over all epochs; where no terminal shows it, one printed line an epoch.

    Args:
        console: a `rich.console.Console`; None for one on standard error.

    Example:

    >>> from dl_mamba.pipelines.progress import RichProgress
    >>> with RichProgress() as progress:
    ...     callbacks = [progress]
    """

    def __init__(self, console: Any = None) -> None:
        super().__init__()
        self.console = console or require("rich.console", "the progress bar").Console(stderr=True)
        self._bar = None

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not self.console.is_terminal:
            return
        rich = require("rich.progress", "the progress bar")
        columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.TimeElapsedColumn())
        self._bar = rich.Progress(*columns, rich.TextColumn("{task.fields[note]}"), console=self.console)
        total = self.params["epochs"] * (self.params["steps"] or 1)
        self._task = self._bar.add_task("compiling", total=total, note="")
        self._bar.start()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=f"epoch {epoch + 1}/{self.params['epochs']}")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        note = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in (logs or {}).items())
        if self._bar is not None:
            self._bar.update(self._task, note=note)
        else:
            self.console.print(f"epoch {epoch + 1}/{self.params['epochs']}: {note}", highlight=False, soft_wrap=True)

    def on_train_end(self, logs: dict | None = None) -> None:
        self.close()

    def __enter__(self) -> RichProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar down, also where training was cut off."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
