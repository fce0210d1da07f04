"""SSD of x, B and C = SiLU(conv(xBC)), on a CPU by XLA. The gradient keeps xBC and convolves again.

xBC is a part of what in_proj makes, which is kept anyway; x, B and C would be kept for the gradient of SSD alone, and
cost next to nothing to compute. Letters as in `by_chunk`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from keras import ops

from dl_mamba.ops import dispatch
from dl_mamba.ops.causal_conv1d.chunked import activated, final_window
from dl_mamba.ops.gradients import after, vjp, with_gradient
from dl_mamba.ops.numerics import lean_skip_and_gate, upcast
from dl_mamba.ops.sequence import compiled_on_a_cpu, size_of, split_channels
from dl_mamba.ops.ssd import by_chunk, chunked


def takes(x: Any, mask: Any, segment_ids: Any) -> bool:
    """Whether `run` can replace `causal_conv1d` and `ssd`: for unpadded rows (batch, length, ...) of one document."""
    open_to_it = compiled_on_a_cpu(x) and dispatch.is_open_to(dispatch.PORTABLE)
    return open_to_it and mask is None and segment_ids is None and x.shape[1] != 1


def run(
    xBC: Any,
    weight: Any,
    bias: Any,
    *,
    dt: Any,
    A: Any,
    D: Any,
    z: Any,
    dt_bias: Any,
    dt_limit: tuple[float, float],
    chunk_size: int,
    before: Any,
    state: Any,
    ngroups: int,
) -> tuple[Any, Any, Any]:
    """y (batch, length, nheads, headdim) in the dtype of xBC, and the states of convolution and SSD.

    Args:
        xBC: (batch, length, nheads x headdim + 2 ngroups x d_state), in front of the convolution.
        weight, bias: of the convolution, as in `causal_conv1d`.
        dt, A, D, z, dt_bias, dt_limit, chunk_size: as in `ssd`.
        before: state of the convolution, (batch, d_conv - 1, channels).
        state: of SSD, (batch, nheads, headdim, d_state) float32.
        ngroups: groups of heads that share B and C.
    """
    table = {dispatch.PORTABLE: _run}
    dispatch.choose("causal_conv1d", table, dispatch.PORTABLE)  # so that `last_implementation` knows of both
    chosen = dispatch.choose("ssd", table, dispatch.PORTABLE)
    return chosen(xBC, weight, bias, dt, A, D, z, dt_bias, dt_limit, chunk_size, before, state, ngroups)


def _run(xBC, weight, bias, dt, A, D, z, dt_bias, dt_limit, chunk_size, before, state, ngroups):
    _, nheads, headdim, d_state = state.shape
    weight, bias, dt, A, D, z, dt_bias, state = upcast("float32", weight, bias, dt, A, D, z, dt_bias, state)
    before = ops.cast(before, xBC.dtype)
    size = chunked.size_of_chunks(xBC, nheads, headdim, d_state, chunk_size)
    lie = by_chunk.Layout(size, ngroups, nheads // ngroups, headdim)
    decays = chunked.weights_and_decays(dt, A, dt_bias, True, dt_limit, None, None, None)
    D = ops.broadcast_to(D[:, None], (nheads, headdim)) if len(D.shape) == 1 else D
    y, last = _recurrence(lie)(xBC, before, weight, bias, *map(lie.scalars, decays), *lie.carried(D, state))
    y, last = lie.back(y, last, size_of(xBC, 1))
    y = ops.cast(lean_skip_and_gate(y, y, None, z), xBC.dtype)
    return y, final_window(xBC, before, None, None), last


@cache
def _recurrence(lie: by_chunk.Layout):
    """One function for all layers of the same sizes: TensorFlow traces it once."""

    def convolved(xBC, before, weight, bias):
        tokens = ops.cast(activated("silu", xBC, before, weight, bias, None), xBC.dtype)
        width = lie.ngroups * lie.heads * lie.headdim
        state = (xBC.shape[-1] - width) // 2
        return tuple(lie.rows(ops.cast(part, "float32")) for part in split_channels(tokens, width, state, state))

    def outputs(*args):
        *source, scale, log_decay, D, state = args
        x, B, C = convolved(*source)
        return by_chunk.outputs(x, scale, log_decay, B, C, D, state)

    def forward(*args):
        *source, scale, log_decay, D, state = args
        x, B, C = convolved(*source)
        results, (*_, before, _) = by_chunk.forward(x, scale, log_decay, B, C, D, state)
        return results, (*source, scale, log_decay, D, before)

    def backward(kept, gradients):
        xBC, *weights, scale, log_decay, D, before = kept
        source = after(gradients[0], xBC), *weights
        x, B, C = convolved(*source)
        found = by_chunk.backward((x, scale, log_decay, B, C, before, D), gradients)
        dx, dscale, dlog_decay, dB, dC, dD, dstate = found
        return *vjp(convolved, source, (dx, dB, dC)), dscale, dlog_decay, dD, dstate

    return with_gradient(forward, backward, outputs)
