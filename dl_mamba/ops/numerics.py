"""Precision inside an op: float32 whatever the inputs; a reference takes float64 when an input has it."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from dl_mamba.ops.gradients import recomputed, with_gradient
from dl_mamba.ops.sequence import on_accelerator, runs_in_place

Tensor = Any


def accumulation_dtype(*tensors: Tensor | None) -> str:
    """`"float64"` if any tensor is float64, else `"float32"`."""
    dtypes = {keras.backend.standardize_dtype(t.dtype) for t in tensors if t is not None}
    return "float64" if "float64" in dtypes else "float32"


def upcast(dtype: str, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """The tensors in `dtype`; None stays None."""
    return tuple(None if t is None else ops.cast(t, dtype) for t in tensors)


def at_least(x: Tensor, low: float) -> Tensor:
    """max(x, low) in the dtype of x; `ops.maximum` turns float64 into float32 on torch."""
    low = ops.convert_to_tensor(low, dtype=x.dtype)
    return ops.where(x < low, low, x)


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, mask: Tensor | None, limit=None) -> Tensor:
    """dt (batch, length, channels) as the recurrence uses it: bias, softplus, limits, then 0 at padding."""
    if dt_bias is not None:
        dt = plus(dt, dt_bias)
    if dt_softplus:
        dt = softplus(dt)
    if limit is not None:
        low, high = limit
        dt = dt if low <= 0.0 and dt_softplus else at_least(dt, low)
        dt = dt if high == float("inf") else -at_least(-dt, -high)
    return dt if mask is None else ops.where(mask[..., None], dt, 0.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), with every digit of small and large numbers."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.nn.functional.softplus(x, threshold=40.0)  # from where on it is x, in float64 too
    return -ops.log_sigmoid(-x)


def spread(w: Tensor, x: Tensor) -> Tensor:
    """w as a factor of x, to be broadcast along axes before the last one.

    On JAX on a CPU it is broadcast here, and its gradient is a product with ones: the sum that XLA would make of it
    takes many times as long (`python -m benchmarks ops`).
    """
    rows = _broadcast_rows(x, w)
    if rows is None:
        return w
    forward = lambda w: ((ops.broadcast_to(w, x.shape),), ())  # noqa: E731
    return with_gradient(forward, lambda _, dy: (_summed(dy[0], rows, w.shape),))(w)[0]


def plus(x: Tensor, w: Tensor) -> Tensor:
    """x + w, with w broadcast along axes before the last one; its gradient as that of `spread`."""
    rows = _broadcast_rows(x, w)
    if rows is None:
        return x + w
    import jax

    def backward(_, gradients):
        dy = jax.lax.optimization_barrier(gradients[0])  # computed once, and not again for each of its readers
        return dy, _summed(dy, rows, w.shape)

    return with_gradient(lambda x, w: ((x + w,), ()), backward)(x, w)[0]


def product(x: Tensor, w: Tensor) -> Tensor:
    """x (..., c) times w (c, d).

    On JAX on a CPU the gradient of w is written as the product of x, transposed, with the gradient of the result: of
    what JAX writes by itself XLA transposes the latter, together with what computes it, one number at a time. Not so in
    half precision, where the barrier would round it.
    """
    if runs_in_place(x) and x.dtype == w.dtype:
        from dl_mamba.ops import products

        return products.product(x, w)
    if not _jax_on_a_cpu(x) or not x.dtype == w.dtype == "float32":
        return ops.matmul(x, w)
    import jax

    def backward(tensors, gradients):
        x, w = tensors
        dy = jax.lax.optimization_barrier(gradients[0])
        rows, drows = (ops.reshape(t, (-1, t.shape[-1])) for t in (x, dy))
        return ops.matmul(dy, ops.transpose(w)), ops.matmul(ops.transpose(rows), drows)

    return with_gradient(lambda x, w: ((ops.matmul(x, w),), (x, w)), backward)(x, w)[0]


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (..., i) times b (i, j), both of one dtype; for functions whose gradient is written by hand."""
    if not runs_in_place(a):
        return ops.matmul(a, b)
    from dl_mamba.ops import products

    return products.matmul(a, b)


