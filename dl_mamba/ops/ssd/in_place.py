"""State-space duality for torch on a CPU: one chunk of tokens at a time, in place, with a gradient written by hand.

The mathematics is that of `by_chunk`. What a chunk needs stays in the cache, and its temporaries are taken again by the
next one: fetching fresh memory takes longer than filling it. A call of torch takes microseconds whatever its size, so
what is small is computed for all chunks at once. exp2 takes a fraction of the time of torch's exp.

Axes: m = (b, g), c chunk, q i j token in the chunk, e head of the group, p channel of the head, k = (e, p), n state.
What scores are multiplied with lies "by head", (m e, q, p); what states are multiplied with "by token",
(b, g, q, e, p).
"""

from __future__ import annotations

import math
from functools import cache, partial
from typing import NamedTuple

import torch
from torch.nn.functional import pad, threshold_

from dl_mamba.ops import products
from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.places import Places, fresh
from dl_mamba.ops.ssd.decays import FORGOTTEN, cumulative

NEGLIGIBLE = 2.0**-64  # smaller decays are none: products with subnormal numbers take several times as long


def run(tokens, state, D, size):
    """y (b, l, h, p) and the state behind the last token, from chunks of `size` tokens; D is (h, p) or None."""
    return _recurrence(size)(*tokens, state, D)


@cache
def _recurrence(size):
    functions = _forward, _backward, lambda *args, size: _forward(*args, size=size, keep=False)[0]
    return with_gradient(*(partial(function, size=size) for function in functions))


def _forward(*args, size, keep=True):
    *tokens, state, D = args
    work, y, states = _Chunks(tokens, D, size), fresh(tokens[0]), []
    state = work.turned(state)
    for chunk, y_of_chunk in zip(work.chunks(), work.cut(y), strict=True):
        states.append(state)
        state = work.outputs(chunk, state, torch.empty_like(state) if keep else state, y_of_chunk)
    return (y, work.turned_back(state)), (*tokens, D, *states)


def _backward(kept, gradients, *, size):
    tokens, D, states = kept[:5], kept[5], kept[6:]
    dy, dstate = gradients
    work, dtokens, dD = _Chunks(tokens, D, size), tuple(map(fresh, tokens)), None if D is None else torch.zeros_like(D)
    dstate, decays = work.turned(dstate), _DecayGradients(work)
    chunks = zip(work.chunks(), states, work.cut(dy), work.gradients(*dtokens), decays.chunks(), strict=True)
    for chunk, state, dy_of_chunk, given, given_of_decays in reversed(list(chunks)):
        work.gradient(chunk, state, dy_of_chunk, dstate, given, given_of_decays, dD)
    dtokens[2].copy_(decays.total())
    return *dtokens, work.turned_back(dstate), dD


class _Chunk(NamedTuple):
    x: torch.Tensor  # by token
    B: torch.Tensor  # (m, q, n)
    C: torch.Tensor
    scale: torch.Tensor  # (b, g, q, e, 1)
    scale_of_scores: torch.Tensor  # (m, e, 1, j)
    coarse: tuple[torch.Tensor, torch.Tensor]  # running sums of `decays.cumulative`, (m, e, i, 1) and (m, e, 1, j)
    fine: tuple[torch.Tensor, torch.Tensor]
    since: torch.Tensor  # decay from the state before the chunk, (b, g, q, e, 1)
    until: torch.Tensor  # decay to the end of the chunk
    over: torch.Tensor  # decay from the one to the other, (m, 1, k)


class _ChunkGradients(NamedTuple):
    x: torch.Tensor
    scale: torch.Tensor  # (b, g, q, e)
    B: torch.Tensor  # (b, g, q, n)
    C: torch.Tensor


