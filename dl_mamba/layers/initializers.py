"""Initial weights of Mamba as its authors released it: Gu and Dao 2023, section 3.6; Dao and Gu 2024, section 7.

Every projection is drawn from U(+-1/sqrt(fan_in)), the convolution from U(+-1/sqrt(d_conv)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

_zeros: ContextVar[bool] = ContextVar("zeros", default=False)


@contextmanager
def zeros_instead() -> Iterator[None]:
    """Weights built inside start at zero, for a file to overwrite: to draw them takes longer than to read them.

    Example:

    >>> from dl_mamba.layers import initializers
    >>> with initializers.zeros_instead():
    ...     draw = initializers.normal(1.0)
    >>> float(draw((1,))[0])
    0.0
    """
    token = _zeros.set(True)
    try:
        yield
    finally:
        _zeros.reset(token)


def projection(num_layers: int = 1) -> keras.initializers.Initializer:
    """U(+-1/sqrt(fan_in)), divided by sqrt(num_layers) for projections that add to the residual stream."""
    scale = 1.0 / (3.0 * num_layers)
    return _drawn(keras.initializers.VarianceScaling(scale=scale, mode="fan_in", distribution="uniform"))


def uniform(limit: float) -> keras.initializers.Initializer:
    """U(-limit, limit)."""
    return _drawn(keras.initializers.RandomUniform(-limit, limit))


def normal(stddev: float) -> keras.initializers.Initializer:
    """N(0, stddev^2)."""
    return _drawn(keras.initializers.RandomNormal(stddev=stddev))


def _drawn(initializer: keras.initializers.Initializer) -> keras.initializers.Initializer:
    return keras.initializers.Zeros() if _zeros.get() else initializer


@keras.saving.register_keras_serializable(package="dl_mamba")
class DtBias(keras.initializers.Initializer):
    """Bias whose softplus is log-uniform between `dt_min` and `dt_max`.

    dt = exp(U (ln dt_max - ln dt_min) + ln dt_min), at least `dt_init_floor`; bias = dt + ln(-expm1(-dt)).

    Args:
        dt_min: smallest step size, > 0.
        dt_max: largest step size.
        dt_init_floor: lower bound applied after the draw.
        seed: integer; a fresh one is drawn if None.

    Example:

    >>> import keras
    >>> from dl_mamba.layers.initializers import DtBias
    >>> dt = keras.ops.softplus(DtBias(0.01, 0.1, seed=0)((1000,)))
    >>> bool(keras.ops.all(dt > 0.0099)), bool(keras.ops.all(dt < 0.1001))
    (True, True)
    """

    def __init__(self, dt_min: float = 1e-3, dt_max: float = 0.1, dt_init_floor: float = 1e-4, seed: int | None = None):
        self.dt_min, self.dt_max, self.dt_init_floor, self.seed = dt_min, dt_max, dt_init_floor, seed
        self._draw = keras.initializers.RandomUniform(math.log(dt_min), math.log(dt_max), seed=seed)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        dt = ops.maximum(ops.exp(self._draw(shape, dtype=dtype)), self.dt_init_floor)
        return dt + ops.log(-ops.expm1(-dt))

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("dt_min", "dt_max", "dt_init_floor", "seed")}


@keras.saving.register_keras_serializable(package="dl_mamba")
class S4DReal(keras.initializers.Initializer):
    """A_log = ln(1), ..., ln(d_state) in every row: the real diagonal initialisation S4D-Real.

    Example:

    >>> import keras
    >>> from dl_mamba.layers.initializers import S4DReal
    >>> [round(float(a), 4) for a in keras.ops.exp(S4DReal()((1, 3)))[0]]
    [1.0, 2.0, 3.0]
    """

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        row = ops.log(ops.arange(1, shape[-1] + 1, dtype=dtype or "float32"))
        return ops.zeros(shape, dtype=row.dtype) + row


@keras.saving.register_keras_serializable(package="dl_mamba")
class LogOfUniform(keras.initializers.Initializer):
    """ln(a) with a drawn from U(low, high): A_log of Mamba-2.

    Example:

    >>> import keras
    >>> from dl_mamba.layers.initializers import LogOfUniform
    >>> a = keras.ops.exp(LogOfUniform(1.0, 16.0, seed=0)((1000,)))
    >>> bool(keras.ops.all(a >= 0.999)), bool(keras.ops.all(a <= 16.001))
    (True, True)
    """

    def __init__(self, low: float, high: float, seed: int | None = None):
        self.low, self.high, self.seed = low, high, seed
        self._draw = keras.initializers.RandomUniform(low, high, seed=seed)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        return ops.log(self._draw(shape, dtype=dtype))

    def get_config(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "seed": self.seed}
