"""A text classifier before and after `quantize("int8")`: `python -m benchmarks.quantized mood.keras test.tsv`.

Accuracy on the file, size of the `.keras` file, and seconds to classify its texts, both models in turn.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from dl_mamba.heads.text_classifier import Classifier
from dl_mamba.pipelines.fitting import score
from dl_mamba.pipelines.prediction import classifier_examples, load_trained
from dl_mamba.pipelines.splits import class_numbers

ROUNDS = 5


def seconds(model: Classifier, texts: list[str]) -> float:
    """Of one pass over the texts."""
    begin = time.perf_counter()
    model.predict(texts, verbose=0)
    return time.perf_counter() - begin


def main(source: str, data: str) -> None:
    """Print one line for each model."""
    model = load_trained(source)
    examples = classifier_examples(model, source, data, {}, labelled=True)
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder, "int8.keras")
        model.quantize("int8")
        model.save(small)
        files = {"float32": Path(source), "int8": small}
        models = {name: load_trained(file) for name, file in files.items()}
        for model in models.values():
            seconds(model, examples.inputs)  # compiles
        times = {name: [] for name in models}
        for _ in range(ROUNDS):
            for name, model in models.items():
                times[name].append(seconds(model, examples.inputs))
        for name, model in models.items():
            accuracy = score(model, examples.inputs, class_numbers(examples, model.label_names))["accuracy"]
            size = files[name].stat().st_size
            share = size / files["float32"].stat().st_size
            slowest, fastest = max(times[name]), min(times[name])
            print(
                f"{name}: accuracy {accuracy:.4f} of {len(examples.inputs)}, {size:,} bytes ({share:.1%}), "
                f"{median(times[name]):.2f} s ({fastest:.2f} to {slowest:.2f})"
            )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(f"{len(sys.argv) - 1} arguments came; a .keras file and labelled texts are needed.")
    main(*sys.argv[1:])
