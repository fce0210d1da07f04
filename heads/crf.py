"""Linear-chain conditional random field: p(y | x) = exp(sum_t potential[t, y[t-1], y[t]]) / Z.

Lafferty, McCallum and Pereira, "Conditional Random Fields", 2001. A chain is one tensor of log potentials
(batch, length, C, C), axis 2 the label before, axis 3 the label here, so that loss and decoding need nothing else.
Before the first token a chain is in state 0. The potential of padding is the identity: it keeps every state.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from dl_mamba.heads.base import NOWHERE, is_real
from dl_mamba.ops.loops import loop, scan

IGNORED = -100


def log_potentials(emissions: Any, transitions: Any, start: Any, end: Any, mask: Any) -> Any:
    """Scores of labels and of pairs of labels as one chain.

    Args:
        emissions: (batch, length, C) float32, the score of each label at each token.
        transitions: (C, C), from a label (axis 0) to the next one (axis 1).
        start, end: (C,), of the first and of the last label.
        mask: (batch, length) bool, true at real tokens, anywhere.

    Returns:
        (batch, length, C, C) float32.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.crf import log_potentials
    >>> zeros = np.zeros((2, 2), "float32")
    >>> mask = np.array([[True, True, False]])
    >>> chain = log_potentials(np.ones((1, 3, 2), "float32"), zeros, zeros[0], zeros[0], mask)
    >>> tuple(chain.shape), float(chain[0, 1, 0, 0]), float(chain[0, 2, 0, 0])
    ((1, 3, 2, 2), 1.0, 0.0)
    """
    number = ops.cumsum(ops.cast(mask, "int32"), axis=1)
    first = ops.logical_and(mask, number == 1)[..., None, None]
    last = ops.logical_and(mask, number == number[:, -1:])[..., None]
    emissions = ops.cast(emissions, "float32") + ops.where(last, ops.cast(end, "float32"), 0.0)
    between = ops.where(first, ops.cast(start, "float32"), ops.cast(transitions, "float32"))
    keep = ops.where(ops.eye(emissions.shape[-1], dtype="bool"), 0.0, NOWHERE)
    return ops.where(mask[..., None, None], emissions[:, :, None, :] + between, keep)


def real_in_chain(potentials: Any) -> Any:
    """Where a chain has real tokens: (batch, length) bool."""
    return is_real(potentials[:, :, 0, 1])


def log_partition(potentials: Any) -> Any:
    """log Z of each chain by the forward algorithm: (batch, length, C, C) -> (batch,); 0 for padding alone.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.crf import log_partition
    >>> bool(np.isclose(float(log_partition(np.zeros((1, 3, 2, 2), "float32"))[0]), 3 * np.log(2)))
    True
    """

    def step(carry: tuple, xs: tuple) -> tuple:
        after = ops.logsumexp(carry[0][:, :, None] + xs[0], axis=1)
        return (after,), (after,)

    potentials = ops.convert_to_tensor(potentials)
    (alpha,), _ = scan(step, (_state_zero(potentials),), (ops.moveaxis(potentials, 1, 0),))
    return ops.logsumexp(alpha, axis=1)


def negative_log_likelihood(potentials: Any, labels: Any) -> Any:
    """-log of the summed probability of all paths that agree with the labels.

    Args:
        potentials: (batch, length, C, C) float32.
        labels: (batch, length) int; where one is negative, such as -100, every label agrees. Padding is passed over.

    Returns:
        (batch,) float32, >= 0 up to rounding.
    """
    size = potentials.shape[-1]
    labels = ops.cast(labels, "int32")[..., None]
    free = ops.logical_or(labels < 0, ops.logical_not(real_in_chain(potentials)[..., None]))
    agree = ops.logical_or(free, ops.equal(labels, ops.arange(size, dtype="int32")))
    bound = ops.where(agree[:, :, None, :], potentials, NOWHERE)
    both = log_partition(ops.concatenate([potentials, bound], axis=0))  # one loop for the two sums
    all_paths, agreeing = ops.split(both, 2, axis=0)
    return all_paths - agreeing


def viterbi(potentials: Any) -> Any:
    """The most probable labels of each chain (Viterbi 1967): (batch, length, C, C) -> (batch, length) int32.

    Padding gets -100.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads.crf import viterbi
    >>> chain = np.zeros((1, 2, 2, 2), "float32")
    >>> chain[0, :, :, 1] = 1.0
    >>> np.asarray(viterbi(chain)).tolist()
    [[1, 1]]
    """

    def forward(carry: tuple, xs: tuple) -> tuple:
        scores = carry[0][:, :, None] + xs[0]
        return (ops.max(scores, axis=1),), (ops.cast(ops.argmax(scores, axis=1), "float32"),)

    def backward(carry: tuple, xs: tuple) -> tuple:
        here = carry[0]
        chosen = ops.one_hot(ops.cast(here, "int32"), size)
        return (ops.sum(xs[0] * chosen, axis=-1),), (here,)

    potentials = ops.cast(ops.convert_to_tensor(potentials), "float32")
    size = potentials.shape[-1]
    (alpha,), before = loop(forward, (_state_zero(potentials),), (ops.moveaxis(potentials, 1, 0),))
    last = ops.cast(ops.argmax(alpha, axis=-1), "float32")
    _, (path,) = loop(backward, (last,), before, reverse=True)
    path = ops.cast(ops.moveaxis(path, 0, 1), "int32")
    return ops.where(real_in_chain(potentials), path, IGNORED)


def _state_zero(potentials: Any) -> Any:
    """The scores (batch, C) before the first token."""
    outside = ops.cast(ops.arange(potentials.shape[-1]) > 0, "float32") * NOWHERE
    return ops.zeros_like(potentials[:, 0, 0, :]) + outside
