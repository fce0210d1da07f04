"""Gated RMS norm: a program holds whole groups of channels, so that x, z and the gradient of y are read once.

Backward computes the mean squares again. The gradient of the weight is summed over the rows of a program and leaves
it once. Work: about 10 operations for each number forward and 30 backward, far below the bytes.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from dl_mamba.ops.kernels.tiles import sigmoid


@triton.jit
def inverse_root(x):
    """x ** -0.5 to the last digit, because the gradient of a small group cancels."""
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), tl.sqrt_rn(x))


@triton.jit
def norm_forward(
    x,
    weight,
    z,
    rows,
    y,
    X_TOKEN: tl.constexpr,
    Z_TOKEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    BN: tl.constexpr,
    R: tl.constexpr,
    EPSILON: tl.constexpr,
    BEFORE: tl.constexpr,
    HAS_Z: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y (rows, c): R rows of one group of SIZE channels."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None]
    n = tl.arange(0, BN)[None, :]
    channel = tl.program_id(1) * SIZE + n
    inside = (row < rows) & (n < SIZE)
    scale = tl.load(weight + channel, mask=n < SIZE, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()  # for x and z
    value = tl.load(x + row * X_TOKEN + channel, mask=inside, other=0.0).to(tl.float32)
    if HAS_Z:
        gate = tl.load(z + row * Z_TOKEN + channel, mask=inside, other=0.0).to(tl.float32)
        gate *= sigmoid(gate)
        if not BEFORE:
            value *= gate
    out = value * inverse_root(tl.sum(value * value, axis=1) / SIZE + EPSILON)[:, None] * scale
    if HAS_Z and BEFORE:
        out *= gate
    tl.store(y + row * CHANNELS + channel, out.to(y.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward(
    x,
    weight,
    z,
    dy,
    rows,
    share,
    dx,
    dz,
    dweight,
    STAGES: tl.constexpr,
    X_TOKEN: tl.constexpr,
    Z_TOKEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    BN: tl.constexpr,
    R: tl.constexpr,
    EPSILON: tl.constexpr,
    BEFORE: tl.constexpr,
    HAS_Z: tl.constexpr,
):
    """Gradients of x and z, and a program's part of that of the weight, from `share` neighbouring rows of a copy.

    rows: of one copy; the gradient of the weight is summed apart for each.
    """
    n = tl.arange(0, BN)[None, :]
    channel = tl.program_id(1) * SIZE + n
    scale = tl.load(weight + channel, mask=n < SIZE, other=0.0).to(tl.float32)
    dscale = tl.zeros((R, BN), tl.float32)
    each = tl.cdiv(rows, share)
    copy = (tl.program_id(0) // each).to(tl.int64)
    low = tl.program_id(0) % each * share
    for i in tl.range(low, tl.minimum(low + share, rows), R, num_stages=STAGES):
        at = i + tl.arange(0, R)[:, None]
        row = copy * rows + at
        inside = (at < rows) & (n < SIZE)
        given = tl.load(x + row * X_TOKEN + channel, mask=inside, other=0.0).to(tl.float32)
        dout = tl.load(dy + row * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
        value = given
        if HAS_Z:
            raw = tl.load(z + row * Z_TOKEN + channel, mask=inside, other=0.0).to(tl.float32)
            opens = sigmoid(raw)
            gate = raw * opens
            slope = opens * (1.0 + raw * (1.0 - opens))
            if not BEFORE:
                value = given * gate
        shrink = inverse_root(tl.sum(value * value, axis=1) / SIZE + EPSILON)[:, None]
        normal = value * shrink
        if HAS_Z and BEFORE:
            to = dz + row * CHANNELS + channel
            tl.store(to, (dout * normal * scale * slope).to(dz.dtype.element_ty), mask=inside)
            dout *= gate
        dscale += dout * normal
        dout *= scale
        dvalue = shrink * (dout - normal * (tl.sum(dout * normal, axis=1) / SIZE)[:, None])
        if HAS_Z and not BEFORE:
            to = dz + row * CHANNELS + channel
            tl.store(to, (dvalue * given * slope).to(dz.dtype.element_ty), mask=inside)
            dvalue *= gate
        tl.store(dx + row * CHANNELS + channel, dvalue.to(dx.dtype.element_ty), mask=inside)
    to = dweight + tl.program_id(0).to(tl.int64) * CHANNELS + tl.program_id(1) * SIZE + tl.arange(0, BN)
    tl.store(to, tl.sum(dscale, axis=0), mask=tl.arange(0, BN) < SIZE)
