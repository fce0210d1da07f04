"""Whole models on an NVIDIA GPU: a training step, and decoding. `KERAS_BACKEND=torch python -m benchmarks.gpu_model`.

Training: AdamW, mixed_bfloat16 with float32 weights and residual, batch 8 x 2048. Decoding: bfloat16, a prompt of 512.
"wall" is the median time of a step with its end waited for, "GPU" the sum of the kernel times of one step in torch's
profiler (torch alone). The yardstick is a pre-norm transformer of equal size by torch's causal attention.
`--only` chooses rows by their beginning, `--csv FILE` writes them, `--profile` prints the largest kernels (torch).
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import keras
import typer

import dl_mamba
from benchmarks.weights import token_ids

MODELS = {"mamba2": dl_mamba.Mamba2CausalLM, "mamba": dl_mamba.MambaCausalLM}
SIZES = ("130m", "370m")
BATCH, LENGTH, PROMPT, TOKENS = 8, 2048, 512, 256
COLUMNS = ("work", "backend", "wall ms", "GPU ms", "peak GB", "first s")


def main(
    only: Annotated[str, typer.Option(help="Rows whose name begins so.")] = "",
    steps: Annotated[int, typer.Option(help="Timed runs.", min=1)] = 8,
    file: Annotated[Path | None, typer.Option("--csv", help="Write the rows here.")] = None,
    profile: Annotated[bool, typer.Option(help="Print the largest kernels.")] = False,
) -> None:
    """Measure on the backend of this process."""
    rows, cases = [], [(name, prepare) for name, prepare in _cases() if name.startswith(only)]
    if not cases:
        raise typer.BadParameter(f"no row begins with {only!r}; leave it out to see all.", param_hint="--only")
    for name, prepare in cases:
        begin = time.perf_counter()
        run, calls, per_call = prepare()
        _forget_peak()
        run()
        _wait()
        first = time.perf_counter() - begin
        row = (name, keras.backend.backend(), *_time(run, min(steps, calls), per_call, profile), _peak(), first)
        print("  ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row), flush=True)
        rows.append(row)
        del run, prepare
        _free()
    if file:
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([COLUMNS, *rows])


def _cases() -> Iterator[tuple[str, Callable[[], tuple[Callable, int, int]]]]:
    """Names, and what returns the work, how many runs of it are enough, and tokens a run."""
    for size in SIZES:
        for family in MODELS:
            yield f"train {family}-{size}", lambda f=family, s=size: (_training(f, s), 100, 1)
            if keras.backend.backend() == "torch":
                yield f"train {family}-{size} uncompiled", lambda f=family, s=size: (_training(f, s, False), 100, 1)
            for batch, states in ((1, "float32"), (64, "float32"), (64, "bfloat16")):
                yield (
                    f"decode {family}-{size} batch {batch} states {states}",
                    lambda f=family, s=size, b=batch, d=states: (_decoding(f, s, b, d), 3, TOKENS),
                )
        if keras.backend.backend() == "torch":
            yield f"train transformer-{size}", lambda s=size: (_transformer(s), 100, 1)


def _training(family: str, size: str, jit_compile: bool = True) -> Callable[[], Any]:
    model = MODELS[family].from_variant(size, dtype="mixed_bfloat16")
    model.compile(keras.optimizers.AdamW(1e-4), jit_compile=jit_compile)
    ids = token_ids(BATCH, LENGTH, model.config.vocab_size)
    if keras.backend.backend() == "torch":
        model.make_train_function()
        return lambda: model.train_function([(ids,)])
    return _jax_step(model, keras.ops.convert_to_tensor(ids))


def _jax_step(model: keras.Model, ids: Any) -> Callable[[], Any]:
    """The step that `fit` compiles, without its loop around it."""
    model.optimizer.build(model.trainable_variables)
    model.make_train_function()
    batches = iter(lambda: (ids, None, None), None)
    own = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables)
    state = [tuple([v.value for v in variables] for variables in own)]

    def run():
        logs, state[0] = model.train_function(state[0], batches)
        return logs

    return run


def _decoding(family: str, size: str, batch: int, states: str) -> Callable[[], Any]:
    model = MODELS[family].from_variant(size, dtype="bfloat16")
    memory = model.prefill(token_ids(batch, PROMPT, model.config.vocab_size))
    return lambda: model.generate(None, TOKENS, state=memory, state_dtype=states)


def _transformer(size: str) -> Callable[[], Any]:
    """Attention of 4 d^2 and a SwiGLU of 8 d^2 weights; half as many layers as Mamba-2, which has 6 d^2 in each."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    config = dl_mamba.variants.load(f"mamba2-{size}")
    width, heads = config.d_model, config.d_model // 64

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
            self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            inner = width * 8 // 3 // 64 * 64
            self.up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

        def forward(self, x):
            q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, heads, 64)).permute(2, 0, 3, 1, 4)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2))
            gate, value = self.up(self.norms[1](x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * value)

    blocks = [Block() for _ in range(config.num_layers // 2)]
    model = nn.Sequential(nn.Embedding(config.embedding_rows, width), *blocks, nn.RMSNorm(width)).cuda()
    nn.init.normal_(model[0].weight, std=0.02)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    ids = torch.from_numpy(token_ids(BATCH, LENGTH, config.vocab_size)).long().cuda()

    def run():
        with torch.autocast("cuda", torch.bfloat16):
            logits = F.linear(model(ids), model[0].weight)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return run


def _time(run: Callable[[], Any], steps: int, per_call: int, profile: bool) -> tuple[float, float]:
    """Wall and GPU milliseconds."""
    seconds = []
    for _ in range(2):
        run()
    _wait()
    for _ in range(steps):
        begin = time.perf_counter()
        kept = run()
        _wait(kept)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(seconds) / per_call, _gpu_time(run, profile) / per_call


def _gpu_time(run: Callable[[], Any], profile: bool) -> float:
    if keras.backend.backend() != "torch":
        return float("nan")
    import torch
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    kernels = found.key_averages()
    if profile:
        print(kernels.table(sort_by="self_device_time_total", row_limit=22, max_name_column_width=70))
    return sum(kernel.self_device_time_total for kernel in kernels) / 1e3


def _wait(value: Any = None) -> None:
    if keras.backend.backend() == "torch":
        import torch

        torch.cuda.synchronize()
    else:
        import jax

        jax.block_until_ready(jax.tree.leaves(value))


def _forget_peak() -> None:
    if keras.backend.backend() == "torch":
        import torch

        torch.cuda.reset_peak_memory_stats()


def _peak() -> float:
    """GB on the device; on JAX since the process began."""
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.max_memory_allocated() / 1e9
    import jax

    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9


def _free() -> None:
    import gc

    gc.collect()
    if keras.backend.backend() == "torch":
        import torch

        torch.cuda.empty_cache()


if __name__ == "__main__":
    typer.run(main)
