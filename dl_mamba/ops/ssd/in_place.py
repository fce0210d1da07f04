"""State-space duality for torch on a CPU: one chunk of tokens at a time, in place, with a gradient written by hand.

The mathematics is that of `by_chunk`. What a chunk needs stays in the cache, and its temporaries are taken again by the
next one: fetching fresh memory takes longer than filling it. exp2 takes a fraction of the time of torch's exp.

Axes: m = (b, g), q i j token in the chunk, e head of the group, p channel of the head, k = (e, p), n state. What scores
are multiplied with lies "by head", (b, g, e, q, p); what states are multiplied with "by token", (b, g, q, e, p).
"""

from __future__ import annotations

import math
from functools import cache, partial

import torch
from torch.nn.functional import threshold_

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.places import Places, fresh
from dl_mamba.ops.ssd.decays import FORGOTTEN, after_each, cumulative

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
    work = _Chunks(tokens, D)
    y, state = fresh(tokens[0]), work.turned(state)
    states = []
    for *chunk, y_of_chunk in _cut(size, *tokens, y):
        states.append(state)
        state = work.outputs(chunk, state, torch.empty_like(state) if keep else state, y_of_chunk)
    return (y, work.turned_back(state)), (*tokens, D, *states)


def _backward(kept, gradients, *, size):
    tokens, D, states = kept[:5], kept[5], kept[6:]
    dy, dstate = gradients
    work = _Chunks(tokens, D)
    dstate = work.turned(dstate)
    dtokens, dD = tuple(map(torch.empty_like, tokens)), None if D is None else torch.zeros_like(D)
    chunks = list(_cut(size, *tokens, dy, *dtokens))
    for (*chunk, dy_of_chunk, dx, dscale, dlog_decay, dB, dC), state in zip(chunks[::-1], states[::-1], strict=True):
        work.gradient(chunk, state, dy_of_chunk, dstate, (dx, dscale, dlog_decay, dB, dC), dD)
    return *dtokens, work.turned_back(dstate), dD


def _cut(size, *tensors):
    return zip(*(tensor.split(size, dim=1) for tensor in tensors), strict=True)