class _Chunks:
    """The work on the chunks of one call."""

    def __init__(self, tokens, D, size):
        self.tokens, self.size, self.places = tokens, size, Places()
        self.batch, self.length, nheads, self.headdim = tokens[0].shape
        self.groups, self.d_state = tokens[3].shape[2:]
        self.heads = nheads // self.groups
        self.D = None if D is None else D.view(self.groups, 1, self.heads, self.headdim)

    def chunks(self):
        x, scale, log_decay, B, C = self.tokens
        log2 = (self.by_head(log_decay) * math.log2(math.e)).clamp_(min=FORGOTTEN)
        coarse, fine = cumulative(self.in_chunks(log2))
        since = threshold_((coarse + fine).exp2_(), NEGLIGIBLE, 0.0)
        until = threshold_((coarse[..., -1:] - coarse + (fine[..., -1:] - fine)).exp2_(), NEGLIGIBLE, 0.0)
        over = since[..., -1].movedim(2, 0).repeat_interleave(self.headdim, 2)[:, :, None]
        scale_of_scores = self.by_head(scale)[:, :, None].contiguous().split(self.size, 3)
        matrices = (self.by_group(v).flatten(0, 1).split(self.size, 1) for v in (B, C))
        sums = (self._against_each_other(self.joined(v)) for v in (coarse, fine))
        factors = (self.cut(self.by_token(self.joined(v))[..., None]) for v in (since, until))
        return map(_Chunk, self.cut(x), *matrices, self.cut(scale[..., None]), scale_of_scores, *sums, *factors, over)

    def gradients(self, x, scale, _, B, C):
        """Places for the gradients of each chunk, those of the log decays left out."""
        matrices = (self.by_group(v).split(self.size, 2) for v in (B, C))
        return map(_ChunkGradients, self.cut(x), self.cut(scale), *matrices)

    def outputs(self, chunk, state, behind, y):
        """Fills y, and `behind` with the state behind the chunk; that may be the place of the state before it."""
        x, B, C = chunk[:3]
        scores = self._decay(chunk).mul_(torch.bmm(C, B.mT)[:, None]).mul_(chunk.scale_of_scores)
        inside = self.places.matmul("inside", scores.flatten(0, 1), self._heads("x", x))
        torch.mul(products.bmm(C, state).view(x.shape), chunk.since, out=y).add_(self._tokens(inside))
        if self.D is not None:
            y.addcmul_(x, self.D)
        written = self.places.product("written", x, chunk.until * chunk.scale)
        return products.add_bmm(torch.mul(state, chunk.over, out=behind), B.mT, _rows(written))

    def gradient(self, chunk, state, dy, dstate, given, decays, dD):
        """Fills what is given and adds to the gradient of D; `dstate` becomes that of the state before the chunk."""
        x, B, C, scale = chunk[:4]
        decay, pairs = self._decay(chunk), torch.bmm(C, B.mT)[:, None]

        dy_by_head = self._heads("dy", dy)
        crossing = self.places.matmul("crossing", dy_by_head, self._heads("x", x).mT).view_as(decay)
        crossing.mul_(chunk.scale_of_scores).mul_(decay)
        dpairs = crossing.sum(1)
        torch.sum(crossing.mul_(pairs).cumsum_(-1).tril_(-1), -2, out=decays.crossing)
        du_inside = self.places.matmul("du_inside", decay.mul_(pairs).flatten(0, 1).mT, dy_by_head)

        read = self.places.product("read", dy, chunk.since)
        written = self.places.product("written", x, chunk.until * scale)
        self._fill(given.B, products.bmm(_rows(written), dstate.mT).baddbmm_(dpairs.mT, C))
        self._fill(given.C, products.bmm(_rows(read), state.mT).baddbmm_(dpairs, B))
        torch.sum(products.bmm(C, state).view(x.shape).mul_(read), -1, out=decays.since)
        du = products.bmm(B, dstate).view(x.shape)
        torch.sum(self.places.product("product", du, written), -1, out=decays.until)
        over = self.places.product("over", dstate, state).sum(1).mul_(chunk.over[:, 0])
        torch.sum(over.unflatten(1, (self.heads, self.headdim)), -1, out=decays.over)

        du.mul_(chunk.until).add_(self._tokens(du_inside))
        torch.sum(self.places.product("product", du, x), -1, out=given.scale)
        torch.mul(du, scale, out=given.x)
        if self.D is not None:
            given.x.addcmul_(dy, self.D)
            dD += self.places.product("product", dy, x).sum((0, 2)).view_as(dD)
        products.add_bmm(dstate.mul_(chunk.over), C.mT, _rows(read))

    def _decay(self, chunk):
        """From token j to token i of the chunk, 0 where i < j: (m, e, i, j)."""
        (coarse, coarse_before), (fine, fine_before) = chunk.coarse, chunk.fine
        decay = self.places.get("decay", (*coarse.shape[:-1], coarse_before.shape[-1]), coarse)
        torch.sub(coarse, coarse_before, out=decay).add_(fine).sub_(fine_before)
        return threshold_(decay.exp2_().tril_(), NEGLIGIBLE, 0.0)

    def turned(self, state):
        """(b, h, p, n) -> (m, n, k), a copy."""
        state = state.reshape(self.batch * self.groups, self.heads * self.headdim, self.d_state)
        return state.mT.clone(memory_format=torch.contiguous_format)

    def turned_back(self, state):
        return state.mT.reshape(self.batch, self.groups * self.heads, self.headdim, self.d_state)

    def by_group(self, matrices):
        """(b, l, g, n) -> (b, g, l, n)."""
        return matrices.transpose(1, 2)

    def by_head(self, v):
        """(b, l, h) -> (m, e, l)."""
        return v.mT.reshape(self.batch * self.groups, self.heads, self.length)

    def by_token(self, v):
        """(m, e, l) -> (b, l, h)."""
        return v.reshape(self.batch, self.groups * self.heads, self.length).mT

    def in_chunks(self, v):
        """(m, e, l) -> (m, e, c, q), with zeros behind the last token."""
        return pad(v, (0, -self.length % self.size)).unflatten(2, (-1, self.size))

    def joined(self, v):
        """(m, e, c, q) -> (m, e, l)."""
        return v.flatten(2)[..., : self.length]

    def cut(self, x):
        """The chunks of (b, l, h, ...), as (b, g, q, e, ...)."""
        return x.unflatten(2, (self.groups, self.heads)).transpose(1, 2).split(self.size, 2)

    def _against_each_other(self, v):
        return zip(v[..., None].split(self.size, 2), v[:, :, None].split(self.size, 3), strict=True)

    def _heads(self, name, x):
        """By token -> by head; a product takes the rows of one matrix after the other from where they lie."""
        x = x.transpose(2, 3)
        return (x if len(x) == self.groups == 1 else self.places.get(name, x.shape, x).copy_(x)).flatten(0, 2)

    def _tokens(self, x):
        """By head -> by token."""
        return x.unflatten(0, (self.batch, self.groups, self.heads)).transpose(2, 3)

    def _fill(self, given, gradient):
        given.copy_(gradient.unflatten(0, (self.batch, self.groups)))


