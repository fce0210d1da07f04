"""State-space duality on a CPU by XLA: one chunk of tokens at a time, with a gradient written by hand.

What a chunk needs stays in the cache. The state lies as (n, k), with the channels k = (e, p) of a group in a row, so
that what it is multiplied with, and what comes out, have tokens as rows and need not be turned. XLA would compute some
kernels again for each of their readers, or make them part of a slow sum: there stand barriers, which TensorFlow lacks.

A chunk is (x, scale, log_decay, B, C): x (b, g, q, k), the next two (b, g, e, q), B and C (b, g, q, n). Other axes as
in `chunked`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from keras import ops

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.loops import loop
from dl_mamba.ops.numerics import Tensor, barrier, dot_product, sum_of_rows
from dl_mamba.ops.sequence import first, padded, size_of
from dl_mamba.ops.ssd.decays import after_each, decays


class Layout(NamedTuple):
    """How tokens lie in chunks."""

    size: int  # tokens of a chunk
    ngroups: int
    heads: int  # of a group
    headdim: int

    def rows(self, tensor):
        """(b, l, ...) -> (c, b, g, q, width); zeros behind the last token leave the state as it is."""
        return ops.transpose(self._cut(tensor), (1, 0, 3, 2, 4))

    def scalars(self, tensor):
        """(b, l, h) -> (c, b, g, e, q)."""
        return ops.transpose(self._cut(tensor), (1, 0, 3, 4, 2))

    def carried(self, D, state):
        """D (h, p) or None and the state (b, h, p, n), as the loop takes them."""
        width = self.heads * self.headdim
        batch, _, _, d_state = ops.shape(state)
        state = _turned(ops.reshape(state, (batch, self.ngroups, width, d_state)))
        return None if D is None else ops.reshape(D, (self.ngroups, 1, width)), state

    def back(self, y, state, length):
        """y (b, l, h, p) and the state behind the last token."""
        count, batch, *_ = ops.shape(y)
        nheads = self.ngroups * self.heads
        y = ops.reshape(ops.transpose(y, (1, 0, 3, 2, 4)), (batch, count * self.size, nheads, self.headdim))
        return first(y, length), ops.reshape(_turned(state), (batch, nheads, self.headdim, state.shape[2]))

    def _cut(self, tensor):
        length = size_of(tensor, 1)
        count = (length + self.size - 1) // self.size
        tensor = padded(tensor, count * self.size - length)
        width = math.prod(tensor.shape[2:]) // self.ngroups
        return ops.reshape(tensor, (ops.shape(tensor)[0], count, self.size, self.ngroups, width))


def run(tokens, state, D, size):
    """y (b, l, h, p) and the state behind the last token, from chunks of `size` tokens; D is (h, p) or None."""
    x, scale, log_decay, B, C = tokens
    nheads, headdim = x.shape[2:]
    lie = Layout(size, B.shape[2], nheads // B.shape[2], headdim)
    chunks = lie.rows(x), lie.scalars(scale), lie.scalars(log_decay), lie.rows(B), lie.rows(C)
    return lie.back(*_recurrence(*chunks, *lie.carried(D, state)), size_of(x, 1))


class Parts(NamedTuple):
    """What outputs and gradients of a chunk are made of."""

    decay: Tensor  # (b, g, e, i, j), from token j to token i; 0 where i < j
    since: Tensor  # (b, g, e, q), since the state before the chunk
    until: Tensor  # (b, g, e, q), until the end of the chunk
    pairs: Tensor  # (b, g, i, j), C B^T
    scores: Tensor  # (b, g, e, i, j)
    u: Tensor  # (b, g, q, k), scale x


def _parts(x, scale, log_decay, B, C):
    decay, since, until = decays(log_decay)
    decay = barrier(decay)
    pairs = _over_last(C, B)
    return Parts(decay, since, until, pairs, barrier(decay * pairs[:, :, None]), barrier(_times(x, scale)))


def _outputs(chunk, D, state):
    x, _, _, B, C = chunk
    p = _parts(*chunk)
    inside = ops.matmul(p.scores, _heads_first(p.u, p.since))
    y = _heads_last(inside) + _times(ops.matmul(C, state), p.since)
    y = y if D is None else y + D * x
    written = _over_tokens(B, barrier(_times(p.u, p.until)))
    return y, _of_state(p.since, state) * state + written


def _gradient(chunk, D, state, dy, dstate):
    """Gradients of the chunk, of D and of the state before it, from those of its outputs and of the state behind it."""
    x, scale, _, B, C = chunk
    p, dy = _parts(*chunk), barrier(dy)
    read, written = barrier((_times(dy, p.since), _times(p.u, p.until)))
    dy_heads = _heads_first(dy, scale)
    dscores = barrier(_over_last(dy_heads, _heads_first(p.u, scale)))
    dpairs = barrier(dscores * p.decay)  # of each head
    crossing = barrier(dpairs * p.pairs[:, :, None])
    du_written = barrier(ops.matmul(B, dstate))
    du = _heads_last(ops.matmul(_turned(p.scores), dy_heads))
    du = barrier(du + _times(du_written, p.until))

    dsince = _over_channels(dy, barrier(ops.matmul(C, state)), scale) * p.since
    duntil = _over_channels(du_written, p.u, scale) * p.until
    dlast = ops.sum(_by_head(_over_rows(dstate * state)[:, :, None], scale), axis=-1)[:, :, 0] * p.since[..., -1]
    dlog_decay = _gradient_of_decays(crossing, dsince, duntil) + dlast[..., None]

    dpairs = _over_heads(dpairs)
    dB = _over_last(written, dstate) + _over_tokens(dpairs, C)
    dC = _over_last(read, state) + ops.matmul(dpairs, B)
    dbefore = _of_state(p.since, state) * dstate + _over_tokens(C, read)
    dx, dD = _times(du, scale), None
    if D is not None:
        dx, dD = dx + D * dy, ops.sum(_over_rows(dy * x), axis=0)[:, None]
    return (dx, _over_channels(du, x, scale), dlog_decay, dB, dC), dD, dbefore


def _gradient_of_decays(crossing, dsince, duntil):
    """The gradient of step k sums over the pairs j < k <= i, what i >= k read of the state, and what j < k wrote to it.

    It is no difference of two large sums.
    """
    after = after_each(crossing.shape[-1], crossing.dtype)
    until = ops.matmul(crossing, after) + dsince[..., None]
    return sum_of_rows(until * (1.0 - after)) + ops.matmul(duntil, after)


def _over_last(a, b):
    """a times the transpose of b, which XLA turns only where it is not written so."""
    return ops.einsum("...ik,...jk->...ij", a, b)


def _over_tokens(a, b):
    """The transpose of a times b."""
    return ops.einsum("...qi,...qj->...ij", a, b)


def _turned(matrix):
    return ops.swapaxes(matrix, -1, -2)


def _by_head(x, like):
    """(b, g, q, k) -> (b, g, q, e, p), with the heads of `like` (b, g, e, q)."""
    shape = ops.shape(x)
    return ops.reshape(x, (*shape[:3], like.shape[2], shape[3] // like.shape[2]))


def _heads_first(x, like):
    return ops.swapaxes(_by_head(x, like), 2, 3)


def _heads_last(x):
    """(b, g, e, q, p) -> (b, g, q, k)."""
    batch, groups, heads, size, headdim = ops.shape(x)
    return ops.reshape(ops.swapaxes(x, 2, 3), (batch, groups, size, heads * headdim))


def _times(x, factor):
    """x (b, g, q, k) times a factor (b, g, e, q) of each token and head."""
    return ops.reshape(_by_head(x, factor) * _turned(factor)[..., None], ops.shape(x))


def _of_state(since, state):
    """The decay over the whole chunk, as a factor of the state: (b, g, 1, k)."""
    batch, groups, heads, _ = ops.shape(since)
    last = ops.broadcast_to(since[..., -1:], (batch, groups, heads, state.shape[-1] // heads))
    return ops.reshape(last, (batch, groups, 1, state.shape[-1]))


def _over_channels(a, b, like):
    """Sum of a b (b, g, q, k) over the channels of each head: (b, g, e, q)."""
    return _turned(dot_product(_by_head(a, like), _by_head(b, like)))


def _over_rows(product):
    """(b, g, q, k) -> (b, g, k)."""
    return sum_of_rows(product)


def _over_heads(product):
    """(b, g, e, i, j) -> (b, g, i, j)."""
    batch, groups, heads, size, _ = ops.shape(product)
    return ops.reshape(sum_of_rows(ops.reshape(product, (batch, groups, heads, -1))), (batch, groups, size, size))


def outputs(*args):
    """y (c, b, g, q, k) and the last state, from chunks, D and a state."""
    *chunks, D, state = args

    def step(carry, chunk):
        y, after = _outputs(chunk, D, *carry)
        return (after,), (y,)

    (state,), (y,) = loop(step, (state,), tuple(chunks))
    return y, state


def forward(*args):
    """The same, and what the gradient keeps: the chunks, the state before each of them, D."""
    *chunks, D, state = args

    def step(carry, chunk):
        y, after = _outputs(chunk, D, *carry)
        return (after,), (y, *carry)

    (state,), (y, before) = loop(step, (state,), tuple(chunks))
    return (y, state), (*chunks, before, D)


def backward(residuals, gradients):
    """Gradients of chunks, D and state."""
    *chunks, before, D = residuals
    dy, dstate = gradients

    def step(carry, item):
        *chunk, before, dy = item
        dstate, *dD = carry
        dchunk, more, dstate = _gradient(chunk, D, before, dy, dstate)
        return (dstate, *(total + more for total in dD)), dchunk

    carry = (dstate,) if D is None else (dstate, ops.zeros_like(D))
    (dstate, *dD), dchunks = loop(step, carry, (*chunks, before, dy), reverse=True)
    return *dchunks, dD[0] if dD else None, dstate


_recurrence = with_gradient(forward, backward, outputs)
