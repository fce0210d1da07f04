"""What the backbones of both generations share: embedding, residual blocks, final norm; state in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import keras
from keras import ops

from dl_mamba.layers import initializers, one_token, stacked
from dl_mamba.layers.adapted import Projection, TokenEmbedding
from dl_mamba.layers.blocks import ResidualBlock, residual_dtype
from dl_mamba.layers.mixer import KERAS_OPTIONS, MixerState, check_state
from dl_mamba.layers.norm import RMSNorm
from dl_mamba.layers.quantized import is_quantized, quantize_parts, quantized_parts
from dl_mamba.models.inputs import read_inputs
from dl_mamba.models.pretrained import Pretrained
from dl_mamba.models.recomputed import recomputed
from dl_mamba.models.scanned import scanned, taken_apart

ADAPTABLE = ("embedding", "in_proj", "x_proj", "dt_proj", "out_proj")


class Backbone(Pretrained, keras.Model):
    """Base of `Mamba` and `Mamba2`."""

    block_class: type[ResidualBlock]

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        *,
        gradient_checkpointing: bool = False,
        scan_layers: bool = False,
        **options: Any,
    ):
        options = {"vocab_size": vocab_size, "d_model": d_model, "num_layers": num_layers, **options}
        config, model_options = self.config_class().from_options(type(self).__name__, options, KERAS_OPTIONS)
        super().__init__(**model_options)
        self.autocast = False
        self.supports_masking = True
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        self.scan_layers = scan_layers
        self.frozen_blocks: int | None = None
        self.adapters: dict[str, Any] | None = None
        self.residual_dtype = residual_dtype(self.compute_dtype, config.residual_in_fp32)
        fields = self.block_class.config_class.__dataclass_fields__
        block_options = {name: value for name, value in config.to_dict().items() if name in fields}
        self.embedding = TokenEmbedding(
            config.embedding_rows,
            config.d_model,
            embeddings_initializer=initializers.normal(0.02),
            dtype=self.variable_dtype,
            name="embedding",
        )
        self.blocks = [
            self.block_class(**block_options, dtype=self.dtype_policy, name=str(i)) for i in range(config.num_layers)
        ]
        self.final_norm = RMSNorm(config.norm_epsilon, dtype=self.dtype_policy, name="final_norm")
        self.build()

    def build(self, input_shape: Any = None) -> None:
        shape = (None, None, self.config.d_model)
        self.embedding.build((None, None))
        with keras.name_scope("layers"):
            for block in self.blocks:
                block.build(shape)
        self.final_norm.build(shape)
        self._stack()

    @property
    def variables(self) -> list[keras.Variable]:
        return stacked.whole(super().variables)

    @property
    def weights(self) -> list[keras.Variable]:
        return stacked.whole(super().weights)

    def _stack(self) -> None:
        """One variable for a weight of all blocks, if they are to run as a loop and differ in values alone."""
        if self.scan_layers:
            if not any(map(is_quantized, self.blocks)):
                stacked.stack(self.blocks)
            stacked.track(self)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Blocks with variables of their own, for what changes which of them there are or learn."""
        stacked.unstack(self.blocks)
        try:
            yield
        finally:
            self._stack()

    def call(
        self,
        inputs: Any,
        state: tuple[MixerState, ...] | None = None,
        return_state: bool = False,
        output_hidden_states: bool = False,
        output_embeddings: bool = False,
    ) -> dict[str, Any]:
        ids, mask, segment_ids = read_inputs(inputs, self.config.embedding_rows)
        self._check_state(state, ids.shape[0])
        hidden = self._embedded(ids)
        runs = stacked.runs(self.blocks)
        states: list[MixerState] = []
        on_torch = keras.backend.backend() == "torch"
        if runs and state is None and not return_state and not on_torch:
            after = self._as_loops(runs, hidden, mask, segment_ids, output_hidden_states)
        else:
            blocks = taken_apart(runs) if runs and on_torch else self.blocks
            after, states = self._one_by_one(blocks, hidden, mask, segment_ids, state, return_state)
        hidden_states = [hidden, *after[:-1], self._normed(after[-1])]
        outputs = self._outputs(hidden_states, states, return_state, output_hidden_states)
        return {**outputs, "embeddings": self._embedding_matrix()} if output_embeddings else outputs

    def _embedded(self, ids: Any) -> Any:
        if one_token.embedding_fits(self.embedding, ids):
            return one_token.embedded(self.embedding, ids, self.residual_dtype)
        return ops.cast(self.embedding(ids), self.residual_dtype)

    def _normed(self, hidden: Any) -> Any:
        if one_token.norm_fits(hidden):
            return one_token.normed(self.final_norm, hidden)
        return self.final_norm(hidden)

    def _as_loops(self, runs: Sequence[stacked.Run], hidden: Any, mask: Any, segment_ids: Any, keep: bool) -> list[Any]:
        after = [hidden]
        for blocks, weights in runs:
            after += scanned(blocks, weights, after[-1], mask, segment_ids, keep)
        return after[1:]

    def _one_by_one(
        self, blocks: Sequence[Callable], hidden: Any, mask: Any, segment_ids: Any, state: Any, return_state: bool
    ) -> tuple[list[Any], list[MixerState]]:
        """The residual stream after each block, and the states."""
        again = (self.gradient_checkpointing or self.scan_layers) and not return_state
        after, states = [], []
        for block, block_state in zip(blocks, state or [None] * len(blocks), strict=True):
            run = partial(block, mask=mask, state=block_state, segment_ids=segment_ids)
            if again:
                hidden = recomputed(run, hidden)
            else:
                hidden, block_state = run(hidden, return_state=True)
                states.append(block_state)
            after.append(hidden)
        return after, states

    def _embedding_matrix(self) -> Any:
        """(rows, d_model), for logits that are tied to it."""
        if self.embedding.quantization_mode is not None:
            raise ValueError(
                f"the embedding is quantized to {self.embedding.quantization_mode!r}, and the logits of a head are "
                "tied to it; choose tie_word_embeddings=False."
            )
        return ops.convert_to_tensor(self.embedding.embeddings)

    def compute_output_spec(
        self,
        inputs: Any,
        state: Any = None,
        return_state: bool = False,
        output_hidden_states: bool = False,
        output_embeddings: bool = False,
    ) -> dict[str, Any]:
        ids, _, _ = read_inputs(inputs, self.config.embedding_rows)
        self._check_state(state, ids.shape[0])
        hidden = keras.KerasTensor((*ids.shape, self.config.d_model), dtype=self.residual_dtype)
        states = []
        hidden_states = [hidden]
        for block in self.blocks:
            hidden, block_state = block.compute_output_spec(hidden, return_state=True)
            states.append(block_state)
            hidden_states.append(hidden)
        hidden_states[-1] = self.final_norm.compute_output_spec(hidden)
        outputs = self._outputs(hidden_states, states, return_state, output_hidden_states)
        if output_embeddings:
            shape = (self.config.embedding_rows, self.config.d_model)
            outputs["embeddings"] = keras.KerasTensor(shape, dtype=self.variable_dtype)
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None

    def initial_state(self, batch_size: int) -> tuple[MixerState, ...]:
        """The empty state of a batch: one `MixerState` of zeros for each layer."""
        return tuple(block.initial_state(batch_size) for block in self.blocks)

    def freeze(self, num_blocks: int) -> None:
        """Keep the embedding and the first blocks as they are; see `dl_mamba.training.freeze`."""
        if not 0 <= num_blocks <= len(self.blocks):
            raise ValueError(f"num_blocks={num_blocks!r}; 0 to {len(self.blocks)} are needed for this model.")
        with self._apart():
            for layer in (self.embedding, *self.blocks[:num_blocks]):
                layer.trainable = False
        self.frozen_blocks = num_blocks

    def enable_adapters(self, rank: int, alpha: float | None, targets: Sequence[str]) -> None:
        """Train low-rank adapters alone; see `dl_mamba.training.enable_lora`."""
        if not isinstance(rank, int) or rank < 1:
            raise ValueError(f"rank={rank!r}; an integer >= 1 is needed.")
        layers = [layer for layer in self._flatten_layers() if isinstance(layer, (Projection, TokenEmbedding))]
        chosen = [layer for layer in layers if layer.name in targets]
        if not chosen or set(targets) - set(ADAPTABLE):
            names = sorted({layer.name for layer in layers})
            raise ValueError(f"targets={list(targets)} are not all known, or none is in {self.name!r}; it has {names}.")
        if "embedding" in targets and self.embedding.quantization_mode is not None:
            raise ValueError("the embedding is quantized; adapt it before `quantize`, or leave it out of the targets.")
        with self._apart():
            for variable in self.trainable_variables:
                variable.trainable = False
            for layer in chosen:
                layer.enable_lora(rank, lora_alpha=alpha)
        self.adapters = {"rank": rank, "alpha": alpha, "targets": list(targets)}

    def get_config(self) -> dict[str, Any]:
        running = {"gradient_checkpointing": self.gradient_checkpointing, "scan_layers": self.scan_layers}
        own = {**self.config.to_dict(), **running}
        learning = {
            "frozen_blocks": self.frozen_blocks,
            "adapters": self.adapters,
            "quantized": quantized_parts(self) or None,
        }
        own |= {name: value for name, value in learning.items() if value is not None}
        return {"name": self.name, "trainable": self.trainable, "dtype": self._policy_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        config, learning = without_learning(config)
        model = cls(**config)
        model.set_learning(**learning)
        return model

    def set_learning(
        self,
        frozen_blocks: int | None = None,
        adapters: dict[str, Any] | None = None,
        quantized: dict[str, Any] | None = None,
    ) -> None:
        """Quantize, freeze and adapt as a config says."""
        if quantized is not None:
            quantize_parts(self, quantized)
        if frozen_blocks is not None:
            self.freeze(frozen_blocks)
        if adapters is not None:
            self.enable_adapters(**adapters)

    def _policy_config(self) -> dict[str, Any]:
        return keras.saving.serialize_keras_object(self.dtype_policy)

    def _check_state(self, state: Any, batch: int | None) -> None:
        if state is None:
            return
        if not isinstance(state, (tuple, list)) or len(state) != len(self.blocks):
            came = f"{len(state)} entries" if isinstance(state, (tuple, list)) else f"a {type(state).__name__}"
            raise ValueError(
                f"state has {came}; one MixerState for each of the {len(self.blocks)} layers is needed, as "
                "`model(..., return_state=True)['state']` returns it."
            )
        for i, (block, block_state) in enumerate(zip(self.blocks, state, strict=True)):
            check_state(f"state[{i}]", block_state, block.state_shapes(batch))

    @staticmethod
    def _outputs(hidden_states: list, states: list, return_state: bool, output_hidden_states: bool) -> dict[str, Any]:
        outputs = {"last_hidden_state": hidden_states[-1]}
        if return_state:
            outputs["state"] = tuple(states)
        if output_hidden_states:
            outputs["hidden_states"] = tuple(hidden_states)
        return outputs


def without_learning(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A backbone's config without what `set_learning` takes, and that."""
    names = ("frozen_blocks", "adapters", "quantized")
    return {k: v for k, v in config.items() if k not in names}, {k: v for k, v in config.items() if k in names}