class _DecayPlaces(NamedTuple):
    crossing: torch.Tensor  # (m, e, q)
    since: torch.Tensor  # (b, g, q, e)
    until: torch.Tensor
    over: torch.Tensor  # (m, e)


class _DecayGradients:
    """Gradient of the log decays, as in `by_chunk`, from what each chunk leaves in its places."""

    def __init__(self, work):
        self.work, log_decay = work, work.tokens[2]
        self.crossing = fresh(work.by_head(log_decay))
        self.since, self.until = fresh(log_decay), fresh(log_decay)
        self.over = self.crossing.new_empty(-(-work.length // work.size), *self.crossing.shape[:2])

    def chunks(self):
        crossing = self.crossing.split(self.work.size, 2)
        return map(_DecayPlaces, crossing, self.work.cut(self.since), self.work.cut(self.until), self.over)

    def total(self):
        """(b, l, h): what crosses token k (j < k <= i), what is read from k on, and what was written before it."""
        by_head = self.crossing, self.work.by_head(self.since), self.work.by_head(self.until)
        crossing, since, until = map(self.work.in_chunks, by_head)
        total = since.flip(-1).cumsum(-1).flip(-1) + self.over.movedim(0, 2)[..., None]
        total[..., 1:] += (crossing + until.cumsum(-1))[..., :-1]
        return self.work.by_token(self.work.joined(total))


def _rows(x):
    """(b, g, q, e, p) -> (m, q, k)."""
    return x.flatten(3).flatten(0, 1)
