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
# # Published weights and generation
#
# Loading a checkpoint in the Hugging Face format, text in and text out, streaming, sampling, and what a state of
# fixed size is good for: a document is read once and asked many times.
#
# **No network is used.** The notebook trains a tiny byte-level model for a minute on the descriptions of
# scikit-learn's data sets, writes it in the Hugging Face format, and loads it as if it were published. With a real
# checkpoint one line changes; it stands beside it. What the tiny model writes is no English; what is shown holds for
# any size.
#
# You need `pip install "dl-mamba[jax,hf,plots]" scikit-learn`, or another backend.

# %%
import os

import dl_mamba

FAST = os.environ.get("DL_MAMBA_NOTEBOOK_FAST") == "1"
print("Keras runs on", dl_mamba.BACKEND)

# %%
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from matplotlib import pyplot
from sklearn import datasets

from dl_mamba.generation import TopP, fork
from dl_mamba.tokenizers import ByteTokenizer

keras.utils.set_random_seed(0)

# %% [markdown]
# ## A tiny checkpoint
#
# The last tenth of the text is held out; the perplexity on it is counted in bytes.

# %%
text = "\n".join(
    getattr(datasets, f"load_{name}")().DESCR
    for name in ("iris", "wine", "diabetes", "breast_cancer", "digits", "linnerud")
)
tokenizer = ByteTokenizer()
ids = np.array(tokenizer.ids(text), "int32")
cut = len(ids) * 9 // 10
WINDOW, STEPS = (32, 2) if FAST else (128, 250)

model = dl_mamba.Mamba2CausalLM.from_variant("tiny", tokenizer=tokenizer, num_layers=1 if FAST else 2)
rng = np.random.default_rng(0)
starts = rng.integers(0, cut - WINDOW, STEPS * 16)
model.compile(dl_mamba.training.recipe(model, steps=STEPS, learning_rate=5e-3))
history = model.fit(np.stack([ids[s : s + WINDOW] for s in starts]), batch_size=16, verbose=0).history
held = ids[cut:][None, : 64 if FAST else None]
score = model.score(held)
print(f"{len(ids):,} bytes; held-out perplexity {np.exp(-score.total[0] / (held.shape[1] - 1)):.2f} of 256 a byte")

# %% [markdown]
# ## Save and load in the Hugging Face format
#
# `save_pretrained` writes `config.json` and safetensors with the names that transformers knows. `from_pretrained`
# reads a folder or the id of a repository on the hub, and is strict: every name, shape and config key must be
# accounted for.

# %%
folder = tempfile.TemporaryDirectory()
model.save_pretrained(folder.name, format="hf")
print(sorted(path.name for path in Path(folder.name).iterdir()))

loaded = dl_mamba.Mamba2CausalLM.from_pretrained(folder.name, tokenizer=ByteTokenizer())
# from the hub, with its own tokenizer:
# loaded = dl_mamba.MambaCausalLM.from_pretrained("state-spaces/mamba-130m-hf")

prompt = ids[None, :64]
gap = np.abs(
    keras.ops.convert_to_numpy(loaded(prompt)["logits"]) - keras.ops.convert_to_numpy(model(prompt)["logits"])
).max()
print(f"largest difference of the logits: {gap:.1e}")
assert gap < 1e-4

# %% [markdown]
# ## Generate
#
# Greedy by default; `TopP`, `TopK`, `MinP`, `Beam` and samplers of KerasHub are given as `sampler=`. A seed gives the
# same text on every backend, because the draws come from NumPy.

# %%
NEW = 8 if FAST else 120
print(loaded.generate("The data set ", max_new_tokens=NEW))
print("---")
print(loaded.generate("The data set ", NEW, sampler=TopP(p=0.9, temperature=0.7), seed=0))

# %% [markdown]
# ## Stream
#
# The same tokens, as they come.

# %%
pieces = []
for piece in loaded.generate(":Number of ", NEW, sampler=TopP(p=0.9, temperature=0.7), seed=1, stream=True):
    print(piece, end="", flush=True)
    pieces.append(piece)
whole = loaded.generate(":Number of ", NEW, sampler=TopP(p=0.9, temperature=0.7), seed=1)
assert whole.endswith("".join(pieces))

# %% [markdown]
# ## Read once, ask many times
#
# `prefill` reads a document and returns a `Memory`, which is never written to. `fork` gives one to each of several
# questions. The answers are those of the document and the question in one prompt.

# %%
document = text[: 200 if FAST else 3000]
begin = time.perf_counter()
memory = loaded.prefill(document)
read = time.perf_counter() - begin
questions = ["Number of Instances", "Missing Attribute", "Class"]
begin = time.perf_counter()
answers = loaded.generate(questions, NEW, state=fork(memory, len(questions)))
asked = time.perf_counter() - begin
for question, answer in zip(questions, answers, strict=True):
    print(repr(answer[len(question) :][:60]))
assert answers[0].endswith(loaded.generate(document + questions[0], NEW)[-NEW // 2 :])
print(f"reading {len(document):,} bytes took {read:.2f} s, three answers {asked:.2f} s, compilation included")

# %% [markdown]
# ## The memory does not grow
#
# A transformer keeps keys and values of every token: numbers in the cache = 2 x layers x width x tokens. A Mamba
# state has the same size after one token as after a million. For the sizes of `mamba2-130m` and a transformer of
# equal depth and width, in 16 bits for keys and values, 32 for the state:

# %%
config = dl_mamba.variants.load("mamba2-130m")
state_bytes = config.num_layers * (4 * config.d_inner * config.d_state + 2 * (config.d_conv - 1) * config.conv_width)
tokens = 2 ** np.arange(4, 21)
figure, ax = pyplot.subplots(figsize=(6.5, 3.5), layout="constrained")
ax.loglog(tokens, 2 * 2 * config.num_layers * config.d_model * tokens / 2**20, label="keys and values", base=2)
ax.loglog(tokens, np.full(len(tokens), state_bytes / 2**20), label="state of Mamba-2", base=2)
ax.set(
    xlabel="tokens read (number)", ylabel="memory of one sequence (MiB)", title="computed from the shapes, not measured"
)
ax.legend()
ax.grid(alpha=0.3)
crossing = state_bytes / (4 * config.num_layers * config.d_model)
print(f"the state has {state_bytes / 2**20:.1f} MiB; keys and values need more from {crossing:.0f} tokens on")

# %% [markdown]
# The norm of the state while the document is read: it does not grow either, because what is written fades.

# %%
piece = np.array([tokenizer.ids(document)[:512]], "int32")
hidden = loaded.backbone(piece, output_hidden_states=True)["hidden_states"]
figure, ax = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
for i, block in enumerate(loaded.backbone.blocks):
    norms = dl_mamba.viz.state_norms(block, hidden[i])[0]
    dl_mamba.viz.plot_state_norms(norms, ax, label=f"layer {i + 1}, median and quartiles of the heads")

# %%
folder.cleanup()
