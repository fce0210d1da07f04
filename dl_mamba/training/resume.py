"""The state of a training run in one file, so that a run that was killed goes on as if it had not been."""

from __future__ import annotations

import json
import os
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

STOPPING = ("wait", "best", "best_epoch", "stopped_epoch")


class Resume(keras.callbacks.Callback):
    """Writes the state of a run after each epoch, and takes it up again at the next `fit`.

    The file holds the weights, the optimizer, seeds and generators, the logs so far and what early stopping remembers.
    It is written beside its place and renamed, so that it is whole whenever the process dies. Keras' own
    `BackupAndRestore` keeps neither those seeds nor early stopping, and its two files can disagree.

    A run goes on bit for bit (float32, CPU, one machine) if its data depend on the epoch and on those generators alone.
    On TensorFlow `fit` shuffles arrays by a generator that cannot be read; give it a `keras.utils.PyDataset` there.

    Args:
        path: the file; `.npz`.
        stopping: callbacks of early stopping whose memory belongs to the run; they come before this one in `callbacks`.
        about: what makes the run what it is besides the model, such as data and options, as JSON holds it.

    Attributes:
        epoch: how many epochs the file holds; pass it as `initial_epoch` to `fit`.
        finished: whether early stopping had ended the run; pass `epochs` as `initial_epoch` then.
        history: logs of all epochs, by name, those before the interruption first.

    Raises:
        ValueError: the file is damaged, or that of another run; at `fit`, before anything is changed, of another model.

    Example:

    >>> import pathlib, tempfile
    >>> import numpy as np, dl_mamba
    >>> def run(epochs, path):
    ...     model = dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1)
    ...     model.compile(dl_mamba.training.recipe(model, steps=2))
    ...     resume = dl_mamba.training.Resume(path)
    ...     options = {"epochs": epochs, "initial_epoch": resume.epoch, "callbacks": [resume], "verbose": 0}
    ...     model.fit(np.ones((2, 4), "int32"), **options)
    ...     return resume.history["loss"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "run.npz")
    ...     first, both = run(1, path), run(2, path)
    >>> len(both), both[0] == first[0]
    (2, True)
    """

    def __init__(
        self,
        path: str | Path,
        stopping: Sequence[keras.callbacks.EarlyStopping] = (),
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.stopping = list(stopping)
        self.about = json.loads(json.dumps(dict(about)))
        self.epoch, self.finished, self.history = 0, False, {}
        if self.path.exists():
            kept = self._read()[1]
            self._compare(kept["about"])
            self.epoch, self.finished, self.history = kept["epoch"], kept["finished"], kept["history"]

    def on_train_begin(self, logs: Any = None) -> None:
        if not self.path.exists():
            return
        arrays, kept = self._read()
        variables = self._variables()
        self._check_shapes({name: tuple(variable.shape) for name, variable in variables.items()}, arrays, kept)
        for name, variable in variables.items():
            variable.assign(arrays[name])
        _set_random_state(arrays)
        for i, (callback, memory) in enumerate(zip(self.stopping, kept["stopping"], strict=True)):
            for name in STOPPING:
                setattr(callback, name, memory[name])
            if memory["weights"]:
                callback.best_weights = [arrays[f"stopping/{i}/{j}"] for j in range(memory["weights"])]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.epoch = epoch + 1
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        arrays = {name: _array(variable) for name, variable in self._variables().items()} | _random_state()
        stopping = []
        for i, callback in enumerate(self.stopping):
            weights = callback.best_weights or []
            arrays |= {f"stopping/{i}/{j}": np.asarray(weight) for j, weight in enumerate(weights)}
            memory = {name: _plain(getattr(callback, name)) for name in STOPPING}
            stopping.append({**memory, "weights": len(weights)})
        self.finished = bool(self.model.stop_training)
        names = ("epoch", "finished", "history", "about")
        kept = {**{name: getattr(self, name) for name in names}, "stopping": stopping}
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, kept=np.array(json.dumps(kept)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def _check_shapes(self, shapes: dict[str, tuple], arrays: dict[str, np.ndarray], kept: dict[str, Any]) -> None:
        there = {name: array.shape for name, array in arrays.items() if name.startswith(("model/", "optimizer/"))}
        odd = sorted(name for name in {**shapes, **there} if shapes.get(name) != there.get(name))
        what = [f"{name} has shape {there.get(name)} there, {shapes.get(name)} here" for name in odd[:3]]
        if len(kept["stopping"]) != len(self.stopping):
            what.append(f"it has {len(kept['stopping'])} callbacks of early stopping, {len(self.stopping)} are here")
        if what:
            raise ValueError(
                f"{self.path} is the state of another run: {'; '.join(what)}. Build and compile the model as that run "
                "did, or remove the file to begin anew."
            )

    def _compare(self, there: dict[str, Any]) -> None:
        names = sorted({*self.about, *there})
        odd = [name for name in names if self.about.get(name) != there.get(name)]
        if odd:
            differences = ", ".join(f"{name}={there.get(name)!r} there, {self.about.get(name)!r} here" for name in odd)
            raise ValueError(
                f"{self.path} is the state of another run: {differences}. Give the same, or remove the file."
            )

    def _variables(self) -> dict[str, keras.Variable]:
        """Weights, seeds and optimizer by their places: paths hold names that a process numbers anew."""
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        metrics = {id(variable) for variable in self.model.metrics_variables}
        model = [variable for variable in self.model.variables if id(variable) not in metrics]
        parts = {"model": model, "optimizer": optimizer.variables}
        return {f"{part}/{i}": variable for part, found in parts.items() for i, variable in enumerate(found)}

    def _read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            return arrays, json.loads(str(arrays.pop("kept")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{self.path} is no state of a run, or is damaged ({error}); remove it to begin anew."
            ) from error


def _array(variable: keras.Variable) -> np.ndarray:
    """The values; bfloat16, which the file does not know, as float32."""
    array = ops.convert_to_numpy(variable)
    return array.astype("float32") if array.dtype.kind == "V" else array


def _plain(value: Any) -> Any:
    """A number as JSON holds it."""
    return value.item() if isinstance(value, np.generic) else value


def _random_state() -> dict[str, np.ndarray]:
    """The generators of the process: Python's and NumPy's deal the data, torch's own draws Keras' dropout there."""
    version, numbers, _ = random.getstate()  # the third is None unless somebody drew gauss()
    _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - Keras draws from it
    state = {
        "random/python": np.array([version, *numbers], "int64"),
        "random/numpy_keys": keys,
        "random/numpy": np.array([position, has_gauss, cached]),
    }
    if keras.backend.backend() == "torch":
        import torch

        generators = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        state |= {f"random/torch_{i}": generator.numpy() for i, generator in enumerate(generators)}
    return state


def _set_random_state(arrays: dict[str, np.ndarray]) -> None:
    version, *numbers = arrays["random/python"].tolist()
    random.setstate((version, tuple(numbers), None))
    position, has_gauss, cached = arrays["random/numpy"]
    np.random.set_state(("MT19937", arrays["random/numpy_keys"], int(position), int(has_gauss), cached))  # noqa: NPY002
    if keras.backend.backend() == "torch":
        import torch

        torch.set_rng_state(torch.from_numpy(arrays["random/torch_0"]))
        for device in range(torch.cuda.device_count()):
            torch.cuda.set_rng_state(torch.from_numpy(arrays[f"random/torch_{device + 1}"]), device)
