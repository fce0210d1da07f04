"""Pieces that the kernels share: tiles of tokens, decays, and the softplus."""

import triton
import triton.language as tl


@triton.jit
def load_tile(pointer, rows, stride, left, WIDTH: tl.constexpr, BLOCK: tl.constexpr, first):
    """Rows of tokens and BLOCK columns from `first`; zeros behind the last token and the last column."""
    columns = first + tl.arange(0, BLOCK)
    address = pointer + rows[:, None] * stride + columns[None, :]
    inside = rows[:, None] < left
    if WIDTH % BLOCK != 0:
        inside = inside & (columns[None, :] < WIDTH)
    return tl.load(address, mask=inside, other=0.0)


@triton.jit
def store_tile(pointer, tile, rows, stride, left, WIDTH: tl.constexpr, BLOCK: tl.constexpr, first):
    """The reverse of `load_tile`."""
    columns = first + tl.arange(0, BLOCK)
    address = pointer + rows[:, None] * stride + columns[None, :]
    inside = rows[:, None] < left
    if WIDTH % BLOCK != 0:
        inside = inside & (columns[None, :] < WIDTH)
    tl.store(address, tile.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def state_address(pointer, N: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, first):
    """Addresses, as a (BN, BP) tile, of a state that lies as (headdim, d_state), from row `first`."""
    n = tl.arange(0, BN)
    p = first + tl.arange(0, BP)
    return pointer + n[:, None] + p[None, :] * N


@triton.jit
def state_inside(N: tl.constexpr, P: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr, first):
    n = tl.arange(0, BN)
    p = first + tl.arange(0, BP)
    return (n[:, None] < N) & (p[None, :] < P)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) to the last digits for every x, by log1p(w) = 2 atanh(w / (2 + w))."""
    w = tl.exp(-tl.abs(x))
    s = w / (2.0 + w)
    q = s * s
    series = 1.0 / 15.0
    series = series * q + 1.0 / 13.0
    series = series * q + 1.0 / 11.0
    series = series * q + 1.0 / 9.0
    series = series * q + 1.0 / 7.0
    series = series * q + 1.0 / 5.0
    series = series * q + 1.0 / 3.0
    series = series * q + 1.0
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))
