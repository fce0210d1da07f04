"""Times of the Triton kernels on an NVIDIA GPU, from torch: `python -m benchmarks.gpu_kernels [--tune]`.

Every call is captured in a CUDA graph and replayed (`triton.testing.do_bench`, median, caches flushed between runs):
what the GPU needs, without Python and launches. The yardsticks run in the same process: our portable program (not
captured: it copies constants from the CPU), and causal attention of torch with half as many channels. The floor is
every input read and every output written once, at 3.02 TB/s. `--tune` prints the time and the error of each
configuration of each kernel of SSD.
"""

from __future__ import annotations

import sys

BATCH, HEADS, WIDTH, CHANNELS, STATES = 8, 32, 64, 2048, 16
LENGTHS = (512, 2048, 8192)
BYTES_PER_MS = 3.02e9


def ssd_inputs(batch: int, length: int, d_state: int) -> dict:
    """Random inputs of SSD in bfloat16, decays as a fresh Mamba-2 has them."""
    import torch

    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, device="cuda")  # noqa: E731
    half = {"x": draw(batch, length, HEADS, WIDTH), "dt": 0.5 * draw(batch, length, HEADS)}
    half |= {name: draw(batch, length, 1, d_state) for name in ("B", "C")}
    whole = {"A": -1 - 15 * torch.rand(HEADS, device="cuda"), "D": draw(HEADS), "dt_bias": _bias(HEADS)}
    return {name: tensor.bfloat16() for name, tensor in half.items()} | whole


def scan_inputs(batch: int, length: int) -> dict:
    """Random inputs of the selective scan in bfloat16, decays as a fresh Mamba has them."""
    import torch

    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, device="cuda")  # noqa: E731
    half = {"x": draw(batch, length, CHANNELS), "dt": 0.5 * draw(batch, length, CHANNELS)}
    half |= {name: draw(batch, length, STATES) for name in ("B", "C")}
    A = -torch.arange(1.0, STATES + 1, device="cuda").repeat(CHANNELS, 1)
    whole = {"A": A, "D": draw(CHANNELS), "dt_bias": _bias(CHANNELS)}
    return {name: tensor.bfloat16() for name, tensor in half.items()} | whole


def attention(batch: int, length: int) -> tuple:
    """Causal attention of torch with half as many channels, and its inputs."""
    import torch

    inputs = {name: torch.randn(batch, 16, length, 64, device="cuda").bfloat16() for name in ("query", "key", "value")}
    return lambda **given: torch.nn.functional.scaled_dot_product_attention(**given, is_causal=True), inputs


def times(op, inputs: dict, captured: bool = True, **options) -> tuple[float, float]:
    """Milliseconds of the forward pass, and of forward and backward."""
    import torch

    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    gradient = torch.randn_like(op(**inputs, **options))

    def forward():
        with torch.no_grad():
            return op(**inputs, **options)

    def both():
        return torch.autograd.grad(op(**leaves, **options), list(leaves.values()), gradient)

    return _milliseconds(forward, captured), _milliseconds(both, captured)


def _milliseconds(function, captured) -> float:
    import torch
    from triton.testing import do_bench

    if not captured:
        return do_bench(function, warmup=10, rep=60, return_mode="median")

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return do_bench(graph.replay, warmup=10, rep=60, return_mode="median")


def _bias(count):
    import torch

    steps = torch.logspace(-3, -1, count, device="cuda")
    return steps + torch.log(-torch.expm1(-steps))


def measure() -> None:
    """Print the table."""
    import torch

    from dl_mamba.ops import selective_scan, ssd

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; ms, batch {BATCH} unless named")
    ssd_cases = [(BATCH, length, n) for n in (64, 128) for length in LENGTHS] + [(1, 65536, 128)]
    for batch, length, n in ssd_cases:
        name, inputs = f"ssd n={n} batch {batch}", ssd_inputs(batch, length, n)
        floor = 2.0 * batch * length * (2 * HEADS * WIDTH + 2 * n + HEADS) / BYTES_PER_MS
        _row(name, length, times(ssd, inputs, implementation="triton"), floor)
        if length == 2048:
            _row(name + ", portable", length, times(ssd, inputs, captured=False, implementation="chunked"))
    for length in LENGTHS:
        floor = 2.0 * BATCH * length * (3 * CHANNELS + 2 * STATES) / BYTES_PER_MS
        _row("selective scan n=16", length, times(selective_scan, scan_inputs(BATCH, length)), floor)
    for length in LENGTHS:
        _row("torch attention 16 x 64", length, times(*attention(BATCH, length)))


def _row(name, length, measured, floor=None):
    share = "" if floor is None else f"  {100 * floor / measured[0]:3.0f} % of the forward floor"
    print(f"{name:28s} {length:6d}  forward {measured[0]:7.3f}  with backward {measured[1]:7.3f}{share}", flush=True)


def tune() -> None:
    """Print what each configuration of each kernel of SSD takes, and the largest error of what comes out."""
    from dl_mamba.ops import ssd
    from dl_mamba.ops.kernels import ssd as kernels

    for n in (64, 128):
        inputs, chosen = ssd_inputs(BATCH, 2048, n), {k: dict(v) for k, v in kernels.CONFIGURATIONS.items()}
        wanted = ssd(**inputs, implementation="chunked").float()
        for kernel in chosen:
            for configuration in [(warps, stages) for warps in (4, 8) for stages in (1, 2, 3)]:
                kernels.CONFIGURATIONS[kernel][n] = configuration
                error = (ssd(**inputs, implementation="triton").float() - wanted).norm() / wanted.norm()
                print(n, kernel, configuration, times(ssd, inputs, implementation="triton"), f"error {error:.1e}")
            kernels.CONFIGURATIONS[kernel][n] = chosen[kernel][n]


if __name__ == "__main__":
    tune() if "--tune" in sys.argv[1:] else measure()
