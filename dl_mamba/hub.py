"""KerasHub adapters: our language models behind its Backbone, CausalLM and presets; `pip install "dl-mamba[hub]"`.

KerasHub's `generate` fills a key-value cache from the padded rows and then feeds every token from the shortest prompt's
last one on again. A recurrent state must read each token once, so `generate_step` is our own: it reads what stands
before that token, the sampler's loop the rest. A given token is certain there: beams part only behind their prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from dl_mamba.generation.foreign import next_logits
from dl_mamba.generation.prompts import read_prompts

try:
    import keras_hub
except ImportError as error:
    raise ModuleNotFoundError(f'dl_mamba.hub needs KerasHub ({error}): pip install "dl-mamba[hub]"') from error

__all__ = ["HubBackbone", "HubCausalLM", "HubPreprocessor", "HubTokenizer"]
KEYS = ("token_ids", "padding_mask")


@keras.saving.register_keras_serializable(package="dl_mamba")
class LanguageModelLayer(keras.layers.Layer):
    """Our language model as a layer of functional graphs: ids to hidden states or, with `reverse`, those to logits."""

    def __init__(self, model: keras.Model, **options: Any) -> None:
        super().__init__(autocast=False, **options)
        self.model = model
        self.supports_masking = True
        self.built = True

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        return self.model.logits(inputs) if reverse else self.model.backbone(_ours(inputs))["last_hidden_state"]

    def compute_output_spec(self, inputs: Any, reverse: bool = False) -> keras.KerasTensor:
        if reverse:
            return keras.KerasTensor((*inputs.shape[:-1], self.model.config.vocab_size), dtype="float32")
        return self.model.backbone.compute_output_spec(_ours(inputs))["last_hidden_state"]

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


@keras.saving.register_keras_serializable(package="dl_mamba")
class HubBackbone(keras_hub.models.Backbone):
    """A language model of ours, all weights of it, as a KerasHub backbone: ids and padding mask to hidden states.

    Args:
        model: a `dl_mamba.MambaCausalLM` or `Mamba2CausalLM`. Its tokenizer is left out; see `HubTokenizer`.
        **options: `name` and `trainable` of a Keras model.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.hub import HubBackbone
    >>> backbone = HubBackbone(dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1))
    >>> tuple(backbone({"token_ids": np.array([[3, 1, 4]]), "padding_mask": np.ones((1, 3))}).shape)
    (1, 3, 8)
    """

    def __init__(self, model: keras.Model, **options: Any) -> None:
        layer = LanguageModelLayer(model, dtype=model.dtype_policy, name="language_model")
        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in KEYS}
        super().__init__(inputs=inputs, outputs=layer(inputs), dtype=model.dtype_policy, **options)
        self.language_model = layer

    @property
    def model(self) -> keras.Model:
        """Our language model."""
        return self.language_model.model

    @property
    def token_embedding(self) -> keras.layers.Embedding:
        return self.model.backbone.embedding

    def default_lora_layer_names(self) -> list[str]:
        return ["in_proj", "x_proj", "out_proj"]

    def get_config(self) -> dict[str, Any]:
        model = keras.saving.serialize_keras_object(self.model)
        model["config"]["tokenizer"] = None
        return {**super().get_config(), "model": model}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        dtype, model = config.pop("dtype", None), config.pop("model")
        if dtype is not None:  # KerasHub's loader changes the dtype of the backbone alone
            model = {**model, "config": {**model["config"], "dtype": dtype}}
        return cls(keras.saving.deserialize_keras_object(model), **config)


@keras.saving.register_keras_serializable(package="dl_mamba")
class HubTokenizer(keras_hub.tokenizers.Tokenizer):
    """A tokenizer of `dl_mamba.tokenizers` for KerasHub.

    Args:
        tokenizer: the tokenizer, such as `model.tokenizer`.
        end_token_id: ends a text in training and generation; if None, generation goes on to its `max_length`.

    Example:

    >>> from dl_mamba.hub import HubTokenizer
    >>> from dl_mamba.tokenizers import ByteTokenizer
    >>> tokenizer = HubTokenizer(ByteTokenizer(), end_token_id=0)
    >>> tokenizer.tokenize(["ab", "c"]), tokenizer.detokenize([[97, 98], [99]])
    ([[97, 98], [99]], ['ab', 'c'])
    """

    backbone_cls = HubBackbone

    def __init__(self, tokenizer: Any, end_token_id: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.tokenizer = tokenizer
        self.start_token_id, self.pad_token_id = None, 0
        self.end_token_id = None if end_token_id is None else int(end_token_id)

    @property
    def special_token_ids(self) -> list[int]:
        return [] if self.end_token_id is None else [self.end_token_id]

    def vocabulary_size(self) -> int:
        return self.tokenizer.vocab_size

    def tokenize(self, inputs: Any) -> Any:
        if not self._use_tf_workflow():  # which is that of a pipeline of tf.data
            return self._rows([inputs])[0] if isinstance(inputs, str) else self._rows(inputs)
        import tensorflow as tf

        def ragged(texts: Any) -> Any:
            return tf.ragged.constant(self._rows(texts), tf.int32, ragged_rank=1)

        spec = tf.RaggedTensorSpec([None, None], tf.int32, ragged_rank=1)
        rows = tf.py_function(ragged, [tf.reshape(inputs, [-1])], spec)
        return rows[0] if inputs.shape.rank == 0 else rows

    call = tokenize  # KerasHub's own turns strings into tensors of TensorFlow first

    def _rows(self, texts: Any) -> list[list[int]]:
        texts = texts.numpy() if hasattr(texts, "numpy") else texts
        texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else text for text in texts]
        return [row.tolist() for row in self.tokenizer.rows(texts)]

    def detokenize(self, inputs: Any) -> Any:
        if len(inputs) and not np.ndim(inputs[0]):
            return self.detokenize([inputs])[0]
        return [self.tokenizer.decode([row])[0] for row in inputs]

    def save_assets(self, folder: str) -> None:
        """Nothing: the config holds the tokenizer."""

    def load_preset_assets(self, preset: str) -> None:
        """Nothing: the config holds the tokenizer."""

    def get_config(self) -> dict[str, Any]:
        own = {"tokenizer": keras.saving.serialize_keras_object(self.tokenizer), "end_token_id": self.end_token_id}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{**config, "tokenizer": keras.saving.deserialize_keras_object(config["tokenizer"])})


@keras.saving.register_keras_serializable(package="dl_mamba")
class HubPreprocessor(keras_hub.models.CausalLMPreprocessor):
    """Text to ids, mask and labels of a fixed length, and back; all of it is KerasHub's `CausalLMPreprocessor`.

    Args:
        tokenizer: a `HubTokenizer`.
        sequence_length, add_start_token, add_end_token, **options: of `CausalLMPreprocessor`.

    Example:

    >>> from dl_mamba.hub import HubPreprocessor, HubTokenizer
    >>> from dl_mamba.tokenizers import ByteTokenizer
    >>> inputs = HubPreprocessor(HubTokenizer(ByteTokenizer()), sequence_length=4).generate_preprocess(["ab"])
    >>> [int(token) for token in inputs["token_ids"][0]]
    [97, 98, 0, 0]
    """

    backbone_cls = HubBackbone
    tokenizer_cls = HubTokenizer


@keras.saving.register_keras_serializable(package="dl_mamba")
class HubCausalLM(keras_hub.models.CausalLM):
    """A language model of ours as a KerasHub task: `fit`, `generate`, `compile(sampler=)`, presets.

    Prompts of unlike lengths give exactly what each gives alone, with every sampler that needs logits only: greedy,
    random, top-k, top-p and beam, not the contrastive one, which looks back at hidden states.

    Args:
        backbone: a `HubBackbone`.
        preprocessor: a `HubPreprocessor`, or None to work on ids: `generate({"token_ids", "padding_mask"},
            stop_token_ids=None)`, both (batch, max_length), each prompt at the left end of its row.
        **options: of `keras_hub.models.CausalLM`.

    Raises:
        ValueError: a prompt of `generate` is empty or not padded on the right, or holds an id outside the vocabulary;
            before anything is computed.

    Example:

    >>> import dl_mamba
    >>> from dl_mamba.hub import HubBackbone, HubCausalLM, HubPreprocessor, HubTokenizer
    >>> model = dl_mamba.MambaCausalLM(vocab_size=256, d_model=8, num_layers=1)
    >>> preprocessor = HubPreprocessor(HubTokenizer(dl_mamba.tokenizers.ByteTokenizer()))
    >>> HubCausalLM(HubBackbone(model), preprocessor).generate("The", max_length=8).startswith("The")
    True
    """

    backbone_cls = HubBackbone
    preprocessor_cls = HubPreprocessor

    def __init__(self, backbone: HubBackbone, preprocessor: HubPreprocessor | None = None, **options: Any) -> None:
        self.backbone, self.preprocessor = backbone, preprocessor
        logits = backbone.language_model(backbone(backbone.input), reverse=True)
        super().__init__(inputs=backbone.input, outputs=logits, **options)

    @property
    def metrics(self) -> list[keras.Metric]:
        return [metric for metric in super().metrics if metric is not self.backbone.model.perplexity]  # is not fed

    def make_generate_function(self) -> Any:
        compiled = super().make_generate_function()

        def generate(inputs: Any, stop_token_ids: Any = None) -> dict[str, Any]:
            _check(inputs, self.backbone.model.config.vocab_size)
            return compiled(inputs, stop_token_ids=stop_token_ids)

        return generate

    def generate_step(self, inputs: Mapping[str, Any], stop_token_ids: tuple[int, ...] | None = None) -> dict[str, Any]:
        """Fill rows of (batch, length) ids behind their prompts."""
        given, real = inputs["token_ids"], ops.cast(inputs["padding_mask"], "bool")
        stop = tuple(i for i in stop_token_ids or () if i is not None)  # a tokenizer may know no end
        model, shortest = self.backbone.model, ops.min(ops.sum(ops.cast(real, "int32"), axis=1))
        before = ops.logical_and(real, ops.arange(given.shape[1], dtype="int32") < shortest - 1)
        filler = next(i for i in range(len(stop) + 1) if i not in stop)  # must not look like an end
        tokens = self.sampler(
            next=partial(_next, model, real),
            prompt=ops.where(real, given, filler),
            cache=model.backbone({"input_ids": given, "attention_mask": before}, return_state=True)["state"],
            index=shortest,
            mask=real,
            stop_token_ids=stop or None,
            hidden_states=None,
            model=self,
        )
        kept = _up_to_end(tokens, real, stop)
        return {"token_ids": ops.where(kept, tokens, given), "padding_mask": kept}


def _next(model: Any, real: Any, prompt: Any, cache: Any, index: Any) -> tuple[Any, None, Any]:
    """Logits of the tokens at `index`, where a given one is certain; `prompt` may have several beams of each row."""
    logits, _, cache = next_logits(model, prompt, cache, index)
    is_given = ops.repeat(ops.take(real, index, axis=1), prompt.shape[0] // real.shape[0])[:, None]
    token = ops.take(prompt, index, axis=1)[:, None]
    certain = ops.where(ops.arange(logits.shape[1], dtype=token.dtype) == token, 0.0, -1e30)
    return ops.where(is_given, certain, logits), None, cache


def _ours(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"input_ids": inputs["token_ids"], "attention_mask": inputs["padding_mask"]}


def _up_to_end(tokens: Any, real: Any, stop: tuple[int, ...]) -> Any:
    """True up to the first new stop token of each row, that token included."""
    if not stop:
        return ops.ones_like(real)
    ends = reduce(ops.logical_or, [ops.equal(tokens, i) for i in stop])
    ends = ops.cast(ops.logical_and(ends, ops.logical_not(real)), "int32")
    return ops.equal(ops.cumsum(ends, axis=1) - ends, 0)


def _check(inputs: Any, vocab_size: int) -> None:
    """Refuse prompts that cannot be continued."""
    if not isinstance(inputs, Mapping) or set(inputs) != set(KEYS):
        raise ValueError(f"inputs are {inputs!r}; without a preprocessor, a dictionary of {list(KEYS)} is needed.")
    try:
        real = read_prompts(*(inputs[key] for key in KEYS), vocab_size).real
    except ValueError as error:
        raise ValueError(str(error).replace("input_ids", KEYS[0]).replace("attention_mask", KEYS[1])) from None
    for row in np.flatnonzero((real[:, 1:] > real[:, :-1]).any(axis=1)):
        raise ValueError(f"row {row} of padding_mask has padding before real tokens; it must stand behind them.")
