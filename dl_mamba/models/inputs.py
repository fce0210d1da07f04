"""The inputs of a backbone: token ids, an optional mask, optional document numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from dl_mamba.ops import checks

KEYS = ("input_ids", "attention_mask", "segment_ids")


def read_inputs(inputs: Any, vocab_size: int) -> tuple[Any, Any, Any]:
    """Ids (batch, length) int32, mask and segment ids from a dict, or from the ids alone.

    Values are checked where they can be seen, which is outside compiled and symbolic code.

    Raises:
        ValueError: a key is missing or unknown, a shape or dtype does not fit, or an id is outside the vocabulary.
    """
    inputs = inputs if isinstance(inputs, Mapping) else {"input_ids": inputs}
    unknown = sorted(set(inputs) - set(KEYS))
    if unknown or inputs.get("input_ids") is None:
        raise ValueError(
            f"inputs have the keys {sorted(inputs)}; 'input_ids' is needed, and of {list(KEYS)} any other."
        )
    ids, mask, segment_ids = (inputs.get(key) for key in KEYS)
    batch, length = checks.expect_rank("input_ids", ids, "(batch, length)")
    checks.expect_shape("attention_mask", mask, batch=batch, length=length)
    checks.expect_shape("segment_ids", segment_ids, batch=batch, length=length)
    if keras.backend.standardize_dtype(ids.dtype) == "bool":
        raise ValueError("input_ids has dtype bool; integer token ids are needed.")
    if isinstance(ids, keras.KerasTensor):
        return ids, mask, segment_ids
    _check_values(ids, vocab_size)
    return ops.cast(ids, "int32"), mask, segment_ids


def _check_values(ids: Any, vocab_size: int) -> None:
    if not is_concrete(ids) or 0 in ids.shape:
        return
    values = ops.convert_to_numpy(ids)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(
            f"input_ids holds {wrong}; ids from 0 to {vocab_size - 1} are needed. Build the model with a "
            "larger vocab_size, or tokenize with the vocabulary that it was built for."
        )


def is_concrete(tensor: Any) -> bool:
    """Whether values can be read now: not while JAX, TensorFlow or torch trace a program or capture a graph."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly() and hasattr(tensor, "numpy")
    import torch

    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not (torch.is_tensor(tensor) and tensor.is_cuda and torch.cuda.is_current_stream_capturing())
