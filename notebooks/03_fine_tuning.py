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
# # Fine-tuning: a preset, low-rank adapters, several tasks, one file
#
# A small encoder is first trained as a language model on unlabelled sentences, then fine-tuned on a handful of
# labelled ones: with all weights, and with low-rank adapters (Hu et al., *LoRA*, 2021, eq. 3). At the end one
# backbone carries two heads, is saved and loaded.
#
# **The sentences are made up** by a small grammar, so that the notebook needs no download: reviews with a mood, which
# a *not* turns around, and a subject. Set `DL_MAMBA_REVIEWS` to a TSV file with the columns text, mood and subject to
# use your own.

# %%
import os

import dl_mamba

FAST = os.environ.get("DL_MAMBA_NOTEBOOK_FAST") == "1"
print("Keras runs on", dl_mamba.BACKEND)

# %%
import csv
import tempfile
from pathlib import Path

import keras
import numpy as np
from matplotlib import pyplot

from dl_mamba import training
from dl_mamba.heads import NLPTaskConfig, compile_options

# %% [markdown]
# ## Data

# %%
SUBJECTS = {
    "story": ["plot", "ending", "script"],
    "cast": ["hero", "actors", "villain"],
    "sound": ["music", "score", "song"],
}
GOOD = ["wonderful", "moving", "clever", "gripping", "lovely", "fresh"]
BAD = ["dull", "clumsy", "tired", "empty", "awful", "flat"]
OPENINGS = ["", "honestly", "in the end", "for once", "as always", "i must say"]
FILLERS = ["", "quite", "really", "so", "very"]


def make_reviews(rows, seed):
    """(text, mood, subject): `not` turns the mood of the adjective around."""
    rng, reviews = np.random.default_rng(seed), []
    for _ in range(rows):
        subject = rng.choice(list(SUBJECTS))
        good, negated = rng.random() < 0.5, rng.random() < 0.5
        words = [rng.choice(OPENINGS), "the", rng.choice(SUBJECTS[subject]), "was", "not" if negated else ""]
        words += [rng.choice(FILLERS), rng.choice(GOOD if good else BAD)]
        mood = "positive" if good != negated else "negative"
        reviews.append((" ".join(w for w in words if w), mood, str(subject)))
    return reviews


path = os.environ.get("DL_MAMBA_REVIEWS")
if path:
    with open(path, encoding="utf-8", newline="") as file:
        reviews = [(row["text"], row["mood"], row["subject"]) for row in csv.DictReader(file, delimiter="\t")]
    order = np.random.default_rng(0).permutation(len(reviews))
    reviews = [reviews[i] for i in order]
else:
    reviews = make_reviews(600 if FAST else 2600, seed=0)
TEST, LABELLED = len(reviews) // 8, 96  # held-out rows; labelled rows to learn from
test, labelled, unlabelled = reviews[:TEST], reviews[TEST : TEST + LABELLED], reviews[TEST + LABELLED :]
moods, subjects = (sorted({row[i] for row in reviews}) for i in (1, 2))
print(len(unlabelled), "unlabelled,", len(labelled), "labelled,", len(test), "held out, e.g.", test[0])

# %% [markdown]
# Words become ids; 0 is a word that was not seen, and padding is told by a mask, not by an id.

# %%
words = {word: i + 1 for i, word in enumerate(sorted({w for text, *_ in unlabelled for w in text.split()}))}
LENGTH = max(len(text.split()) for text, *_ in reviews)


def inputs_of(rows):
    ids, mask = np.zeros((len(rows), LENGTH), "int32"), np.zeros((len(rows), LENGTH), "int32")
    for i, (text, *_) in enumerate(rows):
        found = [words.get(word, 0) for word in text.split()]
        ids[i, : len(found)], mask[i, : len(found)] = found, 1
    return {"input_ids": ids, "attention_mask": mask}


def labels_of(rows):
    return {
        "mood": np.array([moods.index(row[1]) for row in rows], "int32"),
        "subject": np.array([subjects.index(row[2]) for row in rows], "int32"),
    }


# %% [markdown]
# ## 1. A language model on the unlabelled sentences
#
# `from_variant("tiny")` is a preset of two layers: any of its fields can be overridden. The loss is that of the next
# token; ids are all that `fit` needs.

