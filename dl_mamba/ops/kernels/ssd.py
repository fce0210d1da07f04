"""SSD from its kernels: which run, in what order, with which configuration, on tensors of torch or JAX.

Forward: steps, then outputs, of a short sequence in one kernel. Backward: states and their gradients between chunks,
all other gradients chunk by chunk, then those of the steps. Where batch x heads leave most of a GPU idle, the sequence
is cut into segments that run side by side: a first walk tells what each adds to the state, a short scan what each
starts from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from keras import ops
from keras.backend import standardize_dtype

from dl_mamba.ops.kernels.binding import over_rows
from dl_mamba.ops.kernels.launch import launch, packed, token_stride
from dl_mamba.ops.kernels.ssd_forward import ssd_forward, ssd_short
from dl_mamba.ops.kernels.ssd_gradient import ssd_gradient_groups, ssd_gradient_values
from dl_mamba.ops.kernels.ssd_states import ssd_segments, ssd_states
from dl_mamba.ops.kernels.ssd_step import ssd_step
from dl_mamba.ops.kernels.ssd_steps import ssd_steps, ssd_steps_gradient

CHUNK = 64  # tokens; also the smallest tile that the kernels use, because Triton 3.6 miscompiles products of 32
PROGRAMS = 264  # two for each processor of an H100
ENOUGH = 250  # programs, where more of them cost another sum of their results
SHORTEST_SEGMENT = 4  # chunks
LARGEST = 3.4e38
HEADS = 16  # of a program that makes steps
SHORT = 8  # chunks, up to which one kernel makes steps and outputs
GROUP_ROWS = 64  # of a state, in a program that sums gradients of B and C
# (warps, stages) for bfloat16, by the rows of a state: found by `python -m benchmarks.gpu_kernels --tune` on an H100
CONFIGURATIONS = {
    "forward": {64: (4, 1), 128: (4, 2)},
    "states": {64: (4, 3), 128: (4, 3)},
    "values": {64: (4, 1), 128: (4, 1)},
    "groups": {64: (4, 1), 128: (4, 1)},
}
ROWS = (True, True, False, True, True, False, False, True, True, True)  # the tensors that go over the batch
STEP_CHANNELS = 16  # of a program that makes one step; twice as many where many rows have states of 16 bits
STEP_ROWS = 8  # more are many
Tensor = Any


@dataclass(frozen=True)
class Shape:
    """Sizes of one call, and what follows from them."""

    batch: int
    length: int
    nheads: int
    headdim: int
    ngroups: int
    d_state: int
    dtype: str

    @classmethod
    def of(cls, x: Tensor, B: Tensor) -> Shape:
        """The sizes of a call with these tensors."""
        return cls(*x.shape, *B.shape[2:], standardize_dtype(x.dtype))

    @property
    def state(self) -> tuple[int, int, int, int]:
        return self.batch, self.nheads, self.headdim, self.d_state

    @cached_property
    def chunks(self) -> int:
        return -(-self.length // CHUNK)

    @cached_property
    def tile(self) -> tuple[int, int]:
        """Rows (d_state) and columns (channels of a block) of a state on the chip."""
        return max(64, 1 << (self.d_state - 1).bit_length()), 64

    @cached_property
    def blocks(self) -> int:
        return -(-self.headdim // self.tile[1])

    @cached_property
    def segments(self) -> int:
        """Parts of the sequence that run side by side."""
        return -(-self.chunks // self.segment)

    @cached_property
    def segment(self) -> int:
        """Chunks in a segment."""
        wanted = max(1, PROGRAMS // (self.batch * self.nheads * self.blocks))
        return max(SHORTEST_SEGMENT, -(-self.chunks // wanted))

    @cached_property
    def splits(self) -> int:
        """Parts of a group's heads whose gradients of B and C are summed apart."""
        heads = self.nheads // self.ngroups * self.blocks
        programs = self.batch * self.chunks * self.ngroups
        return next(n for n in range(1, heads + 1) if heads % n == 0 and (n * programs >= ENOUGH or n == heads))

    @cached_property
    def step_heads(self) -> int:
        """Heads of a program that makes steps."""
        return min(HEADS, 1 << (self.nheads - 1).bit_length())

    def per_token(self, heads: int | None = None) -> tuple[int, int, int]:
        return (self.batch, heads or self.nheads, self.chunks * CHUNK)

    def constants(self, kernel: str) -> dict[str, Any]:
        """What a kernel over tiles of tokens is compiled for."""
        exact = self.dtype == "float32"
        n, p = self.tile
        warps, stages = (8, 1) if exact or n > 128 else CONFIGURATIONS[kernel][n]
        return {
            "H": self.nheads,
            "P": self.headdim,
            "N": self.d_state,
            "G": self.ngroups,
            "Q": CHUNK,
            "BN": n,
            "BP": p,
            "EXACT": exact,
            "PRECISION": "tf32x3" if exact else "tf32",
            "num_warps": warps,
            "num_stages": stages,
        }


