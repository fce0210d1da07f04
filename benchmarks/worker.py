"""The process of one contender: reads one command a line, answers one line of JSON.

Commands: `run` -> seconds; `memory` -> peak bytes of a run; `results FILE` -> names written; end of input ends it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case
from benchmarks.contenders import Work


class Contender:
    """One prepared contender."""

    def __init__(self, case: Case):
        self.case = case
        begin = time.perf_counter()
        self.work: Work = importlib.import_module(f"benchmarks.contenders.{case.contender}").prepare(case)
        built = time.perf_counter()
        rss = _rss()
        _forget_peak()
        begin_first = time.perf_counter()
        self.value = self._run()
        first = time.perf_counter() - begin_first
        self.ready = {"build": built - begin, "first": first, "rss": rss, "peak": self._peak()}

    def run(self) -> dict[str, Any]:
        """Seconds of one run."""
        self.value = None
        begin = time.perf_counter()
        self.value = self._run()
        return {"seconds": time.perf_counter() - begin}

    def _run(self) -> Any:
        value = self.work.run()
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_available():
            torch.cuda.synchronize()
        return value

    def memory(self) -> dict[str, Any]:
        """Highest resident memory during one run, or memory of the accelerator."""
        _forget_peak()
        self.run()
        return {"peak": self._peak()}

    def _peak(self) -> int:
        device = _device_memory(self.case.backend)
        return _peak_rss() if device is None else device

    def results(self, file: str) -> dict[str, Any]:
        """Write what the last run returned, for comparison."""
        arrays = self.work.results(self.value)
        np.savez(file, **arrays)
        return {"names": sorted(arrays)}


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_rss() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _device_memory(backend: str) -> int | None:
    """Peak bytes on the GPU since the process began; None without a GPU."""
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    if backend == "jax":
        import jax

        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else None
    return None


def main() -> None:
    # What libraries print must not reach the parent's pipe.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers)

    try:
        contender = Contender(Case.from_json(sys.argv[1]))
        answer(**contender.ready)
        for line in sys.stdin:
            command, *arguments = line.split()
            answer(**getattr(contender, command)(*arguments))
    except ImportError as error:
        answer(error=f"not installed: {error.name}")
    except MemoryError:
        answer(error="out of memory")


if __name__ == "__main__":
    main()