# %%
LAYERS = 1 if FAST else 2
keras.utils.set_random_seed(0)
language_model = dl_mamba.Mamba2CausalLM.from_variant("tiny", vocab_size=len(words) + 1, num_layers=LAYERS)
EPOCHS = 1 if FAST else 3
text = inputs_of(unlabelled)
steps = EPOCHS * -(-len(unlabelled) // 64)
language_model.compile(training.recipe(language_model, steps=steps, learning_rate=5e-3))
history = language_model.fit(text, batch_size=64, epochs=EPOCHS, verbose=0).history
print("perplexity by epoch:", [round(p, 2) for p in history["perplexity"]])
pretrained = language_model.backbone.get_weights()

# %% [markdown]
# ## 2. A head, three ways
#
# The same head and the same 96 labelled sentences: from scratch, with all weights of the pretrained encoder, and with
# adapters alone. Accuracy is that of the held-out sentences, after the last epoch.

# %%
MOOD = NLPTaskConfig("mood", "sentiment_analysis", label_names=moods, pooling="mean")
TUNING = 2 if FAST else 12


def encoder_of(start):
    keras.utils.set_random_seed(0)
    encoder = dl_mamba.Mamba2.from_variant("tiny", vocab_size=len(words) + 1, num_layers=LAYERS)
    if start == "pretrained":
        encoder.set_weights(pretrained)
    return encoder


def tune(model, tasks, labels, held_labels, rate):
    steps = TUNING * -(-LABELLED // 16)
    options = compile_options(tasks)
    model.compile(training.recipe(model, steps=steps, learning_rate=rate), **options)
    return model.fit(
        *(inputs_of(labelled), labels),
        validation_data=(inputs_of(test), held_labels),
        batch_size=16,
        epochs=TUNING,
        verbose=0,
    ).history


curves = {}
for name, start, rank in (
    ("from scratch", "new", None),
    ("all weights", "pretrained", None),
    ("LoRA, rank 4", "pretrained", 4),
):
    model = dl_mamba.create_mamba2_with_head(encoder_of(start), MOOD)
    share = training.enable_lora(model, rank=rank) if rank else None
    history = tune(model, MOOD, labels_of(labelled)["mood"], labels_of(test)["mood"], 1e-2 if rank else 3e-3)
    curves[name] = history["val_accuracy"]
    print(f"{name:14s} held-out accuracy {curves[name][-1]:.3f}" + (f"   ({share})" if share else ""))

# %%
figure, ax = pyplot.subplots(figsize=(6.5, 3.5), layout="constrained")
for name, curve in curves.items():
    ax.plot(range(1, TUNING + 1), curve, marker=".", label=name)
ax.axhline(0.5, color="grey", linestyle=":", label="chance")
ax.set(
    xlabel="epoch", ylabel="held-out accuracy (share of sentences)", title=f"mood from {LABELLED} labelled sentences"
)
ax.xaxis.get_major_locator().set_params(integer=True)
ax.legend()
ax.grid(alpha=0.3)

# %% [markdown]
# 96 sentences are few. The weights of a pretrained encoder end highest on every backend; adapters, 7 % of the
# weights in 72 steps, end above the model from scratch in one run and below it in another.
#
# ## 3. Two tasks on one backbone
#
# A list of configs gives a model with one output for each. A label of -100 is none, so that a sentence may be
# labelled for one task only; here every second one has no subject.

# %%
tasks = [MOOD, NLPTaskConfig("subject", "topic_classification", label_names=subjects, loss_weight=0.5)]
both = dl_mamba.create_mamba2_with_head(encoder_of("pretrained"), tasks)
some = labels_of(labelled)
some["subject"][::2] = -100
history = tune(both, tasks, some, labels_of(test), 3e-3)
print({name: round(values[-1], 3) for name, values in history.items() if "val" in name and "accuracy" in name})

# %% [markdown]
# Which mood was taken for which, and what the first layer keeps of a sentence for the last word:

# %%
predicted = {name: np.argmax(scores, axis=1) for name, scores in both.predict(inputs_of(test), verbose=0).items()}
figure, axes = pyplot.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
for ax, (name, names) in zip(axes, (("mood", moods), ("subject", subjects)), strict=True):
    counts = dl_mamba.viz.confusion_counts(labels_of(test)[name], predicted[name], len(names))
    dl_mamba.viz.plot_confusion_matrix(counts, names, ax, f"{name}, {len(test)} sentences held out")

# %%
sentence = "in the end the music was not really dull"
ids = inputs_of([(sentence,)])["input_ids"][:, : len(sentence.split())]
encoder = next(layer for layer in both.layers if isinstance(layer, dl_mamba.Mamba2))
hidden = encoder(ids, output_hidden_states=True)["hidden_states"][0]
kept = dl_mamba.viz.retention(encoder.blocks[0], hidden)[0]
ax = dl_mamba.viz.plot_token_map(
    kept,
    "share left at the end (0 to 1)",
    sentence.split(),
    channels="head",
    title="first layer: what is left of each word",
)

# %% [markdown]
# ## 4. Save and load
#
# A `.keras` file holds the projections with the adapters added, and knows which weights learn. `merge_lora` adds them
# for good, which `save_pretrained` wants.

# %%
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "mood.keras"
    model.save(file)  # the one with adapters
    again = keras.models.load_model(file)
before, after = (m.predict(inputs_of(test[:32]), verbose=0) for m in (model, again))
print(f"largest difference after loading: {np.abs(before - after).max():.1e}")
training.merge_lora(again)
merged = again.predict(inputs_of(test[:32]), verbose=0)
print(f"after merging: {np.abs(before - merged).max():.1e}")
assert max(np.abs(before - after).max(), np.abs(before - merged).max()) < 1e-4
