"""A block of tokens at once, in place: for torch, whose calls cost more than what they compute for one token.

On a CPU exp2 takes a third of the time of exp on some processors, and a row times a matrix a tenth of that of a matrix
times a column. Powers that underflow take ten times as long as others, and what is subnormal slows products down, so
that no decay is smaller than `SMALLEST`. A block is (u, dt, B, C, starts), each (k, b, c, ...); starts may be None.
Axes as in `chunked`.
"""

from __future__ import annotations

import math

import torch

from dl_mamba.ops.places import Places
from dl_mamba.ops.sequence import runs_in_place

SMALLEST = -64.0  # log2 of a decay, which leaves 5e-20 of a state: far less than sums of float32 round off


class Blocks:
    """The work on the blocks of one call, with all of its dt (..., e)."""

    def __init__(self, dt, A):
        self.places = Places()
        self.log2 = A * math.log2(math.e)
        self.some_smaller = runs_in_place(dt) and dt.numel() > 0 and bool(dt.amax() * self.log2.amin() < SMALLEST)

    def outputs(self, h, block, A):
        """The state behind a block, and what its tokens read."""
        self._decay(block, A)
        states = self._states(h, block)
        return states[-1].clone(), _over_states(block[3], states)

    def last_state(self, h, block, A):
        """The state behind a block."""
        self._decay(block, A)
        return self._states(h, block)[-1].clone()

    def adjoint_first_state(self, dh, block, dy, A):
        """Gradient of the state before a block, from that of the state behind it and those of the outputs."""
        decay = self._decay(block, A)
        return decay[0] * self._adjoint(dh, block, dy)[0]

    def gradient(self, block, dy, before, dh, A):
        """Gradients of the state before a block, of A, and of u, dt, B, C, from that of the state behind it."""
        u, dt, B, _, _ = block
        decay = self._decay(block, A)
        states = self._states(before, block)
        dC = _over_channels(states, dy)
        dstates = self._adjoint(dh, block, dy)
        du, dB = _over_states(B, dstates), _over_channels(dstates, u)
        dlog = decay.mul_(dstates)  # of dt A, once multiplied by the state before each token
        dh = dlog[0].clone()
        dlog[1:].mul_(states[:-1])
        dlog[0].mul_(before)
        ddt = self.places.product("adjoint", dlog, A).sum(-2)
        dA = dlog.mul_(dt[..., None, :]).sum(0)
        return dh, dA, (du, ddt, dB, dC)

    def _decay(self, block, A):
        """The decay of each token, in a place that `_states` and `_adjoint` read."""
        _, dt, _, _, starts = block
        decay = self.places.product("decay", _for_states(dt, A.shape[1]), self.log2)
        decay = (decay.clamp_(min=SMALLEST) if self.some_smaller else decay).exp2_()
        return decay if starts is None else decay.mul_(1.0 - starts[..., None, None, None])

    def _states(self, h, block):
        u, _, B, _, _ = block
        states = self.places.product("states", _for_states(u, B.shape[-1]), B[..., None])
        for d, state in zip(self.places.rows("decay"), self.places.rows("states"), strict=True):
            h = state.addcmul_(d, h)
        return states

    def _adjoint(self, dh, block, dy):
        """Gradients of the states behind each token."""
        C = block[3]
        dstates = self.places.product("adjoint", _for_states(dy, C.shape[-1]), C[..., None])
        *others, last = self.places.rows("adjoint")
        dh = last.add_(dh)
        for dstate, d in zip(reversed(others), reversed(self.places.rows("decay")), strict=False):
            dh = dstate.addcmul_(d, dh)
        return dstates


def _for_states(x, count):
    """(..., e) as (..., n, e), the same for each state."""
    return x[..., None, :].expand(*x.shape[:-1], count, x.shape[-1])


def _over_states(weights, states):
    return torch.matmul(weights[..., None, :], states)[..., 0, :]


def _over_channels(states, x):
    return torch.matmul(x[..., None, :], states.mT)[..., 0, :]
