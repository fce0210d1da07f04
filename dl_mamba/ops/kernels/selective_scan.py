"""Selective scan from its kernels, on tensors of torch or JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
from keras import ops
from keras.backend import standardize_dtype

from dl_mamba.ops.kernels.binding import over_rows
from dl_mamba.ops.kernels.launch import aligned, launch, packed, token_stride
from dl_mamba.ops.kernels.scan_backward import scan_backward
from dl_mamba.ops.kernels.scan_forward import scan_forward
from dl_mamba.ops.numerics import barrier

# E: channels side by side in a warp, R: channels of a thread, K: tokens that are loaded together
FORWARD = {"E": 8, "R": 2, "K": 8}
BACKWARD = {"E": 8, "R": 2, "K": 4}  # and as many between the states that it begins with
SEGMENT = 128  # tokens that the gradient can compute the states of without those before
LANES_OF = "3.6."  # versions of triton that lay tiles as `scan_lanes` takes for granted; a test looks
ROWS = (True, True, False, True, True, False, True, False, True, True)  # the tensors that go over the batch
Tensor = Any


@dataclass(frozen=True)
class Call:
    """One call: its tensors as the kernels read them, and what the kernels are compiled for."""

    tensors: tuple[Tensor, ...]  # x, dt, A, B, C, D, z, bias, start, flags
    softplus: bool

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Batch, length, channels, states, groups."""
        x, _, A, B, *_ = self.tensors
        return *x.shape, A.shape[1], B.shape[2]

    def prepared(self, thread: Mapping[str, int]) -> tuple[list[Tensor], dict[str, Any]]:
        """The tensors, with a stand-in for those that are not given, and constants; `thread` is what a thread owns."""
        x, dt, A, B, C, D, z, bias, start, flags = self.tensors
        strided = {"X": x, "DT": dt, "B": B, "C": C, "Z": x if z is None else z}
        strided = {name: token_stride(tensor) for name, tensor in strided.items()}
        _, length, channels, d_state, ngroups = self.sizes
        states = max(4, 1 << (d_state - 1).bit_length())
        own = thread["E"] * thread["R"]
        constants = {f"{name}_TOKEN": stride for name, (_, stride) in strided.items()}
        short = all(standardize_dtype(tensor.dtype) == "bfloat16" for tensor, _ in strided.values())
        (x, dt, B, C, z), A = (tensor for tensor, _ in strided.values()), aligned(A)
        given = [A if v is None else packed(v) for v in (D, bias, start, flags)]
        constants |= {
            **thread,
            "CHANNELS": channels,
            "N": d_state,
            "G": ngroups,
            "BN": states,
            "WHOLE": length % thread["K"] == 0 and channels % own == 0 and d_state == states,
            "EXACT": standardize_dtype(x.dtype) != "bfloat16",
            "QUICK": short and d_state == 16 and thread["K"] > 1 and triton.__version__.startswith(LANES_OF),
            "SOFTPLUS": self.softplus,
            "HAS_D": D is not None,
            "HAS_Z": self.tensors[6] is not None,
            "HAS_BIAS": bias is not None,
            "HAS_FLAGS": flags is not None,
            "num_warps": 1,
            "num_stages": 1,
        }
        return [x, dt, A, B, C, given[0], z, given[1], given[2], given[3]], constants


def outputs(softplus: bool, *tensors: Tensor):
    """(y, final state)."""
    return _walk(Call(tensors, softplus))[:2]


def forward(softplus: bool, *tensors: Tensor):
    """(y, final state), and what `backward` needs."""
    y, end, starts = _walk(Call(tensors, softplus), SEGMENT)
    return (y, end), (*tensors, starts)


def _walk(call, every=0, starts=None):
    """(y, final state, the states before every `every` tokens), or from `starts`, those of segments, the last alone."""
    batch, length, channels, d_state, _ = call.sizes
    least = min(every, BACKWARD["K"])
    inputs, constants = call.prepared({**FORWARD, "K": max(least, min(FORWARD["K"], 1 << (length - 1).bit_length()))})
    x, start = inputs[0], call.tensors[8]
    blocks = -(-channels // (constants["R"] * constants["E"]))
    kept = (batch * -(-length // every) * blocks, constants["R"], constants["BN"], constants["E"]) if every else (1,)
    whole = starts is None
    return launch(
        scan_forward,
        (batch * blocks if whole else starts.shape[0],),
        [*inputs[:8], inputs[8] if whole else starts, inputs[9], length],
        [
            (tuple(x.shape) if whole else (1,), standardize_dtype(x.dtype)),
            ((batch, channels, d_state) if whole else (1,), "float32"),
            (kept, "float32" if whole or constants["EXACT"] else "bfloat16"),
        ],
        over={8: 1} if whole and not every and start is not None else {},
        HAS_START=whole and start is not None,
        SEGMENT=0 if whole else SEGMENT,
        EVERY=every,
        **constants,
    )


def backward(softplus: bool, copies: int | None, residuals, gradients):
    """Gradients of the arguments of `forward`; None for what was not given."""
    *tensors, starts = residuals
    call = Call(tuple(tensors), softplus)
    saved = _walk(call, BACKWARD["K"], starts)[2]
    (x, dt, A, B, C, D, z, bias, _, flags), constants = call.prepared(BACKWARD)
    batch, length, channels, d_state, ngroups = call.sizes
    dtype = standardize_dtype(x.dtype)
    blocks = -(-channels // (BACKWARD["R"] * BACKWARD["E"]))
    dy, dend = packed(ops.cast(gradients[0], dtype)), packed(gradients[1])
    parts = ((blocks, batch, length, d_state), "float32" if constants["EXACT"] else "bfloat16")
    per_row = ((batch, channels), "float32")
    dx, ddt, dz, dB, dC, dA, dD, dbias, dstart = launch(
        scan_backward,
        (batch * blocks,),
        [x, dt, A, B, C, D, z, bias, flags, dy, dend, saved, length],
        [
            (tuple(x.shape), dtype),
            (tuple(dt.shape), standardize_dtype(dt.dtype)),
            (tuple(z.shape) if constants["HAS_Z"] else (1,), standardize_dtype(z.dtype)),
            parts,
            parts,
            ((batch, channels, d_state), "float32"),
            per_row,
            per_row,
            ((batch, channels, d_state), "float32"),
        ],
        **constants,
    )
    dB, dC = (_over_blocks(part, ngroups, standardize_dtype(M.dtype)) for part, M in ((dB, B), (dC, C)))
    dA, dD, dbias = (over_rows(part, copies) for part in (dA, dD, dbias))
    gradients = (dx, ddt, dA, dB, dC, dD, dz, dbias, dstart, None)
    return tuple(None if given is None else gradient for given, gradient in zip(tensors, gradients, strict=True))


def _over_blocks(parts, ngroups, dtype):
    """(blocks, b, l, n) -> (b, l, g, n): the blocks of channels of each group are summed."""
    blocks, batch, length, d_state = parts.shape
    parts = ops.reshape(parts, (ngroups, blocks // ngroups, batch, length, d_state))
    total = ops.cast(ops.moveaxis(ops.sum(parts, axis=1), 0, 2), dtype)
    return barrier(total)  # as part of the loop that joins it with other gradients it would take twice as long
