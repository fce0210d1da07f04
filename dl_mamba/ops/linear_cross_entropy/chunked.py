"""Cross entropy, some tokens of every row at a time: logits, their softmax, and nothing of them is kept.

The gradient computes the logits again: a fifth more matrix products than a head has whose logits are kept, and exact
for any gradient that comes, scaled for float16 or not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops
from keras.backend import standardize_dtype

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.loops import loop
from dl_mamba.ops.numerics import matmul, transposed_matmul
from dl_mamba.ops.sequence import size_of


class Chunk:
    """What happens to the logits of a chunk, (tokens, rows); rows from `vocab_size` on are no tokens."""

    # Logits at a time. 1,300 tokens of 50,000 words: enough that the products run at full speed and that what is read
    # and written for each chunk, the gradient of the weight, stays below the logits; 256 MiB for each float32 copy.
    LOGITS = 2**26
    MULTIPLE = 1  # of rows in the products of the gradient

    @staticmethod
    def losses(logits: Any, targets: Any, vocab_size: int) -> tuple[Any, Any]:
        """Losses and logsumexp, each (tokens,)."""
        logits = ops.cast(logits[:, :vocab_size], "float32")
        normalizer = ops.logsumexp(logits, axis=-1)
        return normalizer - ops.take_along_axis(logits, targets[:, None], axis=-1)[:, 0], normalizer

    @staticmethod
    def gradient(logits: Any, targets: Any, normalizer: Any, dlosses: Any, vocab_size: int) -> Any:
        """Gradient of the logits, in their dtype."""
        rows = logits.shape[1]
        probabilities = ops.exp(ops.cast(logits[:, :vocab_size], "float32") - normalizer[:, None])
        target = ops.equal(ops.arange(vocab_size, dtype="int32")[None], targets[:, None])
        dlogits = ops.where(target, probabilities - 1.0, probabilities) * dlosses[:, None]
        return ops.pad(ops.cast(dlogits, logits.dtype), [[0, 0], [0, rows - vocab_size]])

    @staticmethod
    def add_product(total: Any, dlogits: Any, x: Any) -> Any:
        """total + dlogits^T x, (rows, d_model) float32; `total` is not needed any more."""
        return total + ops.cast(transposed_matmul(dlogits, x), "float32")


class _Sizes(NamedTuple):
    batch: Any
    length: Any
    count: Any  # of chunks
    size: Any  # tokens of a row in a chunk


def run(x, weight, targets, vocab_size, steps=Chunk):
    sizes = _sizes(x, weight.shape[0], steps.LOGITS)

    def forward(x, weight, targets):
        table = ops.transpose(ops.cast(weight, x.dtype))

        def step(carry, chunk):
            x, targets = chunk
            return carry, steps.losses(matmul(_rows(x), table), _rows(targets), vocab_size)

        nothing = ops.zeros((), dtype="float32")
        _, (losses, normalizer) = loop(step, (nothing,), (_cut(x, sizes), _cut(targets, sizes)))
        return (_joined(losses, sizes),), (x, weight, targets, normalizer)

    def backward(residuals, gradients):
        x, weight, targets, normalizer = residuals
        return (*_backward(x, weight, targets, normalizer, gradients[0], sizes, vocab_size, steps), None)

    return with_gradient(forward, backward)(x, weight, targets)[0]


def _backward(x, weight, targets, normalizer, dlosses, sizes, vocab_size, steps):
    rows = weight.shape[0]
    table = ops.cast(weight, x.dtype)
    if rows % steps.MULTIPLE:
        table = ops.pad(table, [[0, -rows % steps.MULTIPLE], [0, 0]])

    def step(carry, chunk):
        x, targets, normalizer, dlosses = chunk
        x, targets, dlosses = _rows(x), _rows(targets), _rows(dlosses)
        logits = matmul(x, ops.transpose(table))
        dlogits = steps.gradient(logits, targets, normalizer, dlosses, vocab_size)
        return (steps.add_product(carry[0], dlogits, x),), (matmul(dlogits, table),)

    chunks = (_cut(x, sizes), _cut(targets, sizes), normalizer, _cut(dlosses, sizes))
    zeros = ops.zeros(table.shape, dtype="float32")
    (dweight,), (dx,) = loop(step, (zeros,), chunks)
    return _joined(dx, sizes), ops.cast(dweight[:rows], standardize_dtype(weight.dtype))


def _sizes(x: Any, rows: int, logits: int) -> _Sizes:
    """Equal chunks of at most so many logits, or of one token of each row."""
    batch, length = size_of(x, 0), size_of(x, 1)
    count = 1 + (batch * length - 1) // max(1, logits // rows)
    if isinstance(count, int):
        count = 1 << (count - 1).bit_length()  # nothing is left over of the usual lengths
    size = -(-length // count)
    return _Sizes(batch, length, -(-length // size), size)


def _cut(x, sizes):
    """(batch, length, ...) -> (count, batch, size, ...), zeros behind the last token."""
    batch, length, count, size = sizes
    rest = x.shape[2:]
    x = ops.pad(x, [[0, 0], [0, count * size - length], *[[0, 0] for _ in rest]])
    return ops.swapaxes(ops.reshape(x, (batch, count, size, *rest)), 0, 1)


def _rows(x):
    """(batch, size, ...) -> (tokens, ...)."""
    return ops.reshape(x, (-1, *x.shape[2:]))


def _joined(x, sizes):
    """(count, tokens, ...) -> (batch, length, ...)."""
    batch, length, count, size = sizes
    rest = x.shape[2:]
    x = ops.swapaxes(ops.reshape(x, (count, batch, size, *rest)), 0, 1)
    return ops.reshape(x, (batch, count * size, *rest))[:, :length]
