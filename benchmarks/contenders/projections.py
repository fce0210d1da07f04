"""The floor: the matrix products of the same model's projections, and nothing else."""

from __future__ import annotations

from typing import Any

import keras

from benchmarks.case import Case
from benchmarks.contenders import Work
from benchmarks.contenders.keras_work import work_of
from benchmarks.contenders.parameters import config_of
from dl_mamba.layers.adapted import Projection


class Projections(keras.Model):
    """in_proj, the small projections of Mamba-1, and out_proj of every layer, one after the other."""

    def __init__(self, case: Case):
        super().__init__()
        config = config_of(case)
        self.d_inner = config.d_inner
        self.dt_width = config.dt_width if case.family == "mamba" else 0
        self.embedding = keras.layers.Embedding(case.vocab_size, case.d_model)
        in_width = 2 * config.d_inner if case.family == "mamba" else config.in_proj_width
        small = (self.dt_width + 2 * config.d_state, config.d_inner) if case.family == "mamba" else ()
        self.stack = [
            [Projection(width, use_bias=False) for width in (in_width, *small, case.d_model)]
            for _ in range(case.num_layers)
        ]

    def call(self, ids: Any) -> Any:
        hidden = self.embedding(ids)
        for in_proj, *small, out_proj in self.stack:
            inner = in_proj(hidden)[..., : self.d_inner]
            if small:
                inner = inner + small[1](small[0](inner)[..., : self.dt_width])
            hidden = out_proj(inner)
        return hidden


def prepare(case: Case) -> Work:
    model = Projections(case)
    model(keras.ops.zeros((1, 1), dtype="int32"))
    work = work_of(case, model, lambda y: y)
    return Work(work.run)
