"""Language modelling: logits over the vocabulary at each token, tied to the embedding or with a matrix of their own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
from keras import ops

from dl_mamba.heads.base import NOWHERE, TaskHead, read, real_tokens, width_of
from dl_mamba.heads.crf import IGNORED
from dl_mamba.heads.losses import TaskLoss
from dl_mamba.heads.metrics import TaskScore
from dl_mamba.heads.tasks import NLPTaskConfig
from dl_mamba.layers import RMSNorm, initializers
from dl_mamba.models.backbone import Backbone
from dl_mamba.models.causal_lm import CausalLM, Mamba2CausalLM, MambaCausalLM


class LanguageModelingHead(TaskHead):
    """Base of `CausalLMHead` and `MaskedLMHead`."""

    fields = ("vocab_size", "label_smoothing", "tie_word_embeddings")
    defaults = MappingProxyType({"tie_word_embeddings": True})

    def __init__(self, config: Any, **kwargs: Any):
        super().__init__(config, **kwargs)
        if self.config.vocab_size is None:
            raise ValueError(f"vocab_size=None; the task {self.config.name!r} needs the number of tokens.")
        self.logits = None
        self.product_dtype = "float32" if self.compute_dtype == "float16" else self.compute_dtype  # 65504 is too little
        if not self.config.tie_word_embeddings:
            dtype = "float32" if self.compute_dtype == "float16" else None
            options = {"use_bias": False, "kernel_initializer": initializers.projection()}
            self.logits = self._dense(self.config.vocab_size, "logits", dtype=dtype, **options)

    @property
    def needed(self) -> tuple[str, ...]:
        """The inputs beside hidden states and mask."""
        return () if self.logits is not None else ("embeddings",)

    def build(self, input_shape: Any) -> None:
        if self.logits is not None:
            self.logits.build((None, width_of(input_shape)))

    def call(self, inputs: Any, mask: Any = None) -> Any:
        x, mask = read(inputs, mask, *self.needed)
        logits = self._scores(self._features(x), inputs)
        return ops.where(real_tokens(x, mask)[..., None], logits, NOWHERE)

    def _scores(self, x: Any, inputs: Any) -> Any:
        if self.logits is not None:
            return ops.cast(self.logits(x), "float32")
        matrix = ops.transpose(ops.cast(inputs["embeddings"], self.product_dtype))
        if matrix.shape[0] != x.shape[-1]:
            raise ValueError(
                f"last_hidden_state has width {x.shape[-1]} and the embeddings {matrix.shape[0]}; choose "
                "tie_word_embeddings=False."
            )
        logits = ops.matmul(ops.cast(x, self.product_dtype), matrix)
        return ops.cast(logits[..., : self.config.vocab_size], "float32")

    def compute_output_spec(self, inputs: Any, mask: Any = None) -> keras.KerasTensor:
        x, _ = read(inputs, mask, *self.needed)
        return keras.KerasTensor((*x.shape[:2], self.config.vocab_size), dtype="float32")

    @classmethod
    def axes(cls, config: NLPTaskConfig) -> tuple[str, str]:
        return "(batch, length, vocab_size)", "(batch, length)"

    def decode(self, logits: Any) -> np.ndarray:
        """(batch, length) the most probable token at each position, -100 at padding."""
        logits = np.asarray(ops.convert_to_numpy(logits))
        return np.where(logits[..., 0] > NOWHERE / 2, logits.argmax(-1), IGNORED)


@keras.saving.register_keras_serializable(package="dl_mamba")
class CausalLMHead(LanguageModelingHead):
    """Logits of the next token, for a task among others; `to_causal_lm` gives the model that generates.

    Args:
        config: an `NLPTaskConfig` with a `vocab_size`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: `{"last_hidden_state": (batch, length, d_model), "attention_mask": (batch, length)}` and, if tied,
            `"embeddings"` (rows, d_model); rows beyond `vocab_size` get no logits.

    Returns:
        Logits (batch, length, vocab_size) in float32, -1e9 at padding. Labels are the ids themselves, not shifted, and
        -100 for tokens that are not to be learned, such as those of a prompt.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> head = create_nlp_head(NLPTaskConfig("summary", "text_summarization", vocab_size=11))
    >>> x = {"last_hidden_state": np.ones((2, 5, 8), "float32"), "embeddings": np.ones((16, 8), "float32")}
    >>> tuple(head(x).shape)
    (2, 5, 11)
    """

    @classmethod
    def make_loss(cls, config: NLPTaskConfig) -> keras.losses.Loss:
        return TaskLoss("next_token", config.label_smoothing, name=config.name)

    @classmethod
    def make_metrics(cls, config: NLPTaskConfig) -> list[keras.metrics.Metric]:
        return [TaskScore("next_token_perplexity", name="perplexity")]


@keras.saving.register_keras_serializable(package="dl_mamba")
class MaskedLMHead(LanguageModelingHead):
    """Logits of the token that stands at each position (Devlin et al., "BERT", 2018): dense, gelu, norm, logits, bias.

    Args:
        config: an `NLPTaskConfig` with a `vocab_size`, or its fields as a dict.
        **kwargs: `name` (the name of the task if not given), `dtype`, `trainable` of a Keras layer.

    Call arguments:
        inputs: those of `CausalLMHead`; the hidden states may be wider than the embeddings.

    Returns:
        Logits (batch, length, vocab_size) in float32, -1e9 at padding. Labels are the ids of hidden tokens, -100
        elsewhere.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.heads import NLPTaskConfig, create_nlp_head
    >>> task = NLPTaskConfig("cloze", "masked_language_modeling", vocab_size=11, tie_word_embeddings=False)
    >>> tuple(create_nlp_head(task)({"last_hidden_state": np.ones((2, 5, 8), "float32")}).shape)
    (2, 5, 11)
    """

    def build(self, input_shape: Any) -> None:
        width = inner = width_of(input_shape)
        if self.logits is None and isinstance(input_shape, Mapping) and "embeddings" in input_shape:
            inner = input_shape["embeddings"][-1]
        self.transform = self._dense(inner, "transform", activation="gelu")
        self.norm = RMSNorm(dtype=self.dtype_policy, name="norm")
        self.transform.build((None, width))
        self.norm.build((None, inner))
        super().build((None, inner))
        self.bias = self.add_weight(
            name="bias", shape=(self.config.vocab_size,), initializer="zeros", dtype="float32", autocast=False
        )

    def _scores(self, x: Any, inputs: Any) -> Any:
        return super()._scores(self.norm(self.transform(x)), inputs) + self.bias

    @classmethod
    def make_loss(cls, config: NLPTaskConfig) -> keras.losses.Loss:
        return TaskLoss("softmax", config.label_smoothing, name=config.name)

    @classmethod
    def make_metrics(cls, config: NLPTaskConfig) -> list[keras.metrics.Metric]:
        return [TaskScore("accuracy"), TaskScore("perplexity")]


def to_causal_lm(model: keras.Model, task: str | None = None, tokenizer: Any = None) -> CausalLM:
    """The language model of a causal backbone under a `CausalLMHead`: `generate`, `save_pretrained` and all.

    Args:
        model: such as `create_mamba_with_head` makes for text generation, summaries, translation or dialogue.
        task: name of the task, where there are several of that kind.
        tokenizer: of the language model, or None.

    Returns:
        A `MambaCausalLM` or `Mamba2CausalLM` with copies of the weights.

    Raises:
        ValueError: the model has no such head, or several and no name is given.
        CheckpointError: it has adapters that are not merged.

    Example:

    >>> import numpy as np, dl_mamba
    >>> from dl_mamba.heads import NLPTaskConfig, to_causal_lm
    >>> model = dl_mamba.create_mamba_with_head("tiny", NLPTaskConfig("story", "text_generation"), vocab_size=11)
    >>> to_causal_lm(model).generate(np.array([[3, 1, 4]]), max_new_tokens=2).shape
    (1, 5)
    """
    layers = model._flatten_layers()
    heads = {layer.config.name: layer for layer in layers if isinstance(layer, CausalLMHead)}
    if task is None and len(heads) == 1:
        task = next(iter(heads))
    if task not in heads:
        names = ", ".join(heads) or "none"
        raise ValueError(f"task={task!r}; the name of a task with a CausalLMHead is needed, this model has: {names}.")
    head = heads[task]
    backbone = next(layer for layer in layers if isinstance(layer, Backbone))
    backbone._refuse_adapters()
    options = {"dtype": backbone.dtype_policy, "tokenizer": tokenizer, "tie_word_embeddings": head.logits is None}
    with initializers.zeros_instead():
        found = LANGUAGE_MODELS[backbone.family](**backbone.config.to_dict(), **options)
    own = backbone.pretrained_variables()
    for name, variable in found.backbone.pretrained_variables().items():
        variable.assign(own[name])
    if head.logits is not None:
        kernel = ops.convert_to_tensor(head.logits.kernel)
        missing = backbone.config.embedding_rows - kernel.shape[1]
        found.lm_head.kernel.assign(ops.pad(kernel, [[0, 0], [0, missing]]))
    found.carried = backbone.carried
    return found


LANGUAGE_MODELS = {"mamba": MambaCausalLM, "mamba2": Mamba2CausalLM}
