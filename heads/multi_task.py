"""Several tasks on one backbone: a dictionary of heads, and what `compile` needs for one task or for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from dl_mamba.heads.base import TaskHead
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.layers.quantized import QuantizedParts


@keras.saving.register_keras_serializable(package="dl_mamba")
class MultiTaskHead(QuantizedParts, keras.layers.Layer):
    """One head for each task, all on the same inputs.

    Args:
        configs: one `NLPTaskConfig` a task, or their fields as dicts, with different names.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, length, d_model), "attention_mask": (batch, length)}` and whatever else
            one of the heads needs.

    Returns:
        A dictionary of the heads' outputs, by the names of the tasks.

    Raises:
        ValueError: no task, two with one name, or tasks that cannot share their inputs.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_multi_task_nlp_head
    >>> tasks = [NLPTaskConfig("mood", "sentiment_analysis", 2), NLPTaskConfig("tags", "token_classification", 5)]
    >>> outputs = create_multi_task_nlp_head(tasks)({"last_hidden_state": np.ones((3, 7, 8), "float32")})
    >>> {name: tuple(output.shape) for name, output in sorted(outputs.items())}
    {'mood': (3, 2), 'tags': (3, 7, 5)}
    """

    def __init__(self, configs: Sequence[NLPTaskConfig | Mapping[str, Any]], **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.configs = check_tasks([c if isinstance(c, NLPTaskConfig) else NLPTaskConfig(**c) for c in configs])
        self.heads = {c.name: c.head_class(c, dtype=self.dtype_policy) for c in self.configs}

    def build(self, input_shape: Any) -> None:
        for head in self.heads.values():
            head.build(input_shape)

    def call(self, inputs: Any, mask: Any = None) -> dict[str, Any]:
        return {name: head(inputs, mask=mask) for name, head in self.heads.items()}

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> dict[str, keras.KerasTensor]:
        return {name: head.compute_output_spec(inputs, mask) for name, head in self.heads.items()}

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None

    def decode(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of each head to its output."""
        return {name: head.decode(outputs[name]) for name, head in self.heads.items()}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "configs": [config.to_dict() for config in self.configs]}


def check_tasks(configs: Any) -> list[NLPTaskConfig]:
    """The tasks of one model as a list.

    Raises:
        ValueError: something is no `NLPTaskConfig`, there is no task, two have one name, or their inputs differ.
    """
    configs = [configs] if isinstance(configs, NLPTaskConfig | str | Mapping) else list(configs)
    for config in configs:
        if not isinstance(config, NLPTaskConfig):
            raise ValueError(
                f"task_config is a {type(config).__name__}; an NLPTaskConfig(name, task_type, ...) is needed."
            )
    names = [config.name for config in configs]
    if not names:
        raise ValueError("no task was given; at least one NLPTaskConfig is needed.")
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"{names.count(double[0])} tasks have the name {double[0]!r}; give each its own.")
    choices = [config.name for config in configs if config.head_class.layout(config) == "choices"]
    if choices and len(choices) < len(configs):
        others = [name for name in names if name not in choices]
        raise ValueError(f"{choices} read (batch, choices, length) and {others} (batch, length); make two models.")
    return configs


def compile_options(tasks: NLPTaskConfig | Sequence[NLPTaskConfig]) -> dict[str, Any]:
    """The default loss, its weight and the metrics of tasks, for `model.compile(optimizer, **compile_options(tasks))`.

    Losses are means over what is real and labelled: class numbers below 0, such as -100, NaN in place of a number, and
    what `sample_weight` sets to 0 count for nothing. So every batch may lack labels, for some rows or for whole tasks.

    Args:
        tasks: one task, for a model with one output, or a list, for a model with a dictionary of outputs.

    Returns:
        `loss`, `loss_weights` and `weighted_metrics`.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig, compile_options
    >>> options = compile_options([NLPTaskConfig("mood", "sentiment_analysis", 2, loss_weight=0.5)])
    >>> sorted(options), options["loss_weights"]
    (['loss', 'loss_weights', 'weighted_metrics'], {'mood': 0.5})
    """
    configs = check_tasks(tasks)
    losses = {c.name: c.head_class.make_loss(c) for c in configs}
    weights = {c.name: float(c.loss_weight) for c in configs}
    metrics = {c.name: c.head_class.make_metrics(c) for c in configs}
    if isinstance(tasks, NLPTaskConfig):
        name = tasks.name
        return {"loss": losses[name], "loss_weights": [weights[name]], "weighted_metrics": metrics[name]}
    return {"loss": losses, "loss_weights": weights, "weighted_metrics": metrics}


def create_multi_task_nlp_head(configs: Sequence[NLPTaskConfig], **kwargs: Any) -> MultiTaskHead:
    """The heads of several tasks as one layer from hidden states to a dictionary of outputs.

    Args:
        configs: the tasks, with different names.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Raises:
        ValueError: no task, two with one name, or tasks that cannot share their inputs.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig, create_multi_task_nlp_head
    >>> create_multi_task_nlp_head([NLPTaskConfig("a", "spam_detection", 2), NLPTaskConfig("a", "text_regression")])
    Traceback (most recent call last):
    ValueError: 2 tasks have the name 'a'; give each its own.
    """
    return MultiTaskHead(check_tasks(configs), **kwargs)


def create_nlp_head(config: NLPTaskConfig, **kwargs: Any) -> TaskHead:
    """The head of a task: a Keras layer on `{"last_hidden_state", "attention_mask"}`.

    Args:
        config: the task.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Returns:
        A layer from hidden states (batch, length, d_model) to the output that `docs/tasks.md` lists for the task.

    Raises:
        ValueError: `config` is no `NLPTaskConfig`.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> create_nlp_head(NLPTaskConfig("topic", "topic_classification", num_classes=4)).name
    'topic'
    """
    (config,) = check_tasks(config)
    return config.head_class(config, **kwargs)
