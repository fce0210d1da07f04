"""Room for torch's temporaries, which the next block of the same work takes again.

On a CPU, fetching fresh memory takes longer than filling it, and what was filled a moment ago is still in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

SILU, SILU_BACKWARD = torch.ops.aten.silu.out, torch.ops.aten.silu_backward.grad_input
BLOCK = 2**18  # numbers of one temporary of a block of tokens: a MiB


class Places:
    """Tensors by name, each of the last shape that was asked for."""

    def __init__(self):
        self._tensors: dict[str, torch.Tensor] = {}
        self._rows: dict[str, tuple[torch.Tensor, ...]] = {}

    def get(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """The tensor of that name, with anything in it; dtype and device as `like`."""
        if name not in self._tensors or self._tensors[name].shape != shape:
            self._tensors[name] = like.new_empty(shape)
            self._rows.pop(name, None)
        return self._tensors[name]

    def rows(self, name: str) -> tuple[torch.Tensor, ...]:
        """The slices along the first axis of the tensor of that name."""
        if name not in self._rows:
            self._rows[name] = self._tensors[name].unbind()
        return self._rows[name]

    def product(self, name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a b, in the shape of a."""
        return torch.mul(a, b, out=self.get(name, a.shape, a))

    def matmul(self, name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a (m, i, j) times b (m, j, k)."""
        return torch.bmm(a, b, out=self.get(name, (*a.shape[:2], b.shape[2]), a))


def fresh(x: torch.Tensor) -> torch.Tensor:
    """A contiguous float32 tensor of the shape of x, with anything in it."""
    return torch.empty_like(x, dtype=torch.float32, memory_format=torch.contiguous_format)


def blocks(count: int, numbers: int) -> list[slice]:
    """`count` tokens in blocks of equal size (but for the last) and about `BLOCK` numbers, `numbers` for each token."""
    number = max(1, round(count * numbers / BLOCK))
    size = max(1, -(-count // number))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def row_blocks(*tensors: torch.Tensor | None) -> Iterator[tuple[torch.Tensor | None, ...]]:
    """Tensors (..., c) as float32 rows (r, c), some at a time; what is written to them reaches contiguous ones."""
    flat = [None if tensor is None else tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    for rows in blocks(*flat[0].shape):
        yield tuple(None if tensor is None else tensor[rows].float() for tensor in flat)
