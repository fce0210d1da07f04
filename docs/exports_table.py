"""Try every export, compare what it computes with Keras, write the table of docs/export.md: `docs/exports_table.py`.

Each case runs in a process of its own: an exporter may change settings, or die. With names it runs those alone, e.g.
`python docs/exports_table.py jax torch/onnx`; the other rows are those of earlier runs, kept in build/exports.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, ROWS = ROOT / "docs" / "export.md", ROOT / "build" / "exports.jsonl"
BEGIN, END = "<!-- exports: begin -->", "<!-- exports: end -->"
FORMATS = {
    "tensorflow": ("tf_saved_model", "onnx", "litert"),
    "jax": ("tf_saved_model", "onnx", "litert"),
    "torch": ("tf_saved_model", "onnx", "onnx-dynamo", "torch", "litert"),
}
SUFFIX = {"tf_saved_model": "", "onnx": ".onnx", "onnx-dynamo": ".onnx", "torch": ".pt2", "litert": ".tflite"}
MODES = {"any batch, any length": (None, None), "any batch": (None, 9), "fixed": (2, 9)}
SHAPES = ((2, 9), (1, 3), (5, 40))  # of the checks: below and above a chunk of 4; a fixed program gets the first
LIMIT = 200  # seconds a case


def build(family: str, program: str, batch: int | None, length: int | None) -> Any:
    """A small model with random weights, as a functional model of one dictionary of inputs."""
    import keras
    from model_harness import WITH_HEAD, perturb, small_model

    import dl_mamba
    from dl_mamba.heads import NLPTaskConfig

    backbone = small_model(family, num_layers=1)
    if program != "classifier":
        return dl_mamba.stateful(backbone, 1 if program == "step" else length, batch)
    task = NLPTaskConfig("mood", "sentiment_analysis", num_classes=3, pooling="mean")
    model = perturb(WITH_HEAD[family](backbone.config, task))
    names = ("input_ids", "attention_mask")
    inputs = {name: keras.Input((length,), batch_size=batch, dtype="int32", name=name) for name in names}
    return keras.Model(inputs, model(inputs))


def batch_for(model: Any, batch: int, length: int) -> dict[str, Any]:
    """Random inputs; the last row of a classifier is padded on the left, where there is room."""
    import numpy as np

    rng, found = np.random.default_rng(length), {}
    for name, given in model.input.items():
        shape = [batch, *(length if size is None else size for size in given.shape[1:])]
        if name == "attention_mask":
            found[name] = np.ones(shape, "int32")
            found[name][-1, : shape[1] // 2] = 0
        else:
            ids = rng.integers(0, 11, shape).astype("int32")
            found[name] = ids if name == "input_ids" else rng.normal(size=shape).astype("float32")
    return found


def export(model: Any, path: str, kind: str, mode: str) -> None:
    """Write the file; `model.export` but for ONNX of torch's newer exporter."""
    import keras

    model(keras.tree.map_structure(keras.ops.convert_to_tensor, batch_for(model, *SHAPES[0])))
    options: dict[str, Any] = {}
    if kind == "onnx-dynamo":
        return export_dynamo(model, path)
    if kind == "torch" and mode != "fixed":
        options["dynamic_shapes"] = torch_shapes(model)
    if kind == "tf_saved_model" and keras.backend.backend() == "jax" and mode != "fixed":
        symbols = {name: f"({', '.join(axes)})" for name, axes in symbolic(model).items()}
        options["jax2tf_kwargs"] = {"polymorphic_shapes": [symbols]}
    if kind == "litert" and mode == "fixed":  # Keras forgets a fixed batch
        specs = {n: keras.InputSpec(shape=i.shape, dtype=i.dtype, name=n) for n, i in model.input.items()}
        options["input_signature"] = [specs]
    return model.export(path, format=kind, verbose=False, **options)


def symbolic(model: Any) -> dict[str, list[str]]:
    """The axes of each input: a number, or the name of one that is open."""
    names = ("batch", "length")
    return {
        name: [names[i] if size is None else str(size) for i, size in enumerate(given.shape)]
        for name, given in model.input.items()
    }


def torch_shapes(model: Any) -> Any:
    """The open axes in the words of `torch.export`."""
    from torch.export import Dim

    sizes = {"batch": Dim("batch", min=1, max=4096), "length": Dim("length", min=2, max=65536)}
    spec = {name: {i: sizes[a] for i, a in enumerate(axes) if a in sizes} for name, axes in symbolic(model).items()}
    return [(spec,)]


def export_dynamo(model: Any, path: str) -> None:
    """`torch.onnx.export` with a module that takes the inputs one by one, for fixed sizes."""
    import torch

    names = sorted(model.input)

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *values):
            return self.model(dict(zip(names, values, strict=True)))

    inputs = batch_for(model, *SHAPES[0])
    values = tuple(torch.as_tensor(inputs[name]) for name in names)
    torch.onnx.export(Flat().eval(), values, dynamo=True, verbose=False, input_names=names).save(path)


def load(path: str, kind: str) -> Any:
    """A function of numpy inputs by name to a list of numpy outputs, run by the format's own runtime."""
    return {"tf_saved_model": load_saved_model, "torch": load_torch, "litert": load_litert}.get(kind, load_onnx)(path)


def load_saved_model(path: str) -> Any:
    """TensorFlow, without Keras."""
    import tensorflow as tf

    served = tf.saved_model.load(path)
    return lambda x: served.serve({name: tf.constant(value) for name, value in x.items()})


def load_torch(path: str) -> Any:
    """torch, without Keras."""
    import torch

    module = torch.export.load(path).module()
    return lambda x: module({name: torch.as_tensor(value) for name, value in x.items()})


