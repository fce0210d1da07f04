"""Write the table of docs/fine_tuning.md from what tests/test_heads_learning.py printed: `docs/learning_table.py`.

With names of backends, e.g. `python docs/learning_table.py jax torch`, the tests are first run there; what they print
is kept in build/, one file a backend.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "fine_tuning.md"
BEGIN, END = "<!-- learning: begin -->", "<!-- learning: end -->"
BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
LINE = re.compile(r"^(?P<case>.+): (?P<metric>\w+) (?P<value>[\d.]+), ceiling (?P<ceiling>[\d.]+), (?P<seconds>\d+) s$")


def printed(backend: str) -> Path:
    """The file with what the tests printed on a backend."""
    return ROOT / "build" / f"learning-{backend}.txt"


def measure(backend: str) -> None:
    """Run the tests on a backend, on one thread."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "slow", "tests/test_heads_learning.py"]
    printed(backend).parent.mkdir(exist_ok=True)
    with printed(backend).open("w") as file:
        subprocess.run(command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=True)


def lines_of(backend: str) -> dict[str, re.Match]:
    """What was printed, by case."""
    if not printed(backend).exists():
        return {}
    found = map(LINE.match, printed(backend).read_text().splitlines())
    return {match["case"]: match for match in found if match}


def table() -> str:
    """Markdown: a line for each case, the value and the seconds on each backend."""
    found = {backend: lines_of(backend) for backend in BACKENDS}
    lines = [f"| head | metric | ceiling | {' | '.join(BACKENDS.values())} |", "|---|---|--:|--:|--:|--:|"]
    cases = {case: match for matches in found.values() for case, match in matches.items()}
    for case, match in cases.items():
        own = [matches.get(case) for matches in found.values()]
        metric = match["metric"].replace("_", " ")
        cells = [f"{one['value']} ({one['seconds']} s)" if one else "not run" for one in own]
        lines.append(f"| {case} | {metric} | {float(match['ceiling']):.4f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Run the tests on these backends, and write the table."""
    for name in names:
        measure(name)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
