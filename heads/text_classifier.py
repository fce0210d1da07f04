"""Classifiers that are whole: raw text in, label names out, everything between in one `.keras` file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from dl_mamba.heads.batches import LengthBatches
from dl_mamba.models.optimizer_first import OptimizerFirst
from dl_mamba.tokenizers import ByteTokenizer


class Classification(NamedTuple):
    """Label names and probabilities of a batch.

    Attributes:
        labels: one name a row, of the most probable class.
        probabilities: (batch, num_classes) float32.

    Example:

    >>> from dl_mamba.heads.text_classifier import Classification
    >>> Classification(["up"], [[0.25, 0.75]]).labels
    ['up']
    """

    labels: list[str]
    probabilities: np.ndarray


class Classifier(OptimizerFirst, keras.Model):
    """Base: a network that gives logits, the names of its classes, and inputs as people have them.

    A subclass says in `is_raw` what it takes besides the network's own inputs, in `rows` how that becomes one array a
    row, and in `collate` how rows become a batch.

    Args:
        network: a functional model from encoded inputs to (batch, num_classes) logits.
        label_names: one name a class, in the order of the logits; None calls them "0", "1" and so on.
        **kwargs: `name`, `dtype`, `trainable` of a Keras model.
    """

    parts: tuple[str, ...] = ("network", "label_names")

    def __init__(self, network: keras.Model, label_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        num_classes = network.output_shape[-1]
        names = [str(name) for name in (range(num_classes) if label_names is None else label_names)]
        if len(set(names)) != num_classes:
            raise ValueError(
                f"label_names={names} do not fit {num_classes} classes; give {num_classes} different names."
            )
        self.network = network
        self.label_names = names
        self.build()

    def is_raw(self, x: Any) -> bool:
        """Whether `x` has to pass through `rows` before the network can read it."""
        raise NotImplementedError

    def rows(self, x: Any) -> list[np.ndarray]:
        """One (length, ...) array for each raw input."""
        raise NotImplementedError

    def collate(self, rows: list[np.ndarray], length: int) -> Any:
        """Rows, padded to a length, as the network's inputs."""
        raise NotImplementedError

    def build(self, input_shape: Any = None) -> None:
        self.built = True  # the network came with its weights

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.network(inputs, training=training)

    def batches(
        self, x: Any, y: Any = None, sample_weight: Any = None, *, batch_size: int | None = None, shuffle: bool = False
    ) -> LengthBatches:
        """Raw inputs and labels as a dataset of batches of like lengths, for `fit`, `evaluate` and `predict`.

        Args:
            x: raw inputs.
            y: class numbers, or label names, one an input; None for predictions.
            sample_weight: one number an input, or None.
            batch_size: inputs in a batch; None for 32.
            shuffle: deal the inputs anew for each epoch.

        Raises:
            ValueError: no inputs, labels of another number, or a label that is no class of this model.
        """
        targets = [] if y is None else [self._class_numbers(y)]
        targets += [] if sample_weight is None else [np.asarray(sample_weight)]
        return LengthBatches(self.rows(x), targets, batch_size=batch_size or 32, collate=self.collate, shuffle=shuffle)

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, **options: Any) -> Any:
        held = options.get("validation_data")
        if isinstance(held, tuple) and self.is_raw(held[0]):
            size = options.get("validation_batch_size") or batch_size
            options["validation_data"] = self.batches(*held, batch_size=size)
        if not self.is_raw(x):
            return super().fit(x, y, batch_size=batch_size, **options)
        if options.get("validation_split"):
            raise ValueError("validation_split cannot cut raw inputs; split them and pass validation_data=(x, y).")
        shuffle = options.get("shuffle", True)
        data = self.batches(x, y, options.pop("sample_weight", None), batch_size=batch_size, shuffle=shuffle)
        return super().fit(data, **options)

    def evaluate(self, x: Any = None, y: Any = None, batch_size: int | None = None, **options: Any) -> Any:
        if not self.is_raw(x):
            return super().evaluate(x, y, batch_size=batch_size, **options)
        weight = options.pop("sample_weight", None)
        return super().evaluate(self.batches(x, y, weight, batch_size=batch_size), **options)

    def predict(self, x: Any, batch_size: int | None = None, **options: Any) -> np.ndarray:
        if not self.is_raw(x):
            return super().predict(x, batch_size=batch_size, **options)
        data = self.batches(x, batch_size=batch_size)
        return super().predict(data, **options)[np.argsort(data.order)]

    def classify(self, x: Any, batch_size: int | None = None, verbose: Any = 0) -> Classification:
        """The most probable label of each input, and the probabilities of all labels.

        Args:
            x: what `predict` takes.
            batch_size: inputs in a batch; None for 32.
            verbose: 1 for Keras's progress bar.

        Returns:
            A `Classification`: `labels`, one name an input, and `probabilities` (batch, num_classes) in the order of
            `label_names`.
        """
        logits = np.asarray(self.predict(x, batch_size=batch_size, verbose=verbose), "float64")
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(-1, keepdims=True)
        return Classification([self.label_names[i] for i in logits.argmax(-1)], probabilities.astype("float32"))

    def bare(self) -> Classifier:
        """This model without optimizer and loss, on the same weights: a finished model to save, a third of the size."""
        return type(self)(**{part: getattr(self, part) for part in self.parts})

    def get_config(self) -> dict[str, Any]:
        parts = {part: keras.saving.serialize_keras_object(getattr(self, part)) for part in self.parts}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Classifier:
        parts = {part: keras.saving.deserialize_keras_object(config[part], custom_objects) for part in cls.parts}
        return cls(**{**config, **parts})

    def _class_numbers(self, y: Any) -> np.ndarray:
        y = np.asarray(y)
        if y.dtype.kind not in "OUT":
            return y
        unknown = sorted({str(name) for name in y} - set(self.label_names))
        if unknown:
            raise ValueError(f"label {unknown[0]!r} is no class of this model; its classes are {self.label_names}.")
        return np.array([self.label_names.index(str(name)) for name in y], "int32")


