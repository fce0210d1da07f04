"""What is measured: one contender doing one piece of work at one size."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

NEW_TOKENS = 64


@dataclass(frozen=True)
class Case:
    """One contender at one size.

    Attributes:
        contender: a module of `benchmarks.contenders`.
        backend: `"jax"`, `"tensorflow"` or `"torch"`.
        family: `"mamba"` or `"mamba2"`; a peer of another kind is given the parameter count of that family.
        work: `"forward"`, `"gradient"` (forward and backward), `"step"` (of training, with AdamW), `"token"` (one more
            token from a state), `"generate"` (a prompt is read and `NEW_TOKENS` are generated), `"stream"` (forward, a
            piece at a time with carried state) or `"epoch"` (`fit` on 256 rows).
        batch, length: of the input.
        d_model, num_layers, vocab_size: of the model.
        op: an op to measure alone, at the sizes of a layer of that model; the whole model if empty.
        variant: the preset that gives what these three leave open, e.g. `"tiny"`; the classes' defaults if empty.
        revision: a git revision of this library to measure in place of the working tree.
    """

    contender: str
    backend: str
    family: str
    work: str
    batch: int = 1
    length: int = 512
    d_model: int = 768
    num_layers: int = 4
    vocab_size: int = 1000
    op: str = ""
    variant: str = ""
    revision: str = ""

    @property
    def label(self) -> str:
        """The contender as the table shows it."""
        return self.contender + (f" at {self.revision}" if self.revision else "")

    @property
    def size(self) -> str:
        """The size as the table shows it."""
        model = f"{self.op}, {self.d_model}" if self.op else f"{self.family}, {self.num_layers} x {self.d_model}"
        return f"{model}, {self.work}, batch {self.batch}, L={self.length}"

    def to_json(self) -> str:
        """The case on one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Case:
        """The case that `to_json` wrote."""
        return cls(**json.loads(line))
