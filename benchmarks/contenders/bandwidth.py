"""The floor of decoding: as many bytes as the weights have go through memory once for each new token.

A copy reads and writes, so half as many bytes are copied.
"""

from __future__ import annotations

import torch

from benchmarks.case import NEW_TOKENS, Case
from benchmarks.contenders import Work
from benchmarks.contenders.parameters import config_of


def prepare(case: Case) -> Work:
    source = torch.ones(config_of(case).num_parameters // 2)
    target = torch.empty_like(source)

    def run() -> None:
        for _ in range(NEW_TOKENS):
            target.copy_(source)

    return Work(run)
