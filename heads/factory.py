"""From a variant and one task or several to a functional Keras model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import ops

from dl_mamba.config import BackboneConfig
from dl_mamba.heads.bidirectional import BidirectionalEncoder
from dl_mamba.heads.multi_task import MultiTaskHead, check_tasks, create_nlp_head
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.models import Mamba, Mamba2
from dl_mamba.models.backbone import Backbone
from dl_mamba.ops.sequence import size_of

Tasks = NLPTaskConfig | Sequence[NLPTaskConfig]


def create_mamba_with_head(
    mamba_variant: str | BackboneConfig | Mamba,
    task_config: Tasks,
    *,
    bidirectional: bool = False,
    share_weights: bool = False,
    name: str | None = None,
    **overrides: Any,
) -> keras.Model:
    """A Mamba-1 backbone under one task head or several, as a functional Keras model.

    Args:
        mamba_variant: name of a preset (`dl_mamba.variants.names("mamba")`), a `MambaConfig`, or a `Mamba` to put
            the head on.
        task_config: the task, or a list of tasks with different names.
        bidirectional: read each row in both directions, with two backbones. The second one starts as a copy if the
            first one is given or has published weights.
        share_weights: read in both directions with one backbone.
        name: name of the model.
        **overrides: options of `Mamba` that replace those of the variant, e.g. `vocab_size=256`,
            `dtype="mixed_bfloat16"`.

    Returns:
        A model of `{"input_ids": (batch, length), "attention_mask": (batch, length)}`, both int, to the output of the
        head (`docs/tasks.md`), or to a dictionary of outputs by name for a list of tasks. Where no row is padded, pass
        a mask of ones. Texts of a pair are read apart, the second one from `"pair_input_ids"` and
        `"pair_attention_mask"`, or with `encoding="joint"` in one sequence with `"token_type_ids"`. Choices are
        (batch, choices, length). `compile(optimizer, **compile_options(task_config))` sets losses and metrics.

    Raises:
        ValueError: the variant, an option or a task does not fit.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.heads import NLPTaskConfig
    >>> model = dl_mamba.create_mamba_with_head("tiny", NLPTaskConfig("spam", "spam_detection", num_classes=2))
    >>> tuple(model({"input_ids": np.ones((3, 7), "int32"), "attention_mask": np.ones((3, 7), "int32")}).shape)
    (3, 2)
    """
    directions = _directions(bidirectional, share_weights)
    return _with_head(Mamba, mamba_variant, task_config, directions, name, overrides)


def create_mamba2_with_head(
    mamba_variant: str | BackboneConfig | Mamba2,
    task_config: Tasks,
    *,
    bidirectional: bool = False,
    share_weights: bool = False,
    name: str | None = None,
    **overrides: Any,
) -> keras.Model:
    """A Mamba-2 backbone under one task head or several; see `create_mamba_with_head`.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.heads import NLPTaskConfig
    >>> tasks = [NLPTaskConfig("spam", "spam_detection", 2), NLPTaskConfig("names", "named_entity_recognition", 3)]
    >>> model = dl_mamba.create_mamba2_with_head("tiny", tasks, bidirectional=True)
    >>> outputs = model({"input_ids": np.ones((3, 7), "int32"), "attention_mask": np.ones((3, 7), "int32")})
    >>> {name: tuple(output.shape) for name, output in sorted(outputs.items())}
    {'names': (3, 7, 3), 'spam': (3, 2)}
    """
    directions = _directions(bidirectional, share_weights)
    return _with_head(Mamba2, mamba_variant, task_config, directions, name, overrides)


@keras.saving.register_keras_serializable(package="dl_mamba")
class MergeChoices(keras.layers.Layer):
    """(batch, choices, ...) to (batch x choices, ...): each choice becomes a row of its own."""

    def compute_mask(self, x: Any, previous_mask: Any = None) -> None:
        return None

    def call(self, x: Any) -> Any:
        shape = [size_of(x, axis) for axis in range(len(x.shape))]
        return ops.reshape(x, (shape[0] * shape[1], *shape[2:]))

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        return keras.KerasTensor((None, *x.shape[2:]), dtype=x.dtype)


@keras.saving.register_keras_serializable(package="dl_mamba")
class SplitChoices(keras.layers.Layer):
    """(batch x choices, ...) back to (batch, choices, ...), as `like` is (batch, choices, ...)."""

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)

    def compute_mask(self, x: Any, previous_mask: Any = None) -> None:
        return None

    def call(self, x: Any, like: Any) -> Any:
        rest = [size_of(x, axis) for axis in range(1, len(x.shape))]
        return ops.reshape(x, (size_of(like, 0), size_of(like, 1), *rest))

    def compute_output_spec(self, x: Any, like: Any) -> keras.KerasTensor:
        return keras.KerasTensor((*like.shape[:2], *x.shape[1:]), dtype=x.dtype)


def _directions(bidirectional: bool, share_weights: bool) -> str:
    if share_weights and not bidirectional:
        raise ValueError("share_weights=True is about two directions; set bidirectional=True as well.")
    return ("shared" if share_weights else "separate") if bidirectional else "one"


def _with_head(
    family: type[Backbone], variant: Any, tasks: Any, directions: str, name: str | None, overrides: dict[str, Any]
) -> keras.Model:
    configs = check_tasks(tasks)
    if directions != "one":
        _refuse_to_see_the_future(configs)
    backbone = _backbone(family, variant, overrides)
    configs = [_with_vocabulary(config, backbone.config.vocab_size) for config in configs]
    copied = isinstance(variant, family) or overrides.get("weights") is not None
    inputs, features = _encoded(_encoder(backbone, directions, copied), configs)
    options = {key: overrides[key] for key in ("dtype",) if key in overrides}
    if isinstance(tasks, NLPTaskConfig):
        outputs, called = create_nlp_head(configs[0], **options)(features), configs[0].name
    else:
        outputs, called = MultiTaskHead(configs, name="tasks", **options)(features), "tasks"
    model = keras.Model(inputs, outputs, name=name or f"{family.family}_{called}")
    model.dtype_policy = backbone.dtype_policy  # compile() scales the loss for float16
    return model


def _refuse_to_see_the_future(configs: list[NLPTaskConfig]) -> None:
    for config in configs:
        if config.head_class.make_loss(config).__dict__.get("kind") == "next_token":
            raise ValueError(
                f"bidirectional=True shows the task {config.name!r} ({config.task_type}) the tokens that it is to "
                "predict; leave it out, or choose 'masked_language_modeling'."
            )


def _with_vocabulary(config: NLPTaskConfig, vocab_size: int) -> NLPTaskConfig:
    if "vocab_size" not in config.head_class.fields:
        return config
    if config.vocab_size not in (None, vocab_size):
        raise ValueError(
            f"vocab_size={config.vocab_size} of the task {config.name!r} is not that of the backbone, {vocab_size}; "
            "leave it out."
        )
    return replace(config, vocab_size=vocab_size)


def _encoder(backbone: Backbone, directions: str, copied: bool) -> keras.layers.Layer:
    if directions == "one":
        return backbone
    if directions == "shared":
        return BidirectionalEncoder(backbone, name="bidirectional")
    other = type(backbone).from_config({**backbone.get_config(), "name": f"{backbone.name}_right_to_left"})
    if copied:
        other.set_weights(backbone.get_weights())
    return BidirectionalEncoder(backbone, other, name="bidirectional")


def _encoded(encoder: keras.layers.Layer, configs: list[NLPTaskConfig]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs that the tasks need, and what their heads read."""
    layouts = {config.head_class.layout(config) for config in configs}
    options = {"output_embeddings": True} if any(config.tie_word_embeddings for config in configs) else {}
    axes = (None, None) if "choices" in layouts else (None,)
    inputs, features = {}, {}
    for before in ("", "pair_") if "pair" in layouts else ("",):
        names = (f"{before}input_ids", f"{before}attention_mask")
        ids, mask = (inputs.setdefault(name, keras.Input(axes, dtype="int32", name=name)) for name in names)
        if "choices" in layouts:
            merged = {"input_ids": MergeChoices()(ids), "attention_mask": MergeChoices()(mask)}
            outputs = encoder(merged, **options)
            outputs["last_hidden_state"] = SplitChoices()(outputs["last_hidden_state"], mask)
        else:
            outputs = encoder({"input_ids": ids, "attention_mask": mask}, **options)
        features[f"{before}last_hidden_state"], features[f"{before}attention_mask"] = outputs["last_hidden_state"], mask
        if "embeddings" in outputs and not before:
            features["embeddings"] = outputs["embeddings"]
    if "segments" in layouts:
        inputs["token_type_ids"] = keras.Input(axes, dtype="int32", name="token_type_ids")
        features["token_type_ids"] = inputs["token_type_ids"]
    return inputs, features


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
