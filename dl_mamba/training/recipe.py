"""AdamW as state-space models are trained, with its schedule, in one line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from dl_mamba.layers import no_weight_decay_variables
from dl_mamba.layers.stacked import StackedVariable, slices

BLOCK = re.compile(r"(?:^|/)layers/(\d+)/")


@keras.saving.register_keras_serializable(package="dl_mamba")
class LayerwiseAdamW(keras.optimizers.AdamW):
    """AdamW whose learning rate shrinks by a factor from each block to the one below it.

    Final norm and heads have the full rate, the block below them `layer_decay` of it, the next one `layer_decay ** 2`,
    and the embedding the least. Sources: Howard and Ruder, "Universal Language Model Fine-tuning", 2018, section 3.2;
    Clark et al., "ELECTRA", 2020, appendix B.

    Args:
        layer_decay: the factor, 0 < factor <= 1.
        **options: of `keras.optimizers.AdamW`.

    Raises:
        ValueError: the factor is out of range.

    Example:

    >>> import dl_mamba
    >>> model = dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=2)
    >>> optimizer = dl_mamba.training.LayerwiseAdamW(layer_decay=0.5)
    >>> optimizer.build(model.trainable_variables)
    >>> sorted({optimizer.scale_of(variable) for variable in model.trainable_variables})
    [0.125, 0.25, 0.5, 1.0]
    """

    def __init__(self, *args: Any, layer_decay: float = 0.9, **options: Any) -> None:
        super().__init__(*args, **options)
        if not 0.0 < layer_decay <= 1.0:
            raise ValueError(f"layer_decay={layer_decay!r}; a number with 0 < factor <= 1 is needed.")
        self.layer_decay = layer_decay
        self._num_blocks = 0

    def build(self, variables: Sequence[keras.Variable]) -> None:
        found = [BLOCK.search(part.path) for variable in variables for part in slices(variable)]
        self._num_blocks = 1 + max([int(block[1]) for block in found if block], default=-1)
        super().build(variables)

    def scale_of(self, variable: keras.Variable) -> float:
        """The share of the learning rate that a weight of one layer gets."""
        block = BLOCK.search(variable.path)
        if block:
            return self.layer_decay ** (self._num_blocks - int(block[1]))
        is_embedding = variable.path.endswith("embedding/embeddings")
        return self.layer_decay ** (self._num_blocks + 1) if is_embedding else 1.0

    def _backend_update_step(self, grads: list, trainable_variables: list, learning_rate: Any) -> None:
        groups: dict[float, tuple[list, list]] = defaultdict(lambda: ([], []))
        stacks: list[tuple[keras.Variable, Any]] = []
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            stacked = isinstance(variable, StackedVariable)
            if stacked:
                stacks.append((variable, ops.copy(variable)))
            group = groups[1.0 if stacked else self.scale_of(variable)]
            group[0].append(gradient)
            group[1].append(variable)
        for scale, group in groups.items():
            super()._backend_update_step(*group, learning_rate * scale)
        for variable, before in stacks:  # the step of AdamW is proportional to the rate
            variable.assign(before + (variable - before) * self._scales(variable))

    def _apply_weight_decay(self, variables: list) -> None:
        for variable in variables:
            if self._use_weight_decay(variable):
                rate = ops.cast(self.learning_rate * self.weight_decay, variable.dtype) * self._scales(variable)
                variable.assign(variable - variable * rate)

    def _scales(self, variable: keras.Variable) -> Any:
        """The share of each layer, as it is multiplied with the variable."""
        scales = [self.scale_of(part) for part in slices(variable)]
        if not isinstance(variable, StackedVariable):
            return scales[0]
        return ops.reshape(ops.convert_to_tensor(scales, variable.dtype), (-1, *[1] * (len(variable.shape) - 1)))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer_decay": self.layer_decay}


def recipe(
    model: keras.Model,
    steps: int,
    learning_rate: float = 1e-3,
    *,
    warmup: float = 0.1,
    weight_decay: float = 0.05,
    clip_norm: float | None = 1.0,
    layer_decay: float = 1.0,
    accumulate: int = 1,
    ema: float | None = None,
) -> keras.optimizers.Optimizer:
    """AdamW as state-space models are trained: linear warm-up, cosine to 0, clipped gradients, decay of matrices alone.

    A_log, D, dt_bias, norms and every bias are left out of the weight decay (Gu and Dao, "Mamba", 2023, appendix E.2,
    for the decay of 0.1 and clipping at 1.0 of their language models).

    Args:
        model: a built model.
        steps: batches of the whole run: epochs times batches an epoch.
        learning_rate: the peak, > 0.
        warmup: share of the run that warms up, 0 <= share < 1.
        weight_decay: of matrices, >= 0.
        clip_norm: largest norm of the gradient of all weights together; None does not clip.
        layer_decay: below 1, blocks further down learn more slowly; see `LayerwiseAdamW`.
        accumulate: batches whose gradients make one update, >= 1.
        ema: momentum of a moving average of the weights, e.g. 0.999, or None. `fit` ends with the average in the model;
            `keras.callbacks.SwapEMAWeights` evaluates it on the way.

    Raises:
        ValueError: a number lies outside its range, or the model is not built.

    Example:

    >>> import dl_mamba, keras
    >>> model = dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=2)
    >>> model.compile(dl_mamba.training.recipe(model, steps=100, learning_rate=1e-3, layer_decay=0.9))
    >>> type(model.optimizer).__name__, float(model.optimizer.learning_rate)
    ('LayerwiseAdamW', 0.0)
    """
    ranges = {
        "steps": (steps >= 1, "a whole number >= 1"),
        "learning_rate": (learning_rate > 0, "a number > 0"),
        "warmup": (0 <= warmup < 1, "a share with 0 <= share < 1"),
        "weight_decay": (weight_decay >= 0, "a number >= 0"),
        "accumulate": (isinstance(accumulate, int) and accumulate >= 1, "a whole number >= 1"),
        "ema": (ema is None or 0 < ema < 1, "a number between 0 and 1, or None"),
    }
    for name, (fits, wanted) in ranges.items():
        if not fits:
            raise ValueError(f"{name}={locals()[name]!r}; {wanted} is needed.")
    if not model.built:
        raise ValueError(f"model {model.name!r} is not built; build it first, e.g. by calling it on a batch.")
    updates = -(-steps // accumulate)
    rising = max(1, round(warmup * updates))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, updates - rising), warmup_target=learning_rate, warmup_steps=rising
    )
    kind, own = (keras.optimizers.AdamW, {}) if layer_decay == 1.0 else (LayerwiseAdamW, {"layer_decay": layer_decay})
    optimizer = kind(
        schedule,
        weight_decay=weight_decay,
        beta_2=0.98,
        global_clipnorm=clip_norm,
        gradient_accumulation_steps=accumulate if accumulate > 1 else None,
        use_ema=ema is not None,
        ema_momentum=0.99 if ema is None else ema,
        **own,
    )
    vectors = [variable for variable in model.trainable_variables if len(slices(variable)[0].shape) < 2]
    optimizer.exclude_from_weight_decay(var_list=[*no_weight_decay_variables(model), *vectors])
    return optimizer
