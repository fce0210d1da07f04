"""From a task to its head, and from a variant and a task to a functional Keras model."""

from __future__ import annotations

from typing import Any

import keras

from dl_mamba.config import BackboneConfig
from dl_mamba.heads.sequence import SequenceClassificationHead
from dl_mamba.heads.tasks import NLPTaskConfig, NLPTaskType
from dl_mamba.models import Mamba, Mamba2
from dl_mamba.models.backbone import Backbone

HEADS: dict[NLPTaskType, type[keras.layers.Layer]] = dict.fromkeys(NLPTaskType, SequenceClassificationHead)


def create_nlp_head(config: NLPTaskConfig, **kwargs: Any) -> keras.layers.Layer:
    """The head of a task: a Keras layer on `{"last_hidden_state", "attention_mask"}`.

    Args:
        config: the task.
        **kwargs: `name`, `dtype`, `trainable` of a Keras layer.

    Returns:
        A layer that maps hidden states (batch, length, d_model) to logits (batch, num_classes).

    Raises:
        ValueError: `config` is no `NLPTaskConfig`.

    Example:

    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> create_nlp_head(NLPTaskConfig("topic", "topic_classification", num_classes=4)).name
    'topic'
    """
    if not isinstance(config, NLPTaskConfig):
        raise ValueError(f"task_config is a {type(config).__name__}; an NLPTaskConfig(name, task_type, ...) is needed.")
    return HEADS[config.task_type](config, **kwargs)


def create_mamba_with_head(
    mamba_variant: str | BackboneConfig | Mamba,
    task_config: NLPTaskConfig,
    *,
    name: str | None = None,
    **overrides: Any,
) -> keras.Model:
    """A Mamba-1 backbone under a task head, as a functional Keras model.

    Args:
        mamba_variant: name of a preset (`dl_mamba.variants.names("mamba")`), a `MambaConfig`, or a `Mamba` to put
            the head on.
        task_config: the task.
        name: name of the model.
        **overrides: options of `Mamba` that replace those of the variant, e.g. `vocab_size=256`,
            `dtype="mixed_bfloat16"`.

    Returns:
        A model of `{"input_ids": (batch, length), "attention_mask": (batch, length)}`, both int, to logits
        (batch, num_classes). Where no row is padded, pass a mask of ones.

    Raises:
        ValueError: the variant, an option or the task does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.heads import NLPTaskConfig
    >>> model = dl_mamba.create_mamba_with_head("tiny", NLPTaskConfig("spam", "spam_detection", num_classes=2))
    >>> tuple(model({"input_ids": np.ones((3, 7), "int32"), "attention_mask": np.ones((3, 7), "int32")}).shape)
    (3, 2)
    """
    return _with_head(Mamba, mamba_variant, task_config, name, overrides)


def create_mamba2_with_head(
    mamba_variant: str | BackboneConfig | Mamba2,
    task_config: NLPTaskConfig,
    *,
    name: str | None = None,
    **overrides: Any,
) -> keras.Model:
    """A Mamba-2 backbone under a task head, as a functional Keras model; see `create_mamba_with_head`.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.heads import NLPTaskConfig
    >>> model = dl_mamba.create_mamba2_with_head("tiny", NLPTaskConfig("spam", "spam_detection", num_classes=2))
    >>> tuple(model({"input_ids": np.ones((3, 7), "int32"), "attention_mask": np.ones((3, 7), "int32")}).shape)
    (3, 2)
    """
    return _with_head(Mamba2, mamba_variant, task_config, name, overrides)


def _with_head(
    family: type[Backbone], variant: Any, task_config: NLPTaskConfig, name: str | None, overrides: dict[str, Any]
) -> keras.Model:
    head = create_nlp_head(task_config, **{key: overrides[key] for key in ("dtype",) if key in overrides})
    backbone = _backbone(family, variant, overrides)
    ids = keras.Input((None,), dtype="int32", name="input_ids")
    mask = keras.Input((None,), dtype="int32", name="attention_mask")
    inputs = {"input_ids": ids, "attention_mask": mask}
    hidden = backbone(inputs)["last_hidden_state"]
    logits = head({"last_hidden_state": hidden, "attention_mask": mask})
    model = keras.Model(inputs, logits, name=name or f"{family.family}_{task_config.name}")
    model.dtype_policy = backbone.dtype_policy  # compile() scales the loss for float16
    return model


def _backbone(family: type[Backbone], variant: Any, overrides: dict[str, Any]) -> Backbone:
    if isinstance(variant, family):
        if overrides:
            raise ValueError(
                f"{sorted(overrides)} cannot be changed on a {family.__name__} that is built; pass a variant name."
            )
        return variant
    if isinstance(variant, family.config_class()):
        return family(**{**variant.to_dict(), **overrides})
    if isinstance(variant, str):
        return family.from_variant(variant, **overrides)
    raise ValueError(
        f"mamba_variant is a {type(variant).__name__}; a variant name, a {family.config_class().__name__} or a "
        f"{family.__name__} is needed."
    )
