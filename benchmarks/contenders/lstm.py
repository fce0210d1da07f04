"""Pre-norm residual LSTM layers of Keras, with the parameter count of our model."""

from __future__ import annotations

import keras

from benchmarks.case import Case
from benchmarks.contenders import Work
from benchmarks.contenders.keras_work import work_of
from benchmarks.contenders.parameters import matched_width


def prepare(case: Case) -> Work:
    width = matched_width(case, lambda width: 4 * width * (case.d_model + width) + width * case.d_model)
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(case.vocab_size, case.d_model)(ids)
    for _ in range(case.num_layers):
        y = keras.layers.LSTM(width, return_sequences=True)(keras.layers.RMSNormalization()(x))
        x = x + keras.layers.Dense(case.d_model)(y)
    work = work_of(case, keras.Model(ids, keras.layers.RMSNormalization()(x)), lambda y: y)
    return Work(work.run)
