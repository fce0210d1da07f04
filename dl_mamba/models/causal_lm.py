"""Language models: a backbone, logits over the vocabulary, the next-token loss, and generation."""

from __future__ import annotations

from typing import Any, Self

import keras
from keras import ops

from dl_mamba import generation
from dl_mamba.config import Mamba2Config, MambaConfig, with_options_of
from dl_mamba.layers import initializers, one_token
from dl_mamba.layers.mixer import KERAS_OPTIONS, MixerState
from dl_mamba.layers.quantized import quantize_parts, quantized_parts
from dl_mamba.models.backbone import Backbone, without_learning
from dl_mamba.models.loss import Perplexity, token_losses
from dl_mamba.models.mamba import Mamba
from dl_mamba.models.mamba2 import Mamba2
from dl_mamba.models.next_token import NextTokenTraining, without_labels
from dl_mamba.models.optimizer_first import OptimizerFirst
from dl_mamba.models.pretrained import Pretrained
from dl_mamba.models.scoring import Score, score
from dl_mamba.ops.linear_cross_entropy import linear_cross_entropy
from dl_mamba.ops.numerics import product
from dl_mamba.tokenizers.hugging_face import FILE, HuggingFaceTokenizer
from dl_mamba.weights import Checkpoint


class CausalLM(Pretrained, NextTokenTraining, OptimizerFirst, keras.Model):
    """Base of `MambaCausalLM` and `Mamba2CausalLM`."""

    backbone_class: type[Backbone]
    has_logits = True

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        *,
        tie_word_embeddings: bool = True,
        tokenizer: Any = None,
        **options: Any,
    ):
        model_options = {name: options.pop(name) for name in KERAS_OPTIONS if name in options}
        super().__init__(**model_options)
        self.autocast = False
        self.supports_masking = True
        self.tie_word_embeddings = tie_word_embeddings
        self.tokenizer = tokenizer
        self.backbone = self.backbone_class(
            vocab_size, d_model, num_layers, dtype=self.dtype_policy, name="backbone", **options
        )
        self.lm_head = None
        if not tie_word_embeddings:
            self.lm_head = keras.layers.Dense(
                self.config.embedding_rows,
                use_bias=False,
                kernel_initializer=initializers.projection(),
                dtype=self.dtype_policy,
                name="lm_head",
            )
        self.perplexity = Perplexity()
        self.build()

    @property
    def config(self) -> Any:
        """The config of the backbone."""
        return self.backbone.config

    def build(self, input_shape: Any = None) -> None:
        if self.lm_head is not None:
            self.lm_head.build((None, None, self.config.d_model))

    def call(
        self,
        inputs: Any,
        state: tuple[MixerState, ...] | None = None,
        return_state: bool = False,
        output_hidden_states: bool = False,
    ) -> dict[str, Any]:
        inputs, targets = without_labels(inputs)
        outputs = self.backbone(
            inputs, state=state, return_state=return_state, output_hidden_states=output_hidden_states
        )
        hidden = outputs["last_hidden_state"]
        found = {"logits": self.logits(hidden)} if targets is None else {"losses": self.losses_of(hidden, targets)}
        return {**found, **outputs}

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs, targets = without_labels(inputs)
        outputs = self.backbone.compute_output_spec(inputs, *args, **kwargs)
        shape = outputs["last_hidden_state"].shape[:-1]
        if targets is not None:
            return {"losses": keras.KerasTensor(shape, dtype="float32"), **outputs}
        return {"logits": keras.KerasTensor((*shape, self.config.vocab_size), dtype="float32"), **outputs}

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None

    def logits(self, hidden: Any) -> Any:
        """Hidden states (..., d_model) to logits (..., vocab_size) in float32, without the vocabulary's padding."""
        logits = self._tied_logits(hidden) if self.lm_head is None else self.lm_head(hidden)
        return ops.cast(logits[..., : self.config.vocab_size], "float32")

    def _tied_logits(self, hidden: Any) -> Any:
        embedding = self.backbone.embedding
        logits = _products(hidden, ops.cast(embedding.embeddings, self.compute_dtype), self.config.vocab_size)
        if embedding.quantization_mode is None:
            return logits
        if embedding.quantization_mode != "int8":
            raise ValueError(
                f"the embedding is quantized to {embedding.quantization_mode!r}, and the logits are tied to it; choose "
                "'int8', or a model with tie_word_embeddings=False."
            )
        return ops.cast(logits, "float32") / embedding.embeddings_scale[: logits.shape[-1]]  # one scale a row

    def losses_of(self, hidden: Any, targets: Any) -> Any:
        """Cross entropy (batch, length) of tokens under hidden states, in nats, without the logits of all at once."""
        head = self.backbone.embedding if self.lm_head is None else self.lm_head
        if head.quantization_mode is not None:
            return token_losses(self.logits(hidden), targets)
        matrix = head.embeddings if self.lm_head is None else ops.transpose(ops.convert_to_tensor(head.kernel))
        return linear_cross_entropy(hidden, matrix, targets, vocab_size=self.config.vocab_size)

    def next_logits(self, ids: Any, mask: Any, state: Any) -> tuple[Any, Any]:
        """Logits (batch, vocab_size) behind the last column, which must be real in each row, and the new state."""
        inputs = {"input_ids": ids, "attention_mask": mask}
        outputs = self.backbone(inputs, state=state, return_state=True)
        return self.logits(outputs["last_hidden_state"][:, -1]), outputs["state"]

    def initial_state(self, batch_size: int) -> tuple[MixerState, ...]:
        """The empty state of a batch: one `MixerState` of zeros for each layer."""
        return self.backbone.initial_state(batch_size)

    def score(self, input_ids: Any, attention_mask: Any = None) -> Score:
        """Log-likelihoods of given tokens, each under the tokens before it; memory does not grow with the length.

        Args:
            input_ids: (batch, length) int, or a list of rows of any lengths.
            attention_mask: (batch, length), true at real tokens, or None.

        Returns:
            A `Score`: `tokens` (batch, length) and `total` (batch,), in nats. The first token of a row, which nothing
            precedes, and padding have 0.

        Raises:
            ValueError: a row is empty, an id lies outside the vocabulary, or a shape does not fit.

        Example:

        >>> import numpy as np, dl_mamba
        >>> model = dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1)
        >>> score = model.score(np.array([[3, 1, 4], [1, 5, 9]]))
        >>> score.total.shape, score.tokens.shape
        ((2,), (2, 3))
        """
        return score(self, input_ids, attention_mask)

    def generate(self, input_ids: Any, max_new_tokens: int, sampler: Any = "greedy", **options: Any) -> Any:
        """Continue prompts, at the same cost for each token whatever came before; see `dl_mamba.generation.generate`.

        Example:

        >>> import numpy as np, dl_mamba
        >>> model = dl_mamba.Mamba2CausalLM(vocab_size=11, d_model=8, num_layers=1, headdim=4, d_state=4)
        >>> model.generate(np.array([[3, 1, 4]]), max_new_tokens=2).shape
        (1, 5)
        """
        return generation.generate(self, input_ids, max_new_tokens, sampler, **options)

    def prefill(self, input_ids: Any, attention_mask: Any = None, state: Any = None) -> generation.Memory:
        """Read prompts without continuing them; see `dl_mamba.generation.prefill`."""
        return generation.prefill(self, input_ids, attention_mask, state)

    def pretrained_variables(self) -> dict[str, keras.Variable]:
        """The weights by the names that checkpoints know: those of the backbone, and `lm_head/kernel` if untied."""
        head = {} if self.lm_head is None else {"lm_head/kernel": self.lm_head.kernel}
        return {**self.backbone.pretrained_variables(), **head}

    @classmethod
    def _with_weights_of(cls, checkpoint: Checkpoint, options: dict[str, Any]) -> Self:
        if "tokenizer" not in options and (checkpoint.folder / FILE).is_file():
            options = {**options, "tokenizer": HuggingFaceTokenizer.from_folder(checkpoint.folder)}
        return super()._with_weights_of(checkpoint, options)

    def texts(self) -> dict[str, str]:
        return {FILE: self.tokenizer.definition} if isinstance(self.tokenizer, HuggingFaceTokenizer) else {}

    def get_config(self) -> dict[str, Any]:
        backbone = self.backbone.get_config()
        tokenizer = None if self.tokenizer is None else keras.saving.serialize_keras_object(self.tokenizer)
        own = {"tie_word_embeddings": self.tie_word_embeddings, "tokenizer": tokenizer, "carried": dict(self.carried)}
        if quantized := quantized_parts(self):
            own["quantized"] = quantized
        return {**backbone, "name": self.name, "trainable": self.trainable, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config, learning = without_learning(config)
        if config.get("tokenizer") is not None:
            config["tokenizer"] = keras.saving.deserialize_keras_object(config["tokenizer"], custom_objects)
        carried = config.pop("carried", {})
        model = cls(**config)
        model.carried = carried
        quantize_parts(model, learning.pop("quantized", {}))
        model.backbone.set_learning(**learning)
        return model


@keras.saving.register_keras_serializable(package="dl_mamba")
@with_options_of(MambaConfig, "vocab_size", "d_model", "num_layers")
class MambaCausalLM(CausalLM):
    """Mamba-1 language model: token ids to logits of the next token, training on them, and generation.

    Args:
        vocab_size, d_model, num_layers, **options: of `Mamba`.
        tie_word_embeddings: the embedding is also the matrix of the logits; else a matrix `lm_head/kernel` of its own.
        tokenizer: what turns text into ids and back (`dl_mamba.tokenizers`), saved with the model, or None.
            `from_pretrained` takes the tokenizer.json beside the weights, if there is one and `tokenizer` is not given.

    Call arguments:
        inputs, state, return_state, output_hidden_states: those of `Mamba`. The dictionary may also hold `labels`
            (batch, length): the ids themselves, not shifted, with a negative number such as -100 where a token is not
            to be learned.

    Returns:
        `{"logits": (batch, length, vocab_size) float32}` beside the outputs of `Mamba`. The embedding's rows beyond
        `vocab_size` (`pad_vocab_size_multiple`) have no logits, so that they can never be sampled. With `labels`
        `{"losses": (batch, length) float32}` instead: at each token the cross entropy of the next one in nats, some
        number where nothing is to be predicted. Those logits are never there all at once.

    `compile(optimizer)` and `fit(ids)` train on the next token; `x` is (batch, length) ids or the dictionary of the
    call. The labels, if not the ids, are `y` or in that dictionary. Padding of `attention_mask` and the first token of
    each document of `segment_ids` are left out. `sample_weight`, (batch,) or (batch, length), weighs the tokens to be
    predicted; the loss is the weighted mean. `fit` also reports the perplexity.

    Raises:
        ValueError: an option is unknown, a shape does not fit, or (eagerly) an id is outside the vocabulary.

    Example:

    >>> import numpy as np, dl_mamba, keras
    >>> model = dl_mamba.MambaCausalLM(vocab_size=11, d_model=8, num_layers=1)
    >>> tuple(model(np.array([[3, 1, 4]], "int32"))["logits"].shape)
    (1, 3, 11)
    >>> model.compile(keras.optimizers.Adam(1e-2))
    >>> history = model.fit(np.array([[3, 1, 4, 1, 5]], "int32"), verbose=0)
    >>> sorted(history.history)
    ['loss', 'perplexity']
    """

    family = "mamba"
    backbone_class = Mamba


@keras.saving.register_keras_serializable(package="dl_mamba")
@with_options_of(Mamba2Config, "vocab_size", "d_model", "num_layers")
class Mamba2CausalLM(CausalLM):
    """Mamba-2 language model: token ids to logits of the next token, training on them, and generation.

    Args:
        vocab_size, d_model, num_layers, **options: of `Mamba2`.
        tie_word_embeddings, tokenizer: those of `MambaCausalLM`.

    Call arguments, results, training and errors are those of `MambaCausalLM`.

    Example:

    >>> import numpy as np, dl_mamba
    >>> model = dl_mamba.Mamba2CausalLM(vocab_size=11, d_model=8, num_layers=1, headdim=4, d_state=4)
    >>> tuple(model(np.array([[3, 1, 4]], "int32"))["logits"].shape)
    (1, 3, 11)
    """

    family = "mamba2"
    backbone_class = Mamba2


def _products(hidden: Any, matrix: Any, wanted: int) -> Any:
    """hidden (..., d) by matrix (n, d): (..., n), or less, but all that are wanted."""
    if one_token.product_fits(hidden, matrix):
        return one_token.product(hidden, matrix, wanted)
    return product(hidden, ops.transpose(matrix))
