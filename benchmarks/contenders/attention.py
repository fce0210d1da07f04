"""A causal pre-norm transformer of Keras' own layers, with the parameter count of our model."""

from __future__ import annotations

import keras

from benchmarks.case import Case
from benchmarks.contenders import Work
from benchmarks.contenders.keras_work import work_of
from benchmarks.contenders.parameters import matched_width

HEADDIM = 64


def prepare(case: Case) -> Work:
    width = matched_width(case, lambda width: 4 * case.d_model**2 + 2 * case.d_model * width)
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(case.vocab_size, case.d_model)(ids)
    for _ in range(case.num_layers):
        y = keras.layers.RMSNormalization()(x)
        heads = max(1, case.d_model // HEADDIM)
        x = x + keras.layers.MultiHeadAttention(heads, case.d_model // heads)(y, y, use_causal_mask=True)
        y = keras.layers.Dense(width, activation="gelu")(keras.layers.RMSNormalization()(x))
        x = x + keras.layers.Dense(case.d_model)(y)
    work = work_of(case, keras.Model(ids, keras.layers.RMSNormalization()(x)), lambda y: y)
    return Work(work.run)
