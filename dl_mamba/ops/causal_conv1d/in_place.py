"""Causal depthwise convolution for torch on a CPU: some tokens at a time, in place, with a gradient written by hand.

A block of tokens and what is computed of it stay in the cache. Its window holds the d_conv - 1 tokens before it, too;
tap k sees the window from its token k on.
"""

from __future__ import annotations

from functools import cache, partial

import torch
from torch.nn.functional import silu

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.places import SILU_BACKWARD, Places, blocks, fresh


@cache
def convolution(activation):
    """A function of x (b, l, c), the tokens before it, weight (d_conv, c), bias or None, documents or None -> (y,).

    Documents are numbers (b, d_conv - 1 + l), y is float32.
    """
    return with_gradient(*(partial(function, activation=activation) for function in (_forward, _backward)))


def _forward(*args, activation):
    work, y = _Blocks(*args), fresh(args[0])
    for tokens in work.blocks:
        z = work.convolve(tokens, work.window(tokens), out=y[:, tokens])
        if activation is not None:
            silu(z, inplace=True)
    return (y,), args


def _backward(args, gradients, *, activation):
    work, (dy,) = _Blocks(*args), gradients
    dx = torch.empty_like(args[0])
    dbefore, dweight, dbias, ddocuments = (None if v is None else torch.zeros_like(v) for v in args[1:])
    behind = torch.zeros_like(dbefore, dtype=torch.float32)  # for the last tokens of a block, from the tokens behind it
    for tokens in reversed(work.blocks):
        window, dz = work.window(tokens), dy[:, tokens]
        if activation is not None:
            z = work.convolve(tokens, window, out=work.places.get("z", dz.shape, window))
            dz = SILU_BACKWARD(dz, z, grad_input=z)
        dweight += work.gradient_of_weight(tokens, window, dz)
        if dbias is not None:
            dbias += dz.sum((0, 1))
        dwindow = work.gradient_of_window(tokens, window, dz)
        dwindow[:, dz.shape[1] :] += behind
        dx[:, tokens] = dwindow[:, work.history :]
        behind.copy_(dwindow[:, : work.history])
    return dx, dbefore.copy_(behind), dweight, dbias, ddocuments


class _Blocks:
    """The work on the blocks of one call."""

    def __init__(self, x, before, weight, bias, documents):
        self.x, self.before, self.taps, self.bias, self.documents = x, before, weight.unbind(), bias, documents
        self.history = len(weight) - 1
        self.blocks = blocks(x.shape[1], x.shape[0] * x.shape[2])
        self.places = Places()

    def window(self, tokens):
        """(b, d_conv - 1 + t, c), float32."""
        shape = (self.x.shape[0], self.history + tokens.stop - tokens.start, self.x.shape[2])
        window = self.places.get("window", shape, self.taps[0])
        missing = max(0, self.history - tokens.start)
        window[:, :missing] = self.before[:, self.history - missing :]
        window[:, missing:] = self.x[:, tokens.start + missing - self.history : tokens.stop]
        return window

    def convolve(self, tokens, window, out):
        torch.mul(window[:, self.history :], self.taps[-1], out=out)
        for k, tap in enumerate(self.taps[:-1]):
            out.addcmul_(self._same_document(tokens, k, window[:, k : k - self.history]), tap)
        return out if self.bias is None else out.add_(self.bias)

    def gradient_of_window(self, tokens, window, dz):
        dwindow = self.places.get("dwindow", window.shape, window)
        dwindow[:, : self.history] = 0.0
        torch.mul(dz, self.taps[-1], out=dwindow[:, self.history :])
        for k, tap in enumerate(self.taps[:-1]):
            dwindow[:, k : k - self.history].addcmul_(self._same_document(tokens, k, dz), tap)
        return dwindow

    def gradient_of_weight(self, tokens, window, dz):
        """(d_conv, c)."""
        seen = (window[:, k : k + dz.shape[1]] for k in range(self.history + 1))
        seen = (self._same_document(tokens, k, x) for k, x in enumerate(seen))
        return torch.stack([self.places.product("products", x, dz).sum((0, 1)) for x in seen])

    def _same_document(self, tokens, k, x):
        """x (b, t, c) where tap k sees the document of the token, zeros elsewhere."""
        if self.documents is None or k == self.history:
            return x
        seen, own = (self.documents[:, tokens.start + i : tokens.stop + i] for i in (k, self.history))
        return torch.where((seen == own)[..., None], x, 0.0)
