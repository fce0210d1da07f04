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
# # How the selective scan and state-space duality work
#
# One map from a sequence to a sequence, written three ways: as a recurrence, as a matrix, and in chunks. This
# notebook computes all three, draws the matrix and the state, and shows the forms equal in numbers.
#
# Sources: Gu and Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023 (below: Mamba); Dao
# and Gu, *Transformers are SSMs*, 2024 (below: Mamba-2); Ali, Zimerman and Wolf, *The Hidden Attention of Mamba
# Models*, 2024.

# %%
import os

import dl_mamba

FAST = os.environ.get("DL_MAMBA_NOTEBOOK_FAST") == "1"
print("Keras runs on", dl_mamba.BACKEND)

# %%
import time

import numpy as np
from keras import ops
from matplotlib import pyplot

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype("float32")


# %% [markdown]
# ## 1. The recurrence
#
# A selective state-space model keeps a state $h_t \in \mathbb{R}^{N}$ for each channel and updates it with every
# token (Mamba, eq. 2, with the discretisation of its algorithm 2):
#
# $$h_t = e^{\Delta_t A}\, h_{t-1} + \Delta_t B_t\, x_t, \qquad y_t = C_t^\top h_t .$$
#
# *Selective* means that $\Delta_t$, $B_t$ and $C_t$ are computed from the token itself. $A < 0$, so that $a_t =
# e^{\Delta_t A}$ lies between 0 and 1: it is what the token leaves of the past. A token with a small step $\Delta_t$
# leaves the state as it is; one with a large step overwrites it. In Mamba-2, $A$ is one number for a whole head of
# channels.
#
# Here it is in NumPy, for one head with one channel:

# %%
LENGTH, STATES = 48, 8
x = normal(LENGTH)
dt = rng.uniform(0.1, 0.3, LENGTH).astype("float32")
dt[::12] = 1.0  # every twelfth token takes a large step
A, B, C = -1.5, normal(LENGTH, STATES), normal(LENGTH, STATES)

h, recurrent, states = np.zeros(STATES), [], []
for t in range(LENGTH):
    h = np.exp(dt[t] * A) * h + dt[t] * B[t] * x[t]
    recurrent.append(C[t] @ h)
    states.append(h)
recurrent, states = np.array(recurrent), np.array(states)

# %% [markdown]
# The state over time. At the large steps (dotted lines) most of it is wiped and written anew; between them it fades.

# %%
ax = dl_mamba.viz.plot_token_map(states, "state h (no unit)", channels="state", title="one head, 8 states")
for t in range(0, LENGTH, 12):
    ax.axvline(t - 0.5, color="black", linestyle=":")

# %% [markdown]
# ## 2. The matrix
#
# Unrolling the recurrence gives $y = M x$ with a lower triangular matrix (Mamba-2, eq. 3 and section 5.1)
#
# $$M_{ij} = C_i^\top \Big(\prod_{k=j+1}^{i} a_k\Big) B_j\, \Delta_j, \qquad
#   M = L \circ (C B^\top)\,\mathrm{diag}(\Delta), \qquad L_{ij} = a_{j+1} \cdots a_i .$$
#
# $C B^\top$ is what attention calls the scores $Q K^\top$; $L$ takes the place of the causal mask. Its ones on the
# diagonal fade to the left at a speed that the tokens themselves choose. There is no softmax: weights may be
# negative.

# %%
passed = np.cumsum(dt.astype("float64"))
L = np.tril(np.exp(np.minimum(A * (passed[:, None] - passed[None, :]), 0.0)))
scores = C @ B.T
M = L * scores * dt[None, :]

titles = ("mask L", "scores $C B^T$", r"M = (L $\circ$ $C B^T$) diag(dt)")
labels = ("product of decays (0 to 1)", "score (no unit)", "weight M[i, j] (no unit)")
figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
for ax, matrix, title, label in zip(axes, (L, scores, M), titles, labels, strict=True):
    dl_mamba.viz.plot_attention(matrix, ax=ax, title=title, label=label)
print(f"matrix against recurrence: {np.abs(M @ x - recurrent).max():.1e}")

# %% [markdown]
# The blocks of $L$ begin at the large steps: little of what came before them is left. Each block below the diagonal
# of $M$ has rank at most $N$, because everything that passes from left to right passes through $N$ states ($M$ is
# *N-semiseparable*, Mamba-2, section 3.2). That is why a recurrence with a small state can replace a matrix with as
# many rows and columns as there are tokens.

