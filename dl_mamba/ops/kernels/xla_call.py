"""A Triton kernel as a call that XLA launches itself, and puts into its CUDA graphs, instead of asking the host.

jax-triton's calls go through the host, which costs a kernel of decoding more time than its work takes. Source:
`__gpu$xla.gpu.ptx` in openxla/xla, xla/service/gpu/kernel_call.h.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from keras.backend import standardize_dtype

TARGET = "__gpu$xla.gpu.ptx"
POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32", "bool": "*i1"}
SCRATCH = 2  # pointers that Triton puts behind those of a kernel, which does not use them
EMPTY = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry empty(.param .u64 y)\n{\n ret;\n}\n"


@cache
def supported() -> bool:
    """Whether this XLA knows such calls: a kernel that does nothing is compiled once."""
    import jax

    call = lambda: jax.ffi.ffi_call(TARGET, _scratch(1))(**_launch("empty", EMPTY, (1,), 1, 0, (0,)))  # noqa: E731
    try:
        jax.jit(call).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        logging.getLogger(__name__).debug("kernels of decoding go through jax-triton: %s", error)
        return False
    return True


def call(
    kernel: Any,
    grid: tuple[int, ...],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    options: Mapping[str, Any],
    aliases: Mapping[int, int],
) -> tuple[Any, ...]:
    """Run `kernel(*inputs, *outputs, **options)` on arrays and integers, which the kernel is compiled for.

    `aliases` lead from an array to the output over it.
    """
    import jax

    numbers = {name: v for name, v in zip(kernel.arg_names, inputs, strict=False) if isinstance(v, int)}
    options, inputs = {**options, **numbers}, [v for v in inputs if not isinstance(v, int)]
    types = (*(standardize_dtype(value.dtype) for value in inputs), *(standardize_dtype(v.dtype) for v in outputs))
    name, source, shared = _compiled(kernel, types, tuple(options.items()))
    made = (*outputs, *_scratch(SCRATCH))
    places = tuple(range(len(inputs), len(inputs) + len(made)))
    run = jax.ffi.ffi_call(TARGET, made, input_output_aliases=dict(aliases))
    return run(*inputs, **_launch(name, source, grid, options["num_warps"], shared, places))[: len(outputs)]


def _capability() -> int:
    import jax

    major, minor = str(jax.devices()[0].compute_capability).split(".")
    return 10 * int(major) + int(minor)


def _scratch(count: int) -> tuple[Any, ...]:
    import jax

    return (jax.ShapeDtypeStruct((1,), "uint8"),) * count


def _launch(name, source, grid, warps, shared, places) -> dict[str, Any]:
    import numpy as np

    sizes = dict(zip(("grid_x", "grid_y", "grid_z"), (*grid, 1, 1), strict=False))
    sizes |= {"block_x": 32 * warps, "block_y": 1, "block_z": 1, "shared_mem_bytes": shared}
    numbers = {key: np.int32(value) for key, value in sizes.items()}
    at = tuple(np.int64(place) for place in places)
    return {"name": name, "kernel_type": "ptx", "kernel_data": source, "output_indices": at, **numbers}


@cache
def _compiled(kernel: Any, types: tuple[str, ...], options: tuple[tuple[str, Any], ...]) -> tuple[str, str, int]:
    """Name, PTX and bytes of shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {key: value for key, value in options if key not in ("num_warps", "num_stages")}
    pointers = [name for name in kernel.arg_names if name not in constants]
    signature = dict(zip(pointers, (POINTERS[dtype] for dtype in types), strict=True))
    source = ASTSource(
        kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        constants,
        # XLA's buffers begin at multiples of 256 bytes
        {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in pointers},
    )
    cache_of = triton.knobs.cache
    with cache_of.scope():
        cache_of.dir = cache_of.get_triton_dir("cache")  # jax-triton turns the cache off
        made = triton.compile(
            source,
            target=GPUTarget("cuda", _capability(), 32),
            options={key: value for key, value in options if key not in constants},
        )
    return made.metadata.name, made.asm["ptx"], made.metadata.shared
