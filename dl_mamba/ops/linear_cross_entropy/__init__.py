"""Cross entropy of tokens under a linear head, without the logits of all tokens at once."""

from __future__ import annotations

from typing import Any

from keras import ops

from dl_mamba.ops import checks, dispatch
from dl_mamba.ops.kernels.availability import refusal_of
from dl_mamba.ops.linear_cross_entropy import chunked, fused, reference

IMPLEMENTATIONS = {"reference": reference.run, "chunked": chunked.run, "triton": fused.run}


def linear_cross_entropy(
    x: Any, weight: Any, targets: Any, *, vocab_size: int | None = None, implementation: str = "auto"
) -> Any:
    """Cross entropy `logsumexp(x weight^T) - (x weight^T)[target]` of each token, in nats.

    Logits are computed for some tokens at a time, reduced to the loss, and computed again for the gradient, so that
    memory does not grow with length x vocabulary. Source of the idea: Wijmans et al., "Cut Your Losses in
    Large-Vocabulary Language Models", 2025, section 4.

    Args:
        x: (batch, length, d_model) float; logits have its dtype, sums over them are float32.
        weight: (rows, d_model) float, used in the dtype of `x`; its gradient is summed in float32.
        targets: (batch, length) int, 0 <= target < vocab_size.
        vocab_size: the first rows that are tokens; rows behind them pad the vocabulary. All are tokens if None.
        implementation: `"reference"` (all logits at once), `"chunked"` (the portable program), `"triton"` (that with
            softmax and gradient of the logits in one kernel each, for NVIDIA GPUs) or `"auto"`: the kernels where they
            can run. Gradients of the last three can be taken once.

    Returns:
        (batch, length) float32.

    Raises:
        ValueError: a shape, dtype, vocab_size or implementation does not fit.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.ops.linear_cross_entropy import linear_cross_entropy
    >>> x, weight = np.zeros((1, 2, 3), "float32"), np.ones((4, 3), "float32")
    >>> [round(float(v), 4) for v in linear_cross_entropy(x, weight, np.array([[0, 3]]))[0]]
    [1.3863, 1.3863]
    """
    x = checks.to_tensor("x", x)
    weight = checks.to_tensor("weight", weight)[:]  # a gradient of TensorFlow's is of tensors, not of variables
    targets = ops.convert_to_tensor(targets, dtype="int32")
    batch, length, d_model = checks.expect_rank("x", x, "(batch, length, d_model)")
    rows = checks.expect_rank("weight", weight, "(rows, d_model)")[0]
    checks.expect_shape("weight", weight, rows=rows, d_model=d_model)
    checks.expect_shape("targets", targets, batch=batch, length=length)
    vocab_size = rows if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= rows:
        raise ValueError(f"vocab_size={vocab_size!r}; 1 to {rows}, the rows of weight, are needed.")
    run = dispatch.choose("linear_cross_entropy", IMPLEMENTATIONS, implementation, lambda: refusal_of(x, weight))
    return run(x, weight, targets, vocab_size)
