"""One way to train a classifier: AdamW, warm-up and cosine, clipped gradients, the best epoch kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from dl_mamba import training
from dl_mamba.heads import compile_options
from dl_mamba.heads.batches import LengthBatches
from dl_mamba.heads.factory import create_mamba2_with_head, create_mamba_with_head
from dl_mamba.heads.raw import Row
from dl_mamba.heads.sequence_classifier import create_sequence_classifier
from dl_mamba.heads.task_model import TaskModel
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.heads.text_classifier import Classifier, TextClassifier
from dl_mamba.pipelines.errors import InputError
from dl_mamba.pipelines.recipe import Recipe
from dl_mamba.pipelines.starts import Start
from dl_mamba.tokenizers import BytePairTokenizer

TEXT_MODELS = {"mamba": create_mamba_with_head, "mamba2": create_mamba2_with_head}


def build_text_classifier(
    recipe: Recipe, texts: Sequence[str], label_names: Sequence[str], start: Start | None = None, **options: Any
) -> TextClassifier:
    """A fresh model from strings to classes.

    Args:
        recipe: family, variant, options, pooling, dropout, vocabulary and longest text.
        texts: the training texts, from which the tokenizer learns its byte pairs.
        label_names: one name a class.
        start: a pretrained backbone and its tokenizer, in place of fresh ones.
        **options: `task_type` and `bidirectional`.

    Raises:
        InputError: the options do not fit each other.

    Example:

    >>> from dl_mamba.pipelines.fitting import build_text_classifier
    >>> from dl_mamba.pipelines.recipe import TEXT
    >>> build_text_classifier(TEXT, ["so so", "so good"], ["bad", "good"]).predict(["so so"], verbose=0).shape
    (1, 2)
    """
    tokenizer = tokenizer_of(recipe, texts, start, recipe.max_length)
    head = {"dropout_rate": recipe.dropout_rate, "pooling": recipe.pooling}
    try:
        task = NLPTaskConfig("label", options.pop("task_type", "sequence_classification"), len(label_names), **head)
        network = build_network(recipe, task, tokenizer, start, **options)
    except ValueError as error:
        raise InputError(str(error)) from error
    return TextClassifier(network, tokenizer, label_names)


def tokenizer_of(recipe: Recipe, texts: Sequence[str], start: Start | None, max_length: int | None) -> Any:
    """The tokenizer of a pretrained model, or one that learns its byte pairs from the texts."""
    if start is None:
        return BytePairTokenizer.learn(texts, recipe.vocab_size, max_length=max_length)
    return type(start.tokenizer).from_config({**start.tokenizer.get_config(), "max_length": max_length})


def build_network(recipe: Recipe, tasks: Any, tokenizer: Any, start: Start | None, bidirectional: bool = False) -> Any:
    """A functional model of one task or of a list, on a fresh backbone or a pretrained one."""
    if start is not None:
        return TEXT_MODELS[start.backbone.family](start.backbone, tasks, bidirectional=bidirectional)
    options = {"vocab_size": tokenizer.vocab_size, "bidirectional": bidirectional, **recipe.options}
    return TEXT_MODELS[recipe.family](recipe.variant, tasks, **options)


def build_number_classifier(recipe: Recipe, rows: Sequence[np.ndarray], label_names: Sequence[str]) -> Classifier:
    """A fresh model from sequences of numbers to classes.

    Args:
        recipe: family, variant, options, pooling and dropout.
        rows: the training sequences, which set the normalisation.
        label_names: one name a class.

    Raises:
        InputError: the options do not fit each other.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.pipelines.fitting import build_number_classifier
    >>> from dl_mamba.pipelines.recipe import NUMBERS
    >>> model = build_number_classifier(NUMBERS, [np.arange(4.0), np.ones(4)], ["up", "flat"])
    >>> model.predict([np.ones(3)], verbose=0).shape
    (1, 2)
    """
    about_words = ("vocab_size", "pad_vocab_size_multiple")
    options = {name: value for name, value in recipe.model_options.items() if name not in about_words}
    shape = {"family": recipe.family, "pooling": recipe.pooling, "dropout_rate": recipe.dropout_rate}
    try:
        return create_sequence_classifier(rows, label_names, **shape, **options)
    except ValueError as error:
        raise InputError(str(error)) from error


def fit(
    model: Classifier,
    train: tuple[list, np.ndarray],
    valid: tuple[list, np.ndarray],
    recipe: Recipe,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    resume: Path | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, list[float]]:
    """Train until the validation accuracy stops rising; the model keeps the weights of its best epoch.

    Args:
        model: a fresh classifier.
        train, valid: inputs, and the class number of each.
        recipe: how to train.
        callbacks: further Keras callbacks.
        resume: file for the state of the run, written after each epoch and gone on from; None for no file.
        about: what must be the same to go on, besides model and recipe.

    Returns:
        Loss and accuracy of each epoch, by Keras's names.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.pipelines.fitting import build_text_classifier, fit
    >>> from dl_mamba.pipelines.recipe import TEXT
    >>> recipe = TEXT.adjusted(epochs=1, batch_size=2)
    >>> data = (["a", "b"], np.array([0, 1]))
    >>> sorted(fit(build_text_classifier(recipe, data[0], ["x", "y"]), data, data, recipe))
    ['accuracy', 'loss', 'val_accuracy', 'val_loss']
    """
    batch_size = min(recipe.batch_size, len(train[0]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(_optimizer(model, recipe, math.ceil(len(train[0]) / batch_size)), loss, metrics=["accuracy"])
    rows = _varied_rows(model, train[0], recipe) if isinstance(model, TextClassifier) else model.rows(train[0])
    batches = LengthBatches(rows, [train[1]], batch_size=batch_size, collate=model.collate, shuffle=True)
    held = model.batches(*valid, batch_size=batch_size)
    return _run(model, batches, held, recipe, callbacks, resume, about, ("val_accuracy", "max"))


def fit_tasks(
    model: TaskModel,
    train: Mapping[str, Sequence[Row]],
    valid: Mapping[str, Sequence[Row]],
    recipe: Recipe,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    resume: Path | None = None,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, list[float]]:
    """`fit` for any tasks: rows of each, by name; the epoch with the smallest validation loss is kept."""
    batch_size = min(recipe.batch_size, sum(map(len, train.values())))
    batches = model.batches(train, batch_size=batch_size, shuffle=True)
    model.compile(_optimizer(model, recipe, len(batches)), **compile_options(list(model.tasks.values())))
    held = model.batches(valid, batch_size=batch_size)
    return _run(model, batches, held, recipe, callbacks, resume, about, ("val_loss", "min"))


def _optimizer(model: keras.Model, recipe: Recipe, batches: int) -> keras.optimizers.Optimizer:
    return training.recipe(
        model,
        recipe.epochs * batches,
        recipe.learning_rate,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
    )


def _run(
    model: keras.Model,
    batches: LengthBatches,
    held: LengthBatches,
    recipe: Recipe,
    callbacks: Sequence[keras.callbacks.Callback],
    resume: Path | None,
    about: Mapping[str, Any],
    watched: tuple[str, str],
) -> dict[str, list[float]]:
    """Train a compiled model, from its kept state if there is one; the weights of the best epoch stay."""
    best = keras.callbacks.EarlyStopping(
        watched[0], mode=watched[1], patience=recipe.patience, restore_best_weights=True
    )
    state = None if resume is None else _state(resume, best, {**about, "recipe": recipe.to_dict()})
    done = 0 if state is None else state.epoch
    for _ in range(done):
        batches.on_epoch_end()  # the draws of the epochs that are over
    history = model.fit(
        batches,
        epochs=recipe.epochs,
        initial_epoch=recipe.epochs if state is not None and state.finished else done,
        validation_data=held,
        callbacks=[best, *([] if state is None else [state]), *callbacks],
        verbose=0,
    )
    logs = history.history if state is None else state.history
    return {name: [float(value) for value in values] for name, values in logs.items()}


def _state(path: Path, best: keras.callbacks.EarlyStopping, about: Mapping[str, Any]) -> training.Resume:
    try:
        return training.Resume(path, [best], about)
    except ValueError as error:
        raise InputError(str(error)) from error


def _varied_rows(model: TextClassifier, texts: list[str], recipe: Recipe) -> Callable[[], list[np.ndarray]]:
    """Draws the texts with other merges and without some tokens; a mask would hide those tokens to the same effect."""
    if isinstance(model.tokenizer, BytePairTokenizer):
        draw = model.tokenizer.varied(texts, recipe.merge_dropout, recipe.seed)
    else:
        rows = model.rows(texts)
        draw = lambda: rows  # noqa: E731
    rng = np.random.default_rng(recipe.seed)
    return lambda: [row[rng.random(len(row)) >= recipe.token_dropout] for row in draw()]


def score(model: Classifier, inputs: list, classes: np.ndarray, batch_size: int = 64) -> dict[str, Any]:
    """Accuracy and cross-entropy (nats) of a model on labelled data.

    Args:
        model: a classifier.
        inputs: raw inputs.
        classes: (inputs,) int, class numbers.
        batch_size: inputs in a batch.

    Returns:
        `accuracy`, `loss`, `examples`, and `predicted`: (inputs,) int class numbers.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.pipelines.fitting import build_text_classifier, score
    >>> from dl_mamba.pipelines.recipe import TEXT
    >>> score(build_text_classifier(TEXT, ["a", "b"], ["x", "y"]), ["a", "b"], np.array([0, 1]))["examples"]
    2
    """
    logits = np.asarray(model.predict(inputs, batch_size=batch_size, verbose=0), "float64")
    shifted = logits - logits.max(-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    predicted = logits.argmax(-1)
    return {
        "accuracy": float((predicted == classes).mean()),
        "loss": float(-log_probabilities[np.arange(len(classes)), classes].mean()),
        "examples": len(classes),
        "predicted": predicted,
    }
