"""Peak memory of loading and converting a checkpoint: `KERAS_BACKEND=jax python -m benchmarks.checkpoint_memory`.

Each line is a process of its own on a Mamba-2 checkpoint of the shape of 130m with random weights, written beforehand.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

WRITE = (
    'm = dl_mamba.Mamba2CausalLM.from_variant("130m"); m.save_pretrained("hf"); m.save_pretrained("bin", "mamba_ssm")'
)
LOAD = "dl_mamba.Mamba2CausalLM.from_pretrained({!r}){}"
COMMAND = "from dl_mamba.cli import main; main()"
RUNS = {
    "dl-mamba inspect": (COMMAND, "inspect", "hf"),
    "from_pretrained of safetensors": (LOAD.format("hf", ""),),
    "from_pretrained of a .bin": (LOAD.format("bin", ""),),
    "from_pretrained, then save_pretrained": (LOAD.format("hf", ".save_pretrained('saved')"),),
    "dl-mamba convert, safetensors to .bin": (COMMAND, "convert", "hf", "to_bin", "--format", "mamba_ssm"),
    "dl-mamba convert, .bin to safetensors": (COMMAND, "convert", "bin", "to_hf"),
    "dl-mamba convert to bfloat16": (COMMAND, "convert", "hf", "half", "--dtype", "bfloat16"),
}


def peak(folder: Path, code: str, *arguments: str) -> float:
    """MiB that a process took at most."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import dl_mamba; {code}", *arguments], cwd=folder, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{code} {' '.join(arguments)} ended with status {status}.")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Print one line for each run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peak(folder, WRITE)
        print(f"{(folder / 'hf' / 'model.safetensors').stat().st_size / 2**20:.0f} MiB: the file")
        for what, run in RUNS.items():
            print(f"{peak(folder, *run):.0f} MiB: {what}", flush=True)


if __name__ == "__main__":
    main()
