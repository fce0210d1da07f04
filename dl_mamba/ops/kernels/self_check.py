"""The kernels beside the portable program on the GPU at hand, as `dl-mamba info --check` asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.ops.causal_conv1d import causal_conv1d
from dl_mamba.ops.gated_rms_norm import gated_rms_norm
from dl_mamba.ops.gradients import vjp
from dl_mamba.ops.kernels import availability
from dl_mamba.ops.linear_cross_entropy import linear_cross_entropy
from dl_mamba.ops.selective_scan import selective_scan
from dl_mamba.ops.ssd import ssd

ALLOWED = {"float32": 1e-3, "bfloat16": 5e-2}  # far above roundings, far below what one wrong tile of a matrix gives
Arrays = dict[str, np.ndarray]


def check_kernels(
    batch: int = 8, length: int = 1000, channels: int = 1024, dtypes: Sequence[str] = tuple(ALLOWED)
) -> dict[str, str]:
    """Compare the kernels of each op and their gradients with the portable program, and keep what is wrong.

    Ops whose kernels are wrong take the portable program from then on, with this GPU and these versions of the
    libraries, and `implementation="triton"` of them raises. The inputs are random and fill an H100; on torch the
    memory that the kernels write to holds NaN before. Of each tensor the worst row (along its last axis) counts: the
    length of its error over the sum of its own length and that of a usual row.

    Returns:
        what is wrong, by op; nothing if all is right.
    """
    availability.reject({})
    found = {}
    for op, run, wide, narrow in _cases(batch, length, channels):
        for dtype in dtypes:
            wrong = _difference(run, wide, narrow, dtype)
            if wrong:
                found.setdefault(op, f"with {dtype} inputs {wrong}")
    availability.reject(found)
    return found


def _cases(batch: int, length: int, channels: int) -> Iterator[tuple[str, Callable, Arrays, Arrays]]:
    """Name, op, inputs that are float32, and inputs that may be narrower."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype("float32")  # noqa: E731
    tokens, heads, states = (batch, length), channels // 64, 16
    rates = lambda *shape: {"A": -np.exp(draw(*shape)), "D": draw(shape[0]), "dt_bias": draw(shape[0])}  # noqa: E731
    x = {name: draw(*tokens, channels) for name in ("x", "z")}
    BC = {name: draw(*tokens, states) for name in ("B", "C")}
    yield "selective_scan", selective_scan, rates(channels, states), {**x, "dt": draw(*tokens, channels), **BC}
    BC = {name: draw(*tokens, 1, 64) for name in ("B", "C")}
    yield "ssd", ssd, rates(heads), {"x": draw(*tokens, heads, 64), "dt": draw(*tokens, heads), **BC}
    yield "causal_conv1d", causal_conv1d, {"weight": draw(4, channels), "bias": draw(channels)}, {"x": x["x"]}
    yield "gated_rms_norm", gated_rms_norm, {"weight": draw(channels)}, x
    targets = rng.integers(0, channels, tokens).astype("int32")
    loss = partial(linear_cross_entropy, targets=targets)
    yield "linear_cross_entropy", loss, {"weight": 0.1 * draw(channels, 64)}, {"x": draw(*tokens, 64)}


def _difference(run: Callable, wide: Arrays, narrow: Arrays, dtype: str) -> str | None:
    """What of the result or its gradients is further from the portable program's than allowed."""
    wide = {name: ops.convert_to_tensor(a) for name, a in wide.items()}
    narrow = {name: ops.cast(a, dtype) for name, a in narrow.items()}
    exact = {name: ops.cast(a, "float32") for name, a in narrow.items()}
    wanted = _results(run, "chunked", {**wide, **exact}, dtype)
    _poison(max(math.prod(tensor.shape) for tensor in wanted.values()))
    came = _results(run, "triton", {**wide, **narrow}, dtype)
    for name in wanted:
        error = _error(came[name], wanted[name])
        if not error <= ALLOWED[dtype]:
            return f"{name} is off by {error:.1e}; {ALLOWED[dtype]:.0e} is allowed"
    return None


def _poison(count: int) -> None:
    """Leave torch no free memory on the GPU but some that holds no number, for twelve such tensors."""
    if keras.backend.backend() == "torch":
        import torch

        torch.cuda.empty_cache()
        torch.full((12 * count,), float("nan"), device="cpu" if availability.interpreted() else "cuda")


def _error(came: Any, wanted: Any) -> float:
    came, wanted = (ops.reshape(ops.cast(t, "float32"), (-1, t.shape[-1])) for t in (came, wanted))
    error, own = (ops.sqrt(ops.sum(ops.square(t), axis=-1)) for t in (came - wanted, wanted))
    return float(ops.max(error / (own + ops.sqrt(ops.mean(ops.square(own))))))


def _results(run: Callable, implementation: str, inputs: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What an implementation gives, and its gradients from one that `dtype` can hold."""

    def call(*tensors):
        return (run(**dict(zip(inputs, tensors, strict=True)), implementation=implementation),)

    result = call(*inputs.values())[0]
    gradient = ops.cast(ops.cast(keras.random.normal(result.shape, seed=0), dtype), result.dtype)
    gradients = vjp(call, tuple(inputs.values()), (gradient,))
    return {"the result": result} | {f"the gradient of {n}": g for n, g in zip(inputs, gradients, strict=True)}
