"""The parent's side: a contender as a process that is asked for one run at a time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case

ROOT = Path(__file__).resolve().parent.parent


class Failed(Exception):
    """A contender cannot go on; the message is its row in the table."""


class Process:
    """A contender in a process of its own.

    Args:
        case: what it measures.
        cores: threads that its libraries may use.
        limit: seconds that one answer may take.
        checkout: folder with another version of `dl_mamba`, or None for the installed one.
    """

    def __init__(self, case: Case, cores: int, limit: float, checkout: Path | None = None):
        self.case, self.limit = case, limit
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process, see close()
        path = [str(p) for p in (checkout, ROOT) if p]
        environment = {
            **os.environ,
            "KERAS_BACKEND": case.backend,
            "PYTHONPATH": os.pathsep.join(path),
            "OMP_NUM_THREADS": str(cores),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        command = [sys.executable, "-P", "-m", "benchmarks.worker", case.to_json()]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )

    def ready(self) -> dict[str, float]:
        """Seconds to build and of the first run, once both are done."""
        return self._answer()

    def ask(self, *command: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        print(*command, file=self.process.stdin, flush=True)
        return self._answer()

    def results(self) -> dict[str, np.ndarray]:
        """Named arrays of the last run."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "results.npz"
            self.ask("results", str(file))
            with np.load(file) as arrays:
                return dict(arrays)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()

    def _answer(self) -> dict[str, Any]:
        if not select.select([self.process.stdout], [], [], self.limit)[0]:
            raise Failed(f"no answer in {self.limit:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._cause())
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _cause(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "no message")
        memory = code == -9 or any(word in last for word in ("out of memory", "RESOURCE_EXHAUSTED", "can't allocate"))
        return "out of memory" if memory else f"exit status {code}: {last.strip()[:160]}"