def load_onnx(path: str) -> Any:
    """ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = [node.name for node in session.get_inputs()]
    return lambda x: session.run(None, {n: x[k] for n, k in zip(given, sorted(x), strict=True)})


def load_litert(path: str) -> Any:
    """LiteRT's interpreter as it is, without TensorFlow's operations."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)

    def run(x: dict[str, Any]) -> list[Any]:
        slots = interpreter.get_input_details()
        if any(name in slot["name"] for name in x for slot in slots):
            values = [x[next(name for name in x if name in slot["name"])] for slot in slots]
        else:
            values = [x[name] for name in sorted(x)]  # from torch: args_0, args_1, ... in the order of the names
            slots = sorted(slots, key=lambda slot: int("".join(c for c in slot["name"] if c.isdigit()) or 0))
        for slot, value in zip(slots, values, strict=True):
            interpreter.resize_tensor_input(slot["index"], value.shape)
        interpreter.allocate_tensors()
        for slot, value in zip(slots, values, strict=True):
            interpreter.set_tensor(slot["index"], value)
        interpreter.invoke()
        return [interpreter.get_tensor(slot["index"]) for slot in interpreter.get_output_details()]

    return run


def difference(came: Any, wanted: Any) -> float:
    """The largest difference of two sets of outputs relative to the largest value; formats may reorder outputs."""
    import keras
    import numpy as np

    came, wanted = ([np.asarray(keras.ops.convert_to_numpy(v)) for v in keras.tree.flatten(s)] for s in (came, wanted))
    worst = 0.0
    for want in wanted:
        fitting = [np.abs(have - want).max() for have in came if have.shape == want.shape]
        if not fitting:
            raise ValueError(f"no output has the shape {want.shape}; there are {[have.shape for have in came]}")
        worst = max(worst, float(min(fitting) / np.abs(want).max()))
    return worst


def try_case(kind: str, family: str, program: str, mode: str) -> float:
    """Export, load, run, compare."""
    import keras

    model = build(family, program, *MODES[mode])
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "model" + SUFFIX[kind]))
        export(model, path, kind, mode)
        served = load(path, kind)
        worst = 0.0
        shapes = {"fixed": SHAPES[:1], "any batch": [(b, 9) for b, _ in SHAPES]}.get(mode, SHAPES)
        for batch, length in shapes:
            inputs = batch_for(model, batch, length)
            wanted = model(keras.tree.map_structure(keras.ops.convert_to_tensor, inputs))
            worst = max(worst, difference(served(inputs), wanted))
    if worst > 1e-5:
        raise ValueError(f"runs, with results that differ by {worst:.1e}")
    return worst


def modes_of(kind: str, program: str) -> list[str]:
    """The modes to try, the most general first."""
    if kind == "litert" and os.environ["KERAS_BACKEND"] == "torch":
        return ["fixed"]  # Keras says so, and a second conversion in one process fails
    return [mode for mode in MODES if program != "step" or mode != "any batch"]  # the length of a step is 1 anyway


def child(kind: str, family: str, program: str) -> None:
    """Try the modes, the most general first, and print what worked and why the others did not."""
    row: dict[str, Any] = {"works": None, "difference": None, "error": None}
    for mode in modes_of(kind, program):
        try:
            row |= {"difference": try_case(kind, family, program, mode), "works": mode}
            break
        except Exception as error:  # noqa: BLE001 - the table tells what happened
            text = " ".join(f"{type(error).__name__}: {error}".split())
            row["error"] = text.replace("\x1b[1m", "").replace("\x1b[0m", "")
    print(json.dumps(row))


def run_case(backend: str, *case: str) -> dict[str, Any]:
    """The row of a case, from a process of its own."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    command = [sys.executable, "-W", "ignore", __file__, "--case", *case]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=LIMIT, cwd=ROOT, check=False
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"works": None, "difference": None, "error": f"no answer in {LIMIT} s"}
    except (IndexError, ValueError):
        found = {"works": None, "difference": None, "error": f"the process died with code {done.returncode}"}
    return dict(zip(("backend", "format", "family", "program"), (backend, *case), strict=True)) | found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; the reasons stand in the text of the page."""
    lines = ["| backend | format | program | Mamba-1 | Mamba-2 |", "|---|---|---|---|---|"]
    found = {tuple(row[k] for k in ("backend", "format", "program", "family")): row for row in rows}
    for backend, program in product(FORMATS, ("classifier", "piece", "step")):
        for kind in FORMATS[backend]:
            cells = [cell(found.get((backend, kind, program, family))) for family in ("mamba", "mamba2")]
            lines.append(f"| {backend} | {kind} | {program} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: dict[str, Any] | None) -> str:
    """What works, and the largest difference found."""
    if row is None:
        return "not run"
    if row["works"] is None:
        return "no"
    works = "any batch" if row["program"] == "step" and row["works"] != "fixed" else row["works"]
    return f"{works}: {row['difference']:.0e}"


def main(names: list[str]) -> None:
    """Run the cases of these names, all if there are none, and write the table."""
    kept = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    for backend, kinds in FORMATS.items():
        for kind in kinds:
            if names and not {backend, f"{backend}/{kind}"} & set(names):
                continue
            for family, program in product(("mamba", "mamba2"), ("classifier", "piece", "step")):
                row = run_case(backend, kind, family, program)
                print(json.dumps(row), flush=True)
                same = ("backend", "format", "family", "program")
                kept = [old for old in kept if any(old[key] != row[key] for key in same)] + [row]
                ROWS.parent.mkdir(exist_ok=True)
                ROWS.write_text("".join(json.dumps(row) + "\n" for row in kept))
    write(kept)


def write(kept: list[dict[str, Any]]) -> None:
    """Put the table of these rows between the marks of the page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(kept)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["--case"] else main(sys.argv[1:])
