"""Cross entropy in chunks, with softmax and gradient of the logits in one Triton kernel each."""

from __future__ import annotations

from dl_mamba.ops.linear_cross_entropy import chunked


def run(x, weight, targets, vocab_size):
    from dl_mamba.ops.kernels.cross_entropy import Chunk

    return chunked.run(x, weight, targets, vocab_size, Chunk)