def transposed_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (r, i), transposed, times b (r, j), in the same way; b is the smaller one, since oneDNN copies one of them."""
    if runs_in_place(a):
        return matmul(b.mT, a).mT
    return ops.matmul(ops.transpose(a), b)


def barrier(tensors: Any) -> Any:
    """The same tensors; on JAX XLA computes them by themselves, and takes no two of them for the same one."""
    if keras.backend.backend() != "jax":
        return tensors
    import jax

    return jax.lax.optimization_barrier(tensors)


def plus_product(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y + a b, which torch puts in the place of y: nothing else may need that."""
    return y.addcmul_(a, b) if keras.backend.backend() == "torch" else y + a * b


def _broadcast_rows(x: Tensor, w: Tensor) -> tuple[int, int, int] | None:
    """The shape of x as (before, along, after) the neighbouring axes that w lacks, where sums along them are slow."""
    narrow = (1,) * (len(x.shape) - len(w.shape)) + tuple(w.shape)
    axes = [i for i, size in enumerate(narrow) if size == 1 and x.shape[i] != 1]
    if not axes or not _jax_on_a_cpu(x) or axes[-1] - axes[0] >= len(axes):
        return None
    first, behind = axes[0], axes[-1] + 1
    return math.prod(x.shape[:first]), math.prod(x.shape[first:behind]), math.prod(x.shape[behind:])


def _summed(dy: Tensor, rows: tuple[int, int, int], shape: tuple[int, ...]) -> Tensor:
    return ops.reshape(sum_of_rows(ops.reshape(dy, rows)), shape)


def scaled_rows(x: Tensor, w: Tensor) -> Tensor:
    """x (..., c) times w (...), of which on JAX on a CPU the gradient is a dot product, for the reason above."""
    return ops.einsum("...c,...->...c", x, w) if _jax_on_a_cpu(x) else x * w[..., None]


def sum_of_rows(x: Tensor) -> Tensor:
    """Sum over the last axis but one, as a product with ones where that is the faster way."""
    if not _jax_on_a_cpu(x):
        return ops.sum(x, axis=-2)
    import jax

    # without the barriers XLA sees the ones and makes a sum of the product, or makes the product part of another loop;
    # of one row of ones for a whole batch it makes a product with a copy of x, turned
    ones = jax.lax.optimization_barrier(ops.ones((*x.shape[:-2], 1, x.shape[-2]), dtype=x.dtype))
    return ops.matmul(ones, jax.lax.optimization_barrier(x))[..., 0, :]


def dot_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a b over the last axis, which goes."""
    return ops.einsum("...c,...c->...", a, b) if _jax_on_a_cpu(a) else ops.sum(a * b, axis=-1)


def mean_square(x: Tensor) -> Tensor:
    """Mean of x^2 over the last axis, which goes."""
    return dot_product(x, x) / x.shape[-1]


def _jax_on_a_cpu(x: Tensor) -> bool:
    return keras.backend.backend() == "jax" and not on_accelerator(x)


def silu(x: Tensor) -> Tensor:
    """x times its logistic function, as a quotient: XLA's CPU compiler computes that once, a product in each reader."""
    return ops.silu(x) if keras.backend.backend() == "torch" else _silu(x)[0]


def _silu_backward(kept, gradients):
    (x,) = kept
    powers = 1.0 + ops.exp(-x)
    return (gradients[0] * (1.0 + x * (1.0 - 1.0 / powers)) / powers,)


_silu = with_gradient(lambda x: ((x / (1.0 + ops.exp(-x)),), (x,)), _silu_backward)


def skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """(y + D x) SiLU(z), each term only if given; D must broadcast against x."""
    if D is not None:
        y = y + spread(D, x) * x
    return y if z is None else y * silu(z)


def lean_skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """The same, of which the gradient keeps no product."""
    if z is None:
        return skip_and_gate(y, x, D, z)
    if runs_in_place(x):
        from dl_mamba.ops import gate_in_place

        return gate_in_place.skip_and_gate(y, x, D, z)[0]
    return recomputed(skip_and_gate)(y, x, D, z)


def flags_of(starts: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """For each token 1 if it begins a document, 2 if it is padding, else 0; None for zeros."""
    if starts is None and mask is None:
        return None
    flags = 0.0 if starts is None else ops.cast(starts, "float32")
    return flags if mask is None else ops.where(mask, flags, 2.0)
