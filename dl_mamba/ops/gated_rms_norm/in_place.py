"""Gated RMS norm for torch on a CPU: some rows at a time, in place, with a gradient written by hand.

y = r t w, with r = 1 / sqrt(mean(t^2) + epsilon), and t = x or x SiLU(z). With the products p = dy t, the gradient of w
is the sum of r p over the rows, that of t is r w dy - t r^3 mean(w p).

Axes: r row, g group, c channel of the group.
"""

from __future__ import annotations

from functools import cache, partial

import torch

from dl_mamba.ops.gradients import with_gradient
from dl_mamba.ops.places import SILU, SILU_BACKWARD, Places, fresh, row_blocks


@cache
def norm(epsilon, ngroups, norm_before_gate):
    """A function of x, weight and z, shaped (..., channels), (channels,) and as x or None -> (y,), float32."""
    options = {"epsilon": epsilon, "ngroups": ngroups, "norm_before_gate": norm_before_gate}
    return with_gradient(partial(_forward, **options), partial(_backward, **options))


def _forward(x, weight, z, *, epsilon, ngroups, norm_before_gate):
    y, places, w = fresh(x), Places(), weight.float().view(ngroups, -1)
    for x_, z_, y_ in row_blocks(x, z, y):
        gate = None if z is None else SILU(z_, out=places.get("gate", y_.shape, y_))
        t = _grouped(x_ if z is None or norm_before_gate else places.product("t", x_, gate), w)
        torch.mul(t, _scale(t, epsilon)[..., None], out=_grouped(y_, w)).mul_(w)
        if z is not None and norm_before_gate:
            y_.mul_(gate)
    return (y,), (x, weight, z)


def _backward(args, gradients, *, epsilon, ngroups, norm_before_gate):
    x, weight, z = args
    places, w = Places(), weight.float().view(ngroups, -1)
    dx, dz, dw = fresh(x), None if z is None else fresh(z), torch.zeros_like(w)
    for x_, z_, dy, dx_, dz_ in row_blocks(x, z, gradients[0], dx, dz):
        gate = None if z is None else SILU(z_, out=places.get("gate", dx_.shape, dx_))
        t = _grouped(x_ if z is None or norm_before_gate else places.product("t", x_, gate), w)
        scale = _scale(t, epsilon)
        dnormed = dy
        if z is not None and norm_before_gate:
            normed = places.product("normed", t, scale[..., None]).mul_(w).view_as(dy)
            SILU_BACKWARD(normed.mul_(dy), z_, grad_input=dz_)
            dnormed = places.product("dnormed", dy, gate)
        dnormed = _grouped(dnormed, w)
        products = places.product("products", dnormed, t).transpose(0, 1)  # rows times matrices are the faster way
        dw += torch.matmul(scale.mT[:, None], products)[:, 0]
        mean = torch.matmul(w[:, None], products.mT)[:, 0].mT / w.shape[1]
        dt = places.product("dt", dnormed, w).mul_(scale[..., None])
        dt = dt.addcmul_(t, (scale**3 * mean)[..., None], value=-1.0).view_as(dx_)
        if z is None or norm_before_gate:
            dx_.copy_(dt)
        else:
            torch.mul(dt, gate, out=dx_)
            SILU_BACKWARD(dt.mul_(x_), z_, grad_input=dz_)
    return dx.to(x.dtype), dw.view_as(weight).to(weight.dtype), None if z is None else dz.to(z.dtype)


def _grouped(rows, weight):
    return rows.view(-1, *weight.shape)


def _scale(t, epsilon):
    """(r, g)."""
    return (torch.linalg.vector_norm(t, dim=-1).square_() / t.shape[-1] + epsilon).rsqrt_()
