"""A block of tokens at once, in place: for torch, whose calls cost more than what they compute for one token.

The large temporaries of a block are taken again by the next one: on a CPU, fetching fresh memory takes longer than
filling it. There exp2 takes a third of the time of exp, and a row times a matrix a tenth of that of a matrix times a
column. A block is (u, dt, B, C, starts), each (k, b, c, ...); starts may be None. Axes as in `chunked`.
"""

from __future__ import annotations

import math

import torch


class Blocks:
    """The work on the blocks of one call."""

    def __init__(self):
        self.room: dict[str, torch.Tensor] = {}

    def outputs(self, h, block, A):
        """The state behind a block, and what its tokens read."""
        states = self._states(h, self._decay(block, A), block)
        return states[-1].clone(), _over_states(block[3], states)

    def last_state(self, h, block, A):
        """The state behind a block."""
        return self._states(h, self._decay(block, A), block)[-1].clone()

    def adjoint_first_state(self, dh, block, dy, A):
        """Gradient of the state before a block, from that of the state behind it and those of the outputs."""
        decay = self._decay(block, A)
        self._adjoint(dh, decay, block, dy)
        return decay[0].clone()

    def gradient(self, block, dy, before, dh, A):
        """Gradients of the state before a block, of A, and of u, dt, B, C, from that of the state behind it."""
        u, dt, B, _, _ = block
        decay = self._decay(block, A)
        states = self._states(before, decay, block)
        dC = _over_channels(states, dy)
        dstates = self._adjoint(dh, decay, block, dy)
        du, dB = _over_states(B, dstates), _over_channels(dstates, u)
        dh = decay[0].clone()
        dlog = decay  # of dt A, once multiplied by the state before each token
        dlog[1:].mul_(states[:-1])
        dlog[0].mul_(before)
        ddt = self._product("adjoint", dlog, A).sum(-2)
        dA = dlog.mul_(dt[..., None, :]).sum(0)
        return dh, dA, (du, ddt, dB, dC)

    def _product(self, name, a, b):
        """a b, in the place of the last product of that name."""
        shape = torch.broadcast_shapes(a.shape, b.shape)
        if name not in self.room or self.room[name].shape != shape:
            self.room[name] = torch.empty(shape, dtype=a.dtype, device=a.device)
        return torch.mul(a, b, out=self.room[name])

    def _decay(self, block, A):
        _, dt, _, _, starts = block
        decay = self._product("decay", dt[..., None, :], A * math.log2(math.e)).exp2_()
        return decay if starts is None else decay.mul_(1.0 - starts[..., None, None, None])

    def _states(self, h, decay, block):
        u, _, B, _, _ = block
        states = self._product("states", u[..., None, :], B[..., None])
        for d, state in zip(decay.unbind(), states.unbind(), strict=True):
            h = state.addcmul_(d, h)
        return states

    def _adjoint(self, dh, decay, block, dy):
        """Gradients of the states behind each token; those of the states before it take the place of `decay`."""
        dstates = self._product("adjoint", block[3][..., None], dy[..., None, :])
        for d, dstate in zip(reversed(decay.unbind()), reversed(dstates.unbind()), strict=True):
            dh = d.mul_(dstate.add_(dh))
        return dstates


def _over_states(weights, states):
    return torch.matmul(weights[..., None, :], states)[..., 0, :]


def _over_channels(states, x):
    return torch.matmul(x[..., None, :], states.mT)[..., 0, :]
