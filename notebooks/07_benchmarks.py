# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Mamba against attention and LSTM: the benchmark as pictures
#
# Three kinds of layers that read a sequence, at equal depth, width and number of weights, on this machine and
# backend:
#
# | | time of a forward pass | what a new token needs |
# |---|---|---|
# | attention | quadratic in length | keys and values of all tokens |
# | LSTM | linear, but one token after the other | a state |
# | Mamba | linear, in chunks | a state |
#
# The measurement is that of `python -m benchmarks`: each contender in a process of its own, one run of each in turn,
# medians, compiled as its backend does best (XLA on JAX and TensorFlow, eager on torch). It is in the repository, not
# in the installed package, and reads Linux's `/proc` for the memory. `docs/performance.md` has the full tables.

# %%
import os
import sys
from pathlib import Path

import dl_mamba

FAST = os.environ.get("DL_MAMBA_NOTEBOOK_FAST") == "1"
print("Keras runs on", dl_mamba.BACKEND)

# %%
root = next(
    (folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "benchmarks/suites.py").is_file()), None
)
if root is None:
    raise FileNotFoundError("the folder benchmarks of the repository is needed: run this notebook inside a checkout.")
sys.path.insert(0, str(root))

import numpy as np
from matplotlib import pyplot

from benchmarks import report
from benchmarks.case import Case
from benchmarks.measure import compare

# %% [markdown]
# ## Measure
#
# Two layers of width 128 on a sequence of byte-sized tokens, batch 1. The widths of attention's feed-forward network
# and of the LSTM are chosen so that all have as many weights as Mamba-2.

# %%
LENGTHS = (16,) if FAST else (256, 1024, 4096)
ROUNDS = 1 if FAST else 3
WIDTH = 16 if FAST else 128
CORES = min(2, os.cpu_count() or 1)
contenders = [("ours", "mamba"), ("ours", "mamba2"), ("attention", "mamba2"), ("lstm", "mamba2")]
contenders = contenders[1:3] if FAST else contenders
NAMES = {
    ("ours", "mamba"): "Mamba-1",
    ("ours", "mamba2"): "Mamba-2",
    ("attention", "mamba2"): "attention",
    ("lstm", "mamba2"): "LSTM",
}


def measure(length):
    size = {"batch": 1, "length": length, "d_model": WIDTH, "num_layers": 1 if FAST else 2, "vocab_size": 256}
    size |= {"variant": "tiny"} if FAST else {}
    cases = [Case(name, dl_mamba.BACKEND, family, "forward", **size) for name, family in contenders]
    rows = []
    for family in dict.fromkeys(case.family for case in cases):  # outputs are compared within a family
        own = tuple(case for case in cases if case.family == family)
        rows += compare(own, rounds=ROUNDS, cores=CORES, limit=30.0, checkouts={}, say=lambda text: None)
    return rows


print(report.machine(CORES))
results = [row for length in LENGTHS for row in measure(length)]
print("tokens  contender  median of a run  quartiles apart  first run    memory")
for row in results:
    print(f"{row.case.length:6,d}  {NAMES[row.case.contender, row.case.family]:10s}", end="")
    if row.median:
        spread = "" if row.spread is None else f"{row.spread:.0%}"
        print(f"{1000 * row.median:12.1f} ms {spread:>16s} {row.first:8.1f} s {row.above / 2**20:5.0f} MiB", end="")
    print("", row.note)

# %% [markdown]
# ## Time and memory against length
#
# On logarithmic axes a straight line is a power of the length: slope 1 is linear, slope 2 quadratic. Memory is what a
# run takes above what was there before it.

# %%
figure, axes = pyplot.subplots(1, 2, figsize=(12, 4), layout="constrained")
for contender in contenders:
    line = [row for row in results if (row.case.contender, row.case.family) == contender and row.median]
    lengths = [row.case.length for row in line]
    axes[0].loglog(lengths, [1000 * row.median for row in line], marker="o", label=NAMES[contender])
    axes[1].loglog(lengths, [row.above / 2**20 for row in line], marker="o", label=NAMES[contender])
    if len(line) > 1:
        slope = np.polyfit(np.log(lengths[-2:]), np.log([row.median for row in line][-2:]), 1)[0]
        print(f"{NAMES[contender]:10s} slope of time between the two largest lengths: {slope:.2f}")
axes[0].set(xlabel="length (tokens)", ylabel="median time of a forward pass (ms)")
axes[1].set(xlabel="length (tokens)", ylabel="memory above the start (MiB)")
for ax in axes:
    ax.set_xscale("log", base=2)
    ax.legend()
    ax.grid(alpha=0.3)

# %% [markdown]
# ## The longest sequence

# %%
rows = [row for row in results if row.case.length == LENGTHS[-1]]
fastest = min(row.median for row in rows if row.median)
figure, ax = pyplot.subplots(figsize=(7, 2.6), layout="constrained")
for row in rows:
    name = NAMES[row.case.contender, row.case.family]
    bar = ax.barh(name, (row.median or 0.0) / fastest)
    ax.bar_label(bar, [f" {row.median / fastest:.1f} x" if row.median else f" {row.note}"])
ax.invert_yaxis()
ax.margins(x=0.15)
ax.set(
    xlabel="time relative to the fastest (ratio)",
    ylabel="contender",
    title=f"forward pass of {LENGTHS[-1]:,} tokens, {dl_mamba.BACKEND}",
)

# %% [markdown]
# Short sequences on a CPU favour attention: its one large product is what the libraries are best at. With length its
# share of the work grows as the square, and the lines cross. Where they do depends on the machine, the backend and
# the width. In one run on a busy machine attention took 8.5 times as long as the fastest at 4,096 tokens on JAX, 4.2
# times on TensorFlow, and was itself the fastest on torch, whose attention is one fused call. XLA compiles the loop of
# an LSTM, which at this width keeps up with Mamba; torch goes through it step by step. On a GPU the picture is another
# one, see `docs/gpu.md`.