# %%
below = M[LENGTH // 2 :, : LENGTH // 2]
rank = np.linalg.matrix_rank(below, tol=1e-6 * np.abs(M).max())
print(f"rank of the lower left quarter: {rank} of {LENGTH // 2}; d_state is {STATES}")

# %% [markdown]
# ## 3. Chunks: both forms at once
#
# The recurrence is linear in length, but one step waits for the one before. The matrix is one product, but quadratic.
# State-space duality cuts the sequence into chunks of $Q$ tokens: matrices inside a chunk, a recurrence from chunk to
# chunk (Mamba-2, section 6). `dl_mamba.ops.ssd` does that; `implementation="reference"` goes token by token.

# %%
arguments = (x[None, :, None, None], dt[None, :, None], np.array([A], "float32"), B[None, :, None], C[None, :, None])
print("largest difference from the NumPy recurrence")
for implementation, chunk in (("reference", 256), ("chunked", 1), ("chunked", 7), ("chunked", 16), ("chunked", 256)):
    y = dl_mamba.ops.ssd(*arguments, dt_softplus=False, chunk_size=chunk, implementation=implementation)
    gap = np.abs(ops.convert_to_numpy(y)[0, :, 0, 0] - recurrent).max()
    print(f"  {implementation:9s} chunk_size={chunk:3d}   {gap:.1e}")
    assert gap < 1e-4

# %% [markdown]
# The same for Mamba-1, where $A$ has one number for each channel *and* state. Its matrix is a sum of $N$ matrices
# with different masks, so that there is no single product to make of it; `dl_mamba.ops.selective_scan` takes a step
# in all chunks at once instead.

# %%
CHANNELS = 3
xs, dts, As = normal(1, LENGTH, CHANNELS), np.abs(normal(1, LENGTH, CHANNELS)), -np.abs(normal(CHANNELS, STATES))
found = {
    name: ops.convert_to_numpy(
        dl_mamba.ops.selective_scan(xs, dts, As, B[None], C[None], dt_softplus=False, implementation=name)
    )
    for name in ("reference", "chunked")
}
print(f"selective scan, chunked against token by token: {np.abs(found['chunked'] - found['reference']).max():.1e}")

# %% [markdown]
# ### What each form costs
#
# Median time of a forward pass against length, both forms in this process. The quadratic form is `M @ x` in NumPy
# with the time to make $M$; one head, 16 channels. Where the lines cross depends on the machine, their slopes do not.

# %%
LENGTHS = (64, 128) if FAST else (128, 256, 512, 1024, 2048, 4096)


def seconds(function, repeats=5):
    function()
    runs = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        runs.append(time.perf_counter() - begin)
    return float(np.median(runs))


def quadratic(xh, dth, Bh, Ch):
    total = np.cumsum(dth)
    mask = np.tril(np.exp(np.minimum(A * (total[:, None] - total[None]), 0.0)))
    return (mask * (Ch @ Bh.T) * dth) @ xh


times = {"quadratic (NumPy)": [], "chunked (ops.ssd)": []}
for length in LENGTHS:
    xh, Bh, Ch = normal(length, 16), normal(length, STATES), normal(length, STATES)
    dth = np.full(length, 0.1, "float32")
    given = [ops.convert_to_tensor(v) for v in (xh[None, :, None], dth[None, :, None], np.array([A], "float32"))]
    given += [ops.convert_to_tensor(v[None, :, None]) for v in (Bh, Ch)]
    times["quadratic (NumPy)"].append(seconds(lambda: quadratic(xh, dth, Bh, Ch)))  # noqa: B023
    times["chunked (ops.ssd)"].append(
        seconds(lambda: ops.convert_to_numpy(dl_mamba.ops.ssd(*given, dt_softplus=False)))  # noqa: B023
    )

figure, ax = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
for name, line in times.items():
    ax.loglog(LENGTHS, 1000 * np.array(line), marker="o", label=name)
ax.set_xscale("log", base=2)
ax.set(xlabel="length (tokens)", ylabel="median time (ms)", title="one head, forward pass")
ax.legend()
ax.grid(alpha=0.3)

# %% [markdown]
# ## 4. Inside a layer
#
# `viz.hidden_attention` makes $M$ for every head of a layer from the layer's own $\Delta$, $A$, $B$ and $C$, and
# `viz.attend` puts it in the place of the recurrence. It is exact up to rounding, because nothing stands between $M$
# and $x$ that is not linear.

# %%
layers = {
    "Mamba-1": dl_mamba.MambaLayer(d_model=16, d_state=8),
    "Mamba-2": dl_mamba.Mamba2Layer(d_model=16, headdim=8, d_state=8),
}
tokens = normal(1, 32, 16)
figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for ax, (name, layer) in zip(axes, layers.items(), strict=True):
    matrix = dl_mamba.viz.hidden_attention(layer, tokens)
    own = ops.convert_to_numpy(layer(tokens))
    gap = np.abs(dl_mamba.viz.attend(layer, tokens, matrix) - own).max() / np.abs(own).max()
    print(f"{name}: {matrix.shape[1]} matrices; output by matrices against the layer's own, relative: {gap:.1e}")
    assert gap < 1e-4
    dl_mamba.viz.plot_attention(matrix[0, 0], ax=ax, title=f"{name}, first of {matrix.shape[1]}")

# %% [markdown]
# ## 5. What does it keep, what does it forget?
#
# `viz.retention` is the share of what each token wrote that is left in the state at the end: the product of all later
# decays. In a fresh layer the heads already differ, because $A$ and the bias of $\Delta$ are drawn from wide ranges
# (Mamba, section 3.6; Mamba-2 draws $A$ from $-U(1, 16)$).

# %%
layer = layers["Mamba-2"]
kept = dl_mamba.viz.retention(layer, tokens)[0]
ax = dl_mamba.viz.plot_token_map(
    kept, "share left at the end (0 to 1)", channels="head", title="what a fresh layer keeps"
)

# %%
ax = dl_mamba.viz.plot_state_norms(
    dl_mamba.viz.state_norms(layer, tokens)[0], label="median and quartiles of 4 heads", title="size of the state"
)

# %% [markdown]
# ## 6. Masks, state and pieces
#
# Padding takes a step of size 0: it writes nothing and forgets nothing. The state after a piece is all that the next
# piece needs, so that a sequence may be cut anywhere.

# %%
first, state = layer(tokens[:, :20], return_state=True)
second = layer(tokens[:, 20:], state=state)
whole = ops.convert_to_numpy(layer(tokens))
gap = np.abs(ops.convert_to_numpy(second) - whole[:, 20:]).max()
print(f"two pieces against one: {gap:.1e}; the state has {np.prod(state.ssm.shape)} numbers, whatever the length")

padded = np.concatenate([np.full((1, 5, 16), 9.0, "float32"), tokens], axis=1)
mask = np.arange(37)[None] >= 5
gap = np.abs(ops.convert_to_numpy(layer(padded, mask=mask))[:, 5:] - whole).max()
print(f"padded on the left against bare: {gap:.1e}")
