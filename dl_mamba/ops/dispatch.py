"""Which implementation of an op runs: one table per op, one keyword, one scope that overrides it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import keras

from dl_mamba.ops.kernels.availability import refusal_of, rejected, rejections

PORTABLE = "chunked"
FUSED = "triton"
NAMES = ("reference", PORTABLE, FUSED)

_forced: ContextVar[str | None] = ContextVar("dl_mamba_implementation", default=None)
_last: dict[str, str] = {}


@contextmanager
def implementation_scope(implementation: str) -> Iterator[None]:
    """Force one implementation on every op called inside the scope.

    The scope acts when Python code runs: a function compiled by `jax.jit` or `tf.function` keeps the choice of
    the call that traced it.

    Args:
        implementation: `"reference"` (the token-by-token definition), `"chunked"` (the portable program) or `"triton"`
            (the kernels for NVIDIA GPUs, of the ops that have one).

    Raises:
        ValueError: the name is unknown.

    Example:

    >>> import numpy as np, dl_mamba
    >>> x, weight = np.ones((1, 4, 2), "float32"), np.ones((3, 2), "float32")
    >>> with dl_mamba.ops.implementation_scope("reference"):
    ...     _ = dl_mamba.ops.causal_conv1d(x, weight)
    >>> dl_mamba.ops.last_implementation("causal_conv1d")
    'reference'
    """
    _check(implementation, NAMES)
    token = _forced.set(implementation)
    try:
        yield
    finally:
        _forced.reset(token)


def last_implementation(op: str) -> str:
    """Name of the implementation that the latest call of an op really ran, for tests and bug reports.

    Args:
        op: `"selective_scan"`, `"ssd"`, `"causal_conv1d"` or `"gated_rms_norm"`.

    Raises:
        ValueError: the op has not run in this process.

    Example:

    >>> import numpy as np, dl_mamba
    >>> _ = dl_mamba.ops.gated_rms_norm(np.ones((2, 4), "float32"), np.ones(4, "float32"))
    >>> dl_mamba.ops.last_implementation("gated_rms_norm")
    'chunked'
    """
    if op not in _last:
        ran = ", ".join(repr(name) for name in sorted(_last)) or "none"
        raise ValueError(f"no call of op={op!r} was recorded in this process; recorded ops: {ran}.")
    return _last[op]


def choose(
    op: str, table: Mapping[str, Callable], implementation: str, refusal: Callable[[], str | None] = lambda: None
) -> Callable:
    """The function of `table` that `implementation`, or the scope around the call, asks for.

    Args:
        op: name of the op.
        table: its implementations.
        implementation: one of them, or `"auto"`: the kernels if there are some and `refusal` has no objection.
        refusal: why the kernels cannot run this call, or None if they can.

    Raises:
        ValueError: the name is unknown, or the kernels are asked for and cannot run.
    """
    name = _forced.get() or implementation
    _check(name, (*table, "auto"))
    auto = name == "auto"
    if auto:
        name = FUSED if FUSED in table else PORTABLE
    reason = (refusal() or rejected(op)) if name == FUSED else None
    if reason and not auto:
        raise ValueError(f"implementation={FUSED!r} of {op} cannot run: {reason}. 'auto' takes what can.")
    if reason:
        logging.getLogger("dl_mamba").debug("%s runs without its kernels: %s", op, reason)
        name = PORTABLE
    _last[op] = name
    if keras.backend.backend() == "jax":
        return _whole(table[name])
    return _untraced(table[name]) if name == FUSED else table[name]


def is_open_to(implementation: str) -> bool:
    """Whether no scope asks for another implementation."""
    return _forced.get() in (None, implementation)


def kernels_take(*tensors: Any) -> bool:
    """Whether kernels that stand for several ops may run here, and can take these tensors."""
    return is_open_to(FUSED) and refusal_of(*tensors) is None and not rejections()


@cache
def _untraced(run: Callable) -> Callable:
    """On torch, `torch.compile` calls the kernels as they stand and does not look inside."""
    import torch

    return torch.compiler.disable(run)


@cache
def _whole(run: Callable) -> Callable:
    """On JAX, an op called outside a compiled program is compiled as a whole, not primitive by primitive.

    What is no tensor is bound by a closure: `jax.jit` takes two calls of one function for the same program if they
    differ only in which arguments are static, as one with a mask and one with documents do.
    """
    import jax

    @cache
    def compiled(static: tuple) -> Callable:
        def program(*tensors):
            remaining = iter(tensors)
            return run(*(next(remaining) if is_tensor else value for is_tensor, value in static))

        return jax.jit(program)

    def call(*args):
        tensors = [arg for arg in args if hasattr(arg, "shape")]
        return compiled(tuple((True, None) if hasattr(arg, "shape") else (False, arg) for arg in args))(*tensors)

    return call


def _check(implementation: str, known: tuple[str, ...]) -> None:
    if implementation not in known:
        *head, tail = (repr(name) for name in known)
        raise ValueError(f"implementation={implementation!r} is unknown; choose one of {', '.join(head)} or {tail}.")
