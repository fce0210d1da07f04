"""A residual block of Mamba-2 reads one token with three kernels or four, where the decode loop asks for it.

Norm, in_proj and convolution are one, state and gate another, norm, out_proj and the sum the third; with more than a
few rows the first norm stands apart. The embedding and the logits of tied embeddings are one each. They have no
gradient, so that nobody but a loop that wants none may ask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from keras import ops

from dl_mamba.layers.mixer import MixerState
from dl_mamba.ops import dispatch

_asked: ContextVar[bool] = ContextVar("dl_mamba_fused_token", default=False)


@contextmanager
def fused() -> Iterator[None]:
    """Let blocks read a token with few kernels, without gradients, where they can."""
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


def fits(block: Any, x: Any, mask: Any, state: Any, segment_ids: Any) -> bool:
    """Whether `step` can stand for the block's own body here."""
    if not _asked.get() or x.shape[1] != 1 or state is None or mask is not None or segment_ids is not None:
        return False
    return dispatch.kernels_take(x, state.conv, state.ssm) and _supported(block, x)


def step(block: Any, x: Any, state: MixerState) -> tuple[Any, MixerState]:
    """The block's output for x (rows, 1, d_model) and the new state."""
    from dl_mamba.ops.kernels import one_token as kernels

    mixer, c = block.mixer, block.mixer.config
    weight = lambda variable: None if variable is None else ops.cast(variable, block.compute_dtype)  # noqa: E731
    turned = lambda dense: ops.transpose(weight(dense.kernel))  # noqa: E731  once for all tokens of a request
    projected, conv = kernels.project(
        x,
        ops.convert_to_tensor(block.norm.scale),
        turned(mixer.in_proj),
        state.conv,
        weight(mixer.conv1d.kernel),
        weight(mixer.conv1d.bias),
        c.ssm_width,
        epsilon=block.norm.epsilon,
    )
    constants = map(ops.convert_to_tensor, (mixer.A_log, mixer.D, mixer.dt_bias, mixer.norm.scale))
    y, ssm, squares = kernels.advance(projected, state.ssm, *constants, c.dt_limit, c.ssm_width)
    x = kernels.finish(y, squares, turned(mixer.out_proj), x, epsilon=mixer.norm.epsilon)
    return x, MixerState(conv, ssm)


def embedding_fits(embedding: Any, ids: Any) -> bool:
    """Whether `embedded` can stand for the embedding layer here."""
    if not _asked.get() or ids.shape[1] != 1 or embedding.lora_enabled or embedding.quantization_mode is not None:
        return False
    return dispatch.kernels_take(ids)


def embedded(embedding: Any, ids: Any, dtype: str) -> Any:
    """The rows of the embedding for ids (rows, 1)."""
    from dl_mamba.ops.kernels.embedding import embedded

    return embedded(ids, ops.convert_to_tensor(embedding.embeddings), dtype)


def norm_fits(x: Any) -> bool:
    """Whether `normed` can stand for a norm of x (rows, 1, width) here."""
    if not _asked.get() or x.shape[1] != 1 or not dispatch.kernels_take(x):
        return False
    from dl_mamba.ops.kernels.one_token import DEEPEST

    return x.shape[2] <= DEEPEST


def normed(norm: Any, x: Any) -> Any:
    """What an `RMSNorm` without groups and gate makes of x (rows, 1, width)."""
    from dl_mamba.ops.kernels import gated_rms_norm as kernels

    options = kernels.Options(norm.epsilon, 1, False, norm.compute_dtype)
    return kernels.of_one_token(options, x, ops.convert_to_tensor(norm.scale))


def product_fits(x: Any, matrix: Any) -> bool:
    """Whether `product` can stand for x times the transpose of the matrix here."""
    if not _asked.get() or len(x.shape) != 2 or not dispatch.kernels_take(x, matrix):
        return False
    from dl_mamba.ops.kernels.one_token import DEEPEST, ROWS

    return x.shape[0] <= ROWS and x.shape[1] <= DEEPEST


def product(x: Any, matrix: Any, columns: int) -> Any:
    """x (rows, width) by the first `columns` of the transpose of matrix (n, width), summed and left in float32."""
    from dl_mamba.ops.kernels.one_token import product

    return product(x, matrix, columns)


def _supported(block: Any, x: Any) -> bool:
    mixer, c = block.mixer, block.mixer.config
    if not hasattr(mixer, "recurrence_inputs"):
        return False  # Mamba-1 has two more matrices between convolution and state
    if mixer.norm is None or c.norm_before_gate or c.ngroups > 1 or c.mlp_width or c.d_conv < 2:
        return False
    for dense in (mixer.in_proj, mixer.out_proj):
        if dense.use_bias or dense.lora_enabled or dense.quantization_mode is not None:
            return False
    from dl_mamba.ops.kernels.one_token import DEEPEST, ROWS

    return x.shape[0] <= ROWS and c.d_inner <= DEEPEST
