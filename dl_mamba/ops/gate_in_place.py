"""(y + D x) SiLU(z) for torch on a CPU: some rows at a time, in place, with a gradient written by hand."""

from __future__ import annotations

import torch

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.places import SILU, SILU_BACKWARD, Places, fresh, row_blocks


def _forward(y, x, D, z):
    gated, places = fresh(x), Places()
    for y_, x_, z_, gated_ in row_blocks(y, x, z, gated):
        torch.mul(_with_skip(y_, x_, D, gated_), SILU(z_, out=places.get("gate", x_.shape, x_)), out=gated_)
    return (gated,), (y, x, D, z)


def _backward(args, gradients):
    y, x, D, z = args
    dy, dx, dz = (fresh(x) for _ in range(3))
    dD, places = None if D is None else torch.zeros_like(D), Places()
    for y_, x_, z_, dgated, dy_, dx_, dz_ in row_blocks(y, x, z, gradients[0], dy, dx, dz):
        torch.mul(dgated, SILU(z_, out=places.get("gate", x_.shape, x_)), out=dy_)
        ungated = _with_skip(y_, x_, D, places.get("ungated", x_.shape, x_))
        SILU_BACKWARD(places.product("products", dgated, ungated), z_, grad_input=dz_)
        if D is None:
            dx_.zero_()
        else:
            torch.mul(dy_, D, out=dx_)
            dD += places.product("products", dy_, x_).sum(0)
    return dy, dx, dD, dz


def _with_skip(y, x, D, out):
    return y if D is None else torch.addcmul(y, x, D, out=out)


skip_and_gate = with_gradient(_forward, _backward)
