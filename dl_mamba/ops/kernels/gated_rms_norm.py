"""Gated RMS norm from its kernels, on tensors of torch or JAX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import ops
from keras.backend import standardize_dtype

from dl_mamba.ops.kernels.binding import over_rows
from dl_mamba.ops.kernels.launch import launch, packed, token_stride
from dl_mamba.ops.kernels.norm import norm_backward, norm_forward

TILE = 1024  # numbers of a program at least, where there are rows enough
WARP = 256  # numbers of a warp
PROGRAMS = 264  # that sum the gradient of the weight: two for each processor of an H100
SHARED = 8192  # numbers of a tensor that are under way at once, at most
ROWS = (True, False, True)  # the tensors that go over the batch
Tensor = Any


@dataclass(frozen=True)
class Options:
    """What a norm computes, and the dtype of its result."""

    epsilon: float
    ngroups: int
    norm_before_gate: bool
    dtype: str

    def prepared(self, x: Tensor, weight: Tensor, z: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
        """The tensors as the kernels read them, with x for z if there is none, and constants."""
        channels = x.shape[2]
        size = channels // self.ngroups
        block = max(16, 1 << (size - 1).bit_length())
        (x, x_token), (gate, z_token) = token_stride(x), token_stride(x if z is None else z)
        rows = max(1, TILE // block)
        return [x, packed(weight), gate], {
            "X_TOKEN": x_token,
            "Z_TOKEN": z_token,
            "CHANNELS": channels,
            "SIZE": size,
            "BN": block,
            "R": rows,
            "EPSILON": float(self.epsilon),
            "BEFORE": self.norm_before_gate,
            "HAS_Z": z is not None,
            "num_warps": max(1, min(16, rows * block // WARP)),
            "num_stages": 1,
        }


def forward(options: Options, x: Tensor, weight: Tensor, z: Tensor):
    """(y,), and what `backward` needs. x and z are (batch, length, channels)."""
    return _normed(options, x, weight, z, OVERLAP=False), (x, weight, z)


def of_one_token(options: Options, x: Tensor, weight: Tensor) -> Tensor:
    """y alone, in the decode loop."""
    return _normed(options, x, weight, None, early=(1,))[0]


def _normed(options, x, weight, z, **more):
    inputs, constants = options.prepared(x, weight, z)
    rows = x.shape[0] * x.shape[1]
    grid = (-(-rows // constants["R"]), options.ngroups)
    return launch(norm_forward, grid, [*inputs, rows], [(tuple(x.shape), options.dtype)], **constants, **more)


def backward(options: Options, copies: int | None, tensors, gradients):
    """Gradients of x, weight and z; None for z if there is none."""
    x, weight, z = tensors
    inputs, constants = options.prepared(x, weight, z)
    rows = x.shape[0] * x.shape[1] // (copies or 1)  # of one copy, whose gradient of the weight is summed apart
    blocks = -(-rows // constants["R"])
    share = -(-blocks // PROGRAMS) * constants["R"]
    programs = (copies or 1) * -(-rows // share)
    dx, dz, dweight = launch(
        norm_backward,
        (programs, options.ngroups),
        [*inputs, packed(gradients[0]), rows, share],
        [
            (tuple(x.shape), standardize_dtype(x.dtype)),
            ((1,) if z is None else tuple(x.shape), standardize_dtype(inputs[2].dtype)),
            ((programs, x.shape[2]), "float32"),
        ],
        STAGES=min(3, max(1, SHARED // constants["BN"])),
        **constants,
    )
    return dx, ops.cast(over_rows(dweight, copies), weight.dtype), None if z is None else dz