@dataclass(frozen=True)
class Options:
    """How raw dt becomes a step size, and the dtype of y."""

    softplus: bool
    limit: tuple[float, float]
    dtype: str

    def constants(self, shape: Shape, bias: Tensor, weights: Tensor, flags: Tensor) -> dict[str, Any]:
        """What the kernels of the steps are compiled for."""
        return {
            **self.limits(shape),
            "Q": CHUNK,
            "HAS_BIAS": bias is not None,
            "HAS_WEIGHTS": weights is not None,
            "HAS_FLAGS": flags is not None,
        }

    def limits(self, shape: Shape) -> dict[str, Any]:
        return {
            "H": shape.nheads,
            "LOW": float(self.limit[0]),
            "HIGH": min(float(self.limit[1]), LARGEST),
            "SOFTPLUS": self.softplus,
        }

    def grid(self, shape: Shape) -> tuple[int, int]:
        return shape.batch * shape.chunks, -(-shape.nheads // HEADS)


def forward(options: Options, x, dt, A, B, C, D, bias, weights, start, flags):
    """(y, final state), and what `backward` needs."""
    shape = Shape.of(x, B)
    dt, D, bias, weights, start, flags = (
        None if v is None else packed(v) for v in (dt, D, bias, weights, start, flags)
    )
    given = [dt, *(dt if v is None else v for v in (weights, flags)), A, A if bias is None else bias]
    (x, x_token), (B, b_token), (C, c_token) = map(token_stride, (x, B, C))
    skip, constants = A if D is None else D, options.constants(shape, bias, weights, flags)
    inner = {"X_TOKEN": x_token, "B_TOKEN": b_token, "C_TOKEN": c_token, "HAS_D": D is not None}
    inner |= shape.constants("forward")
    results = [(tuple(x.shape), options.dtype), (shape.state, "float32")]
    sums = [(shape.per_token(), "float32")] * 3
    if shape.chunks <= SHORT:
        y, end, *steps = launch(
            ssd_short,
            (shape.batch * shape.nheads, shape.blocks),
            [*given, x, B, C, skip, A if start is None else start, shape.length],
            results + sums,
            CHUNKS=1 << (shape.chunks - 1).bit_length(),
            HAS_START=start is not None,
            **{**constants, **inner},
        )
    else:
        steps = launch(
            ssd_steps,
            options.grid(shape),
            [*given, shape.length],
            sums,
            early=(),
            HB=shape.step_heads,
            EXACT=shape.dtype == "float32",
            **constants,
        )
        starts = _segment_starts(shape, x, B, steps, start, x_token, b_token)
        y, end = launch(
            ssd_forward,
            (shape.batch * shape.nheads, shape.blocks, shape.segments),
            [x, B, C, *steps, skip, A if starts is None else starts, shape.length, shape.segment],
            results,
            early=(),
            HAS_START=starts is not None,
            **inner,
        )
    return (y, end), (x, dt, A, B, C, D, bias, weights, start, flags, *steps)


def step(options: Options, x, dt, A, B, C, D, bias, weights, start, flags):
    """(y, final state) of one token, in one kernel."""
    given = {"X": x, "DT": dt, "B": B, "C": C, "WEIGHTS": weights, "Z": None}
    places = {name: (*token_stride(x if tensor is None else tensor), 0) for name, tensor in given.items()}
    kind = {"HAS_WEIGHTS": weights is not None, "HAS_Z": False, "LOG_A": False}
    return _step(options, Shape.of(x, B), places, A, D, bias, start, flags, None, kind)[:2]


def gated_step(options: Options, shape: Shape, projected, first: dict[str, int], A_log, D, bias, start, scale):
    """(y SiLU(z) scale, final state in the dtype of `start`, sums (batch, n) of the squares of y SiLU(z)).

    Args:
        options, shape: as elsewhere.
        projected: (batch, 1, columns), which holds all inputs of the token.
        first: the first columns of Z, X, B, C and DT.
        A_log, D, bias, start: log(-A), and what `step` takes; D is (nheads,) or (nheads, headdim).
        scale: (nheads * headdim,).
    """
    places = {name: (projected, projected.shape[2], column) for name, column in first.items()}
    places["WEIGHTS"] = places["DT"]
    kind = {"HAS_WEIGHTS": False, "HAS_Z": True, "LOG_A": True}
    return _step(options, shape, places, A_log, D, bias, start, None, scale, kind)


def _step(options, shape, places, A, D, bias, start, flags, scale, kind):
    given, A = {"D": D, "BIAS": bias, "START": start, "FLAGS": flags}, packed(A)
    skip, bias, start, flags = (A if v is None else packed(v) for v in given.values())
    x, dt, B, C, weights, z = (places[name][0] for name in ("X", "DT", "B", "C", "WEIGHTS", "Z"))
    kept = "float32" if given["START"] is None else standardize_dtype(start.dtype)
    channels = STEP_CHANNELS if kept == "float32" or shape.batch <= STEP_ROWS else 2 * STEP_CHANNELS
    blocks = -(-shape.headdim // channels)
    sums = (shape.batch, shape.nheads * blocks) if kind["HAS_Z"] else (1,)
    per_channel = D is not None and len(D.shape) == 2
    return launch(
        ssd_step,
        (shape.batch * shape.nheads, blocks),
        [x, dt, A, B, C, skip, bias, weights, start, flags, z, A if scale is None else packed(scale)],
        [((shape.batch, 1, shape.nheads, shape.headdim), options.dtype), (shape.state, kept), (sums, "float32")],
        over={} if given["START"] is None else {8: 1},
        early=(8,),
        **{f"{name}_ROW": row for name, (_, row, _) in places.items()},
        **{f"{name}_AT": at for name, (_, _, at) in places.items()},
        P=shape.headdim,
        N=shape.d_state,
        G=shape.ngroups,
        BP=channels,
        BN=max(16, 1 << (shape.d_state - 1).bit_length()),
        D_HEAD=shape.headdim if per_channel else 1,
        D_CHANNEL=1 if per_channel else 0,
        **kind,
        **{f"HAS_{name}": tensor is not None for name, tensor in given.items()},
        **options.limits(shape),
        num_warps=4,
        num_stages=1,
    )


def backward(options: Options, copies: int | None, residuals, gradients):
    """Gradients of the arguments of `forward`; None for what was not given."""
    x, dt, A, B, C, D, bias, weights, start, flags, *steps = residuals
    shape = Shape.of(x, B)
    (x, x_token), (B, b_token), (C, c_token) = map(token_stride, (x, B, C))
    dy, dend = packed(ops.cast(gradients[0], shape.dtype)), packed(gradients[1])
    states, _ = _all_states(shape, x, B, steps, start, x_token, b_token)
    dstates, dstart = _all_states(shape, dy, C, steps, dend, shape.nheads * shape.headdim, c_token, reverse=True)
    inner = {"X_TOKEN": x_token, "B_TOKEN": b_token, "C_TOKEN": c_token, "PB": shape.blocks, "SPLITS": shape.splits}
    rows, parts = shape.batch * shape.chunks, shape.nheads * shape.blocks
    dx, dproducts, dD, *of_steps = launch(
        ssd_gradient_values,
        (rows, shape.ngroups, shape.splits),
        [x, dy, B, C, *steps, A if D is None else D, dstates, shape.length],
        [
            (tuple(x.shape), shape.dtype),
            ((rows, shape.ngroups, shape.splits, CHUNK, CHUNK), shape.dtype),
            ((rows, shape.nheads, shape.headdim), "float32"),
            *[(shape.per_token(parts), "float32")] * 3,
        ],
        HAS_D=D is not None,
        **inner,
        **shape.constants("values"),
    )
    blocks = shape.tile[0] // GROUP_ROWS
    part = ((shape.splits, *B.shape), "float32" if shape.splits > 1 else shape.dtype)
    dB, dC, *of_decays = launch(
        ssd_gradient_groups,
        (rows * blocks, shape.ngroups, shape.splits),
        [x, dy, B, C, *steps, states, dstates, dproducts, shape.length],
        [
            part,
            part,
            (shape.per_token(parts * blocks), "float32"),
            ((shape.batch, parts * blocks, shape.chunks), "float32"),
        ],
        NB=blocks,
        **inner,
        **{**shape.constants("groups"), "BN": GROUP_ROWS},
    )
    ddt, dweights, dA, dbias = launch(
        ssd_steps_gradient,
        options.grid(shape),
        [dt, dt if flags is None else flags, A, A if bias is None else bias, *of_steps, *of_decays, shape.length],
        [(tuple(dt.shape), standardize_dtype((dt if v is None else v).dtype)) for v in (None, weights)]
        + [((rows, shape.nheads), "float32")] * 2,
        PB=shape.blocks,
        NB=blocks,
        HB=shape.step_heads,
        **options.constants(shape, bias, weights, flags),
    )
    dB, dC = (g[0] if shape.splits == 1 else ops.cast(ops.sum(g, axis=0), shape.dtype) for g in (dB, dC))
    return (
        dx,
        ddt,
        over_rows(dA, copies),
        dB,
        dC,
        None if D is None else over_rows(dD, copies),
        None if bias is None else over_rows(dbias, copies),
        None if weights is None else dweights,
        None if start is None else dstart,
        None,
    )


def _segment_starts(shape, x, B, steps, start, x_token, b_token, reverse=False):
    """States that the segments start from; None for zeros."""
    if shape.segments == 1:
        return start
    sizes = (shape.batch, shape.segments, shape.nheads, shape.headdim, shape.d_state)
    _, ends = _states(shape, x, B, steps, None, x_token, b_token, reverse, store=False)
    size = shape.headdim * shape.d_state
    (starts,) = launch(
        ssd_segments,
        (shape.batch * shape.nheads, -(-size // 512)),
        [*steps[:2], steps[0] if start is None else start, ends, shape.length, shape.segment, shape.segments],
        [(sizes, "float32")],
        H=shape.nheads,
        SIZE=size,
        BLOCK=512,
        Q=CHUNK,
        COUNT=1 << (shape.segment - 1).bit_length(),
        REVERSE=reverse,
        EXACT=shape.dtype == "float32",
        HAS_START=start is not None,
    )
    return starts


def _all_states(shape, x, B, steps, start, x_token, b_token, reverse=False):
    """The state before each chunk, and that behind the last; in reverse the gradients behind each, and before all."""
    starts = _segment_starts(shape, x, B, steps, start, x_token, b_token, reverse)
    states, ends = _states(shape, x, B, steps, starts, x_token, b_token, reverse, store=True)
    return states, ends[:, 0 if reverse else -1]


def _states(shape, x, B, steps, starts, x_token, b_token, reverse, store):
    count = shape.batch * shape.chunks * shape.nheads * shape.blocks if store else 1
    return launch(
        ssd_states,
        (shape.batch * shape.nheads, shape.blocks, shape.segments),
        [x, B, *steps, steps[0] if starts is None else starts, shape.length, shape.segment],
        [
            ((count, *shape.tile), shape.dtype),
            ((shape.batch, shape.segments, shape.nheads, shape.headdim, shape.d_state), "float32"),
        ],
        X_TOKEN=x_token,
        B_TOKEN=b_token,
        REVERSE=reverse,
        STORE=store,
        HAS_START=starts is not None,
        **shape.constants("states"),
    )
