"""The defaults of training, all in one place: a frozen recipe for each kind of data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dl_mamba import variants
from dl_mamba.pipelines.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run besides its data.

    Attributes:
        family: `"mamba"` or `"mamba2"`.
        variant: a name of `dl_mamba.variants.names(family)`, short or full.
        options: options of the model that differ from the variant's.
        pooling: of the head: `"mean"`, `"last"`, `"max"` or `"attention"`.
        dropout_rate: before the logits (and between the blocks for sequences of numbers).
        vocab_size: tokens that byte-pair encoding learns from the training texts, 256 for plain bytes. Of text alone.
        merge_dropout: share of the merges that training skips by chance (BPE-dropout). Of text alone.
        token_dropout: share of the tokens that training leaves out by chance. Of text alone.
        max_length: longest text in tokens; the rest is cut off. None for no limit. Of text alone.
        epochs: passes over the training data, at most.
        batch_size: examples in a step.
        learning_rate: peak of the schedule: linear warm-up, then a cosine down to 0.
        warmup: share of the steps that warm up.
        weight_decay: of AdamW; A_log, D, dt_bias, norms and biases are left out.
        clip_norm: largest norm of the gradient of all weights together.
        patience: epochs without a better validation accuracy before training stops.
        valid_fraction: share of the training data held out when no validation file is given.
        seed: of weights, split, order and dropout.

    Raises:
        InputError: an unknown family or variant, or a number outside its range.

    Example:

    >>> from dl_mamba.pipelines.recipe import TEXT
    >>> TEXT.adjusted(epochs=3, seed=None).epochs
    3
    """

    family: str = "mamba2"
    variant: str = "tiny"
    options: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = "mean"
    dropout_rate: float = 0.3
    vocab_size: int = 8192
    merge_dropout: float = 0.1
    token_dropout: float = 0.2
    max_length: int | None = 512
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    patience: int = 4
    valid_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            variants.names(self.family)
            variants.find(self.family, self.variant)
        except ValueError as error:
            raise InputError(str(error)) from error
        for name in ("epochs", "batch_size", "patience", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}; a whole number >= 1 is needed.")
        if self.vocab_size < 256:
            raise InputError(f"vocab_size={self.vocab_size}; at least 256 is needed, one token for each byte.")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate={self.learning_rate}; a number > 0 is needed, e.g. 0.002.")
        for name in ("dropout_rate", "merge_dropout", "token_dropout", "warmup", "valid_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; a number from 0 to below 1 is needed.")

    @property
    def model_options(self) -> dict[str, Any]:
        """The options of the variant with this recipe's own over them."""
        return {**variants.find(self.family, self.variant).to_dict(), **self.options}

    def adjusted(self, **changes: Any) -> Recipe:
        """This recipe with some fields replaced; None leaves a field as it is."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values for the metrics file."""
        return {**asdict(self), "options": dict(self.options)}


TEXT = Recipe(pooling="max")
NUMBERS = Recipe(dropout_rate=0.1, epochs=40, patience=10, batch_size=32, max_length=None)
TASK = Recipe(dropout_rate=0.1, batch_size=32, max_length=None)
FINE_TUNING = {"learning_rate": 2e-4, "merge_dropout": 0.0, "token_dropout": 0.0}  # of pretrained weights
ADAPTERS = {"learning_rate": 1e-3}  # they are few, and start at zero
DIGITS = Recipe(  # a convolution of 9 taps reaches the pixel above, 8 steps back
    options={"chunk_size": 16, "d_conv": 9},
    dropout_rate=0.1,
    learning_rate=4e-3,
    epochs=16,
    patience=16,
    batch_size=32,
    max_length=None,
)
