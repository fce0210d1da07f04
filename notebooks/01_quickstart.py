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
# # Quickstart: a classifier with the functional API
#
# A Mamba-2 model reads handwritten digits row by row, learns to tell them apart, is looked into, saved and loaded.
# The data are the 1,797 digits that ship with scikit-learn (8 x 8 pixels, grey levels 0 to 16).
#
# You need `pip install "dl-mamba[jax,plots]" scikit-learn`, or `[torch]` or `[tensorflow]` in place of `[jax]`.
# `DL_MAMBA_NOTEBOOK_FAST=1` makes fewer steps, to try that everything runs; the figures then mean nothing.

# %%
import os

import dl_mamba

FAST = os.environ.get("DL_MAMBA_NOTEBOOK_FAST") == "1"
print("Keras runs on", dl_mamba.BACKEND)

# %%
import keras
import numpy as np
from matplotlib import pyplot
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Data
#
# An image is a sequence of 8 vectors, its rows of 8 pixels. A quarter of the digits is held out and scored once, at
# the end; the learning curve uses a tenth of the rest.

# %%
digits = load_digits()
images = digits.images.astype("float32") / 16.0  # (1797, 8, 8)
train_x, test_x, train_y, test_y = train_test_split(
    images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
)
print("training:", train_x.shape, " held out:", test_x.shape)

# %% [markdown]
# ## Model
#
# Layers of dl-mamba are Keras layers on (batch, length, features). A residual block is a norm, a mixer and a sum;
# everything around it is plain Keras. For tokens in place of numbers, `dl_mamba.Mamba2.from_variant("tiny",
# vocab_size=...)` is an encoder with an embedding in front (`03_fine_tuning`).

# %%
BLOCKS = 1 if FAST else 2
rows = keras.Input(shape=(None, 8), name="rows")
hidden = keras.layers.Dense(64)(rows)
blocks = [dl_mamba.Mamba2ResidualBlock(d_model=64, d_state=16, headdim=16, num_layers=BLOCKS) for _ in range(BLOCKS)]
for block in blocks:
    hidden = block(hidden)
hidden = keras.layers.GlobalAveragePooling1D()(dl_mamba.RMSNorm()(hidden))
model = keras.Model(rows, keras.layers.Dense(10)(hidden))
model.summary()

# %% [markdown]
# `training.recipe` is AdamW with warm-up and cosine decay, as state-space models are trained: A_log, D, dt_bias and
# the norms are left out of the weight decay.

# %%
EPOCHS, USED = (1, 128) if FAST else (15, len(train_x))
steps = EPOCHS * -(-USED * 9 // 10 // 32)
model.compile(
    dl_mamba.training.recipe(model, steps=steps, learning_rate=3e-3),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(
    train_x[:USED], train_y[:USED], validation_split=0.1, batch_size=32, epochs=EPOCHS, verbose=0
).history

# %%
figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for ax, metric in zip(axes, ("loss", "accuracy"), strict=True):
    dl_mamba.viz.plot_learning_curve(history, metric, ax)

# %% [markdown]
# ## Held-out digits

# %%
predicted = np.argmax(model.predict(test_x, batch_size=128, verbose=0), axis=1)
accuracy = float(np.mean(predicted == test_y))
counts = dl_mamba.viz.confusion_counts(test_y, predicted, 10)
ax = dl_mamba.viz.plot_confusion_matrix(
    counts, [str(i) for i in range(10)], title=f"{len(test_y)} held-out digits, {accuracy:.1%} right"
)
print(f"held-out accuracy {accuracy:.3f}")

# %% [markdown]
# ## What does it look at?
#
# The matrix of a layer says how much of each row of the image is in each of its outputs (`02_how_it_works` derives
# it); the step size dt says how much of a row is written into the state, and how much of what was there is forgotten
# (Gu and Dao, *Mamba*, 2023, section 3.5.2). Both are computed from the layer's own numbers.

# %%
example = test_x[:1]
into_block = keras.Model(rows, blocks[0].input)(example)
matrix = dl_mamba.viz.hidden_attention(blocks[0], into_block)[0]
dt = dl_mamba.viz.step_sizes(blocks[0], into_block)[0]

figure, axes = pyplot.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
figure.colorbar(axes[0].imshow(example[0], cmap="Greys"), ax=axes[0], label="grey level (0 to 1)")
axes[0].set(xlabel="column (pixels)", ylabel="row (pixels)", title=f"a {test_y[0]}, read from top to bottom")
ax = dl_mamba.viz.plot_attention(matrix.mean(axis=0), [str(i) for i in range(8)], axes[1], "mean over heads")
ax = dl_mamba.viz.plot_token_map(
    dt, "step size dt (no unit)", ax=axes[2], channels="head", title="how far each row steps"
)

# %% [markdown]
# ## Save and load
#
# One `.keras` file, on any of the three backends. A new process needs `import dl_mamba` and no `custom_objects`.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "digits.keras")
    again = keras.models.load_model(Path(folder) / "digits.keras")
gap = np.abs(again.predict(test_x[:8], verbose=0) - model.predict(test_x[:8], verbose=0)).max()
print(f"largest difference after loading: {gap:.1e}")
assert gap < 1e-5