@keras.saving.register_keras_serializable(package="dl_mamba")
class TextClassifier(Classifier):
    """Text in, class out: a network over ids, its tokenizer and its label names in one model and one `.keras` file.

    `fit`, `evaluate` and `predict` take raw strings (a list, a tuple or an array of them) as well as encoded
    `{"input_ids", "attention_mask"}`. Labels may be class numbers or label names.

    Args:
        network: a functional model from `input_ids` and `attention_mask`, both (batch, length) int, to
            (batch, num_classes) logits, such as `create_mamba2_with_head` makes.
        tokenizer: turns strings into ids; None for a `ByteTokenizer`.
        label_names: one name a class, in the order of the logits; None calls them "0", "1" and so on.
        **kwargs: `name`, `dtype`, `trainable` of a Keras model.

    Call arguments:
        inputs: `{"input_ids": (batch, length) int, "attention_mask": optional}`, or the ids alone.

    Returns:
        (batch, num_classes) logits.

    Raises:
        ValueError: the label names do not fit the number of classes.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig, create_mamba2_with_head
    >>> from dl_mamba.heads.text_classifier import TextClassifier
    >>> task = NLPTaskConfig("mood", "sentiment_analysis", num_classes=2)
    >>> model = TextClassifier(create_mamba2_with_head("tiny", task, vocab_size=256), label_names=["bad", "good"])
    >>> model.predict(["what a film", "no"], verbose=0).shape
    (2, 2)
    >>> model.classify(["what a film"]).labels[0] in ("bad", "good")
    True
    """

    parts = ("network", "tokenizer", "label_names")

    def __init__(
        self,
        network: keras.Model,
        tokenizer: Any = None,
        label_names: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, label_names, **kwargs)
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer

    def is_raw(self, x: Any) -> bool:
        if isinstance(x, np.ndarray):
            return x.dtype.kind in "OUT"
        items = isinstance(x, list | tuple) or type(x).__module__.startswith("pandas")
        return items and all(isinstance(item, str) for item in x)

    def rows(self, x: Any) -> list[np.ndarray]:
        return self.tokenizer.rows(list(x))

    def collate(self, rows: list[np.ndarray], length: int) -> dict[str, np.ndarray]:
        ids, mask = np.zeros((2, len(rows), length), "int32")
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        inputs = dict(inputs) if isinstance(inputs, dict) else {"input_ids": inputs}
        if inputs.get("attention_mask") is None:
            inputs["attention_mask"] = ops.ones_like(inputs["input_ids"])
        return self.network(inputs, training=training)