class _Chunks:
    """The work on the chunks of one call, each (x, scale, log_decay, B, C) with (b, q) as leading axes."""

    def __init__(self, tokens, D):
        self.batch, _, nheads, self.headdim = tokens[0].shape
        self.groups, self.d_state = tokens[3].shape[2:]
        self.heads = nheads // self.groups
        self.D = None if D is None else D.view(self.groups, 1, self.heads, self.headdim)
        self.places = Places()

    def turned(self, state):
        """(b, h, p, n) -> (m, n, k), a copy."""
        state = state.reshape(self.batch * self.groups, self.heads * self.headdim, self.d_state)
        return state.mT.clone(memory_format=torch.contiguous_format)

    def turned_back(self, state):
        return state.mT.reshape(self.batch, self.groups * self.heads, self.headdim, self.d_state)

    def outputs(self, chunk, state, after, y):
        """Fills y, and `after` with the state behind the chunk; that may be the place of the state before it."""
        (x, scale, log_decay), (B, C) = map(self._by_token, chunk[:3]), map(_matrices, chunk[3:])
        y = self._by_token(y)
        decay, since, until = self._decays(log_decay)
        scores = decay.mul_(torch.bmm(C, B.mT)[:, None])
        u = self.places.product("u", x.transpose(2, 3), scale.mT[..., None])
        inside = self.places.matmul("inside", scores.flatten(0, 1), u.flatten(0, 2))
        torch.mul(self.places.matmul("read", C, state).view_as(x), self._factor(since), out=y)
        y.add_(inside.view_as(u).transpose(2, 3))
        if self.D is not None:
            y.addcmul_(x, self.D)
        written = self.places.product("written", x, self._factor(until) * scale[..., None])
        torch.mul(state, self._of_state(since), out=after).baddbmm_(B.mT, _rows(written))
        return after

    def gradient(self, chunk, state, dy, dstate, gradients, dD):
        """Fills the gradients of the chunk and adds to that of D; `dstate` becomes that of the state before it."""
        (x, scale, log_decay), (B, C) = map(self._by_token, chunk[:3]), map(_matrices, chunk[3:])
        dx, dscale, dlog_decay = map(self._by_token, gradients[:3])
        dy = self._by_token(dy)
        decay, since, until = self._decays(log_decay)
        pairs = torch.bmm(C, B.mT)

        u = self.places.product("u", x.transpose(2, 3), scale.mT[..., None])
        dy_by_head = self.places.get("dy", u.shape, u).copy_(dy.transpose(2, 3)).flatten(0, 2)
        crossing = self.places.matmul("crossing", dy_by_head, u.flatten(0, 2).mT).view_as(decay)
        scores = self.places.product("scores", decay, pairs[:, None])
        du_inside = self.places.matmul("du_inside", scores.flatten(0, 1).mT, dy_by_head).view_as(u).transpose(2, 3)
        dpairs = crossing.mul_(decay).sum(1)
        crossing.mul_(pairs[:, None])

        read = self.places.product("read", dy, self._factor(since))
        written = self.places.product("written", x, self._factor(until) * scale[..., None])
        dB = torch.bmm(_rows(written), dstate.mT).baddbmm_(dpairs.mT, C)
        dC = torch.bmm(_rows(read), state.mT).baddbmm_(dpairs, B)
        dsince = self.places.matmul("dsince", C, state).view_as(x).mul_(read).sum(-1)
        du = self.places.matmul("du", B, dstate).view_as(x)
        duntil = self.places.product("duntil", du, written).sum(-1)
        dlast = self.places.product("dlast", dstate, state).sum(1).view(*since.shape[:2], self.headdim).sum(-1)
        dlast = (dlast * since[..., -1])[..., None]
        dstate.mul_(self._of_state(since)).baddbmm_(C.mT, _rows(read))

        du.mul_(self._factor(until)).add_(du_inside)
        torch.sum(self.places.product("dscale", du, x), -1, out=dscale)
        torch.mul(du, scale[..., None], out=dx)
        if self.D is not None:
            dx.addcmul_(dy, self.D)
            dD += self.places.product("dD", dy, x).sum((0, 2)).view_as(dD)
        dsince, duntil = (v.mT.reshape(since.shape) for v in (dsince, duntil))
        dlog_decay.copy_(self._factor(self._of_decays(crossing, dsince, duntil) + dlast)[..., 0])
        for given, gradient in zip(gradients[3:], (dB, dC), strict=True):
            given.copy_(gradient.unflatten(0, (self.batch, self.groups)).transpose(1, 2))

    def _of_decays(self, crossing, dsince, duntil):
        """Gradient of the log decays, as in `by_chunk`."""
        after = after_each(crossing.shape[-1], "float32")
        pairs = self.places.matmul("pairs", crossing.flatten(0, 2)[None], after[None]).view_as(crossing)
        return pairs.tril_().sum(-2) + torch.matmul(dsince, 1.0 - after) + torch.matmul(duntil, after)

    def _decays(self, log_decay):
        """`decays.decays` of (b, g, q, e), as (m, e, i, j) and (m, e, q)."""
        log2 = (log_decay.mT.flatten(0, 1) * math.log2(math.e)).clamp_(min=FORGOTTEN)
        coarse, fine = cumulative(log2)
        decay = self.places.get("decay", (*log2.shape, log2.shape[-1]), log2)
        torch.sub(coarse[..., None], coarse[..., None, :], out=decay).add_(fine[..., None]).sub_(fine[..., None, :])
        threshold_(decay.clamp_(max=0.0).exp2_().tril_(), NEGLIGIBLE, 0.0)
        since = threshold_(decay[..., 0] * log2[..., :1].exp2_(), NEGLIGIBLE, 0.0)
        return decay, since, decay[..., -1, :].clone()

    def _by_token(self, x):
        """(b, q, h, ...) -> (b, g, q, e, ...)."""
        return x.unflatten(2, (self.groups, self.heads)).transpose(1, 2)

    def _factor(self, v):
        """(m, e, q) -> (b, g, q, e, 1)."""
        return v.unflatten(0, (self.batch, self.groups)).mT[..., None]

    def _of_state(self, since):
        """The decay over the whole chunk, as a factor of the state: (m, 1, k)."""
        return since[..., -1].repeat_interleave(self.headdim, dim=1)[:, None]


def _matrices(x):
    """(b, q, g, n) -> (m, q, n)."""
    return x.transpose(1, 2).flatten(0, 1)


def _rows(x):
    """(b, g, q, e, p) -> (m, q, k)."""
    return x.flatten(3).flatten(0, 1)
