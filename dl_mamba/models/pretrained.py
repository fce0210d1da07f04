"""Released sizes, and published weights in and out, of models whose variables have the names of `dl_mamba.weights`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from dl_mamba import variants
from dl_mamba.config import BackboneConfig
from dl_mamba.layers import initializers
from dl_mamba.layers.adapted import factors
from dl_mamba.layers.stacked import slices
from dl_mamba.weights import Checkpoint, CheckpointError, Header, resolve, write_checkpoint

# Initial values, and chunk_size, which changes no result: a model may differ from a checkpoint in these.
FREE = ("dt_min", "dt_max", "dt_init_floor", "dt_init", "dt_scale", "A_init_range", "conv_init", "chunk_size")
# Compared by what they amount to, embedding_rows and dt_width.
DERIVED = ("vocab_size", "pad_vocab_size_multiple", "dt_rank")


class Pretrained:
    """Mixin for backbones and language models: `from_variant`, `from_pretrained`, `save_pretrained`.

    A class gives `family`, a `config`, `tie_word_embeddings` if it has logits, and `pretrained_variables()`.
    """

    family: str
    config: BackboneConfig
    has_logits = False
    carried: Mapping[str, Any] = MappingProxyType({})  # of the checkpoint's config, such as ids of special tokens

    @classmethod
    def config_class(cls) -> type[BackboneConfig]:
        """The config class of the family."""
        return variants.FAMILIES[cls.family]

    @classmethod
    def from_variant(
        cls, variant: str, /, vocab_size: int | None = None, *, weights: str | Path | None = None, **overrides: Any
    ) -> Self:
        """A model of a released size, with fresh weights or with published ones.

        Args:
            variant: `"130m"`, `"mamba-130m"`, ...; see `dl_mamba.variants.names()`. `"base"` is `"130m"`.
            vocab_size: rows of the embedding; the released (padded) vocabulary if None.
            weights: folder or hub repository of a checkpoint of that very size, as `from_pretrained` takes it.
            **overrides: any other option of the class.

        Raises:
            ValueError: the variant or an option is unknown, or the checkpoint is that of another model.
        """
        options = variants.find(cls.family, variant).to_dict()
        if vocab_size is not None:
            options.update(vocab_size=vocab_size, pad_vocab_size_multiple=1)
        options |= overrides
        return cls(**options) if weights is None else cls._with_weights_of(Checkpoint(resolve(weights)), options)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        dtype: Any = None,
        revision: str | None = None,
        offline: bool = False,
        **options: Any,
    ) -> Self:
        """A model with published weights.

        Reads the format of transformers (mamba, mamba2, falcon_mamba), of mamba_ssm and of Codestral; see
        docs/checkpoints.md. A backbone leaves out the head of a language model.

        Args:
            path_or_hub_id: a local folder, or a repository of the Hugging Face hub.
            dtype: Keras dtype or policy of the model; Keras' default if None, whatever the file has.
            revision: branch, tag or commit of the repository.
            offline: use the cache of the hub only.
            **options: of the class, where they change neither weights nor results: `name`, `trainable`,
                `gradient_checkpointing`, `scan_layers`, `chunk_size`, initial values.

        Raises:
            CheckpointError: a file is missing, damaged or describes another model, or tensors do not fit; no model.

        Example:

        >>> import tempfile, dl_mamba
        >>> model = dl_mamba.Mamba(vocab_size=11, d_model=8, num_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder, format="mamba_ssm")
        ...     again = dl_mamba.Mamba.from_pretrained(folder, dtype="bfloat16")
        >>> again.count_params() == model.count_params()
        True
        """
        checkpoint = Checkpoint(resolve(path_or_hub_id, revision, offline))
        checkpoint.check()
        if not isinstance(checkpoint.config, cls.config_class()):
            kind = type(checkpoint.config).__name__.removesuffix("Config")
            raise CheckpointError(f"{checkpoint.config_path} describes a {kind}; {cls.__name__} cannot load it.")
        told = {} if dtype is None else {"dtype": dtype}
        return cls._with_weights_of(checkpoint, {**checkpoint.config.to_dict(), **told, **options})

    @classmethod
    def _with_weights_of(cls, checkpoint: Checkpoint, options: dict[str, Any]) -> Self:
        if cls.has_logits:
            options = {"tie_word_embeddings": checkpoint.tied, **options}
        with initializers.zeros_instead():
            model = cls(**options)
        model.assign_pretrained(checkpoint)
        return model

    def assign_pretrained(self, checkpoint: Checkpoint) -> None:
        """Take over the weights of a checkpoint, one tensor at a time.

        Raises:
            CheckpointError: its config is that of another model, or its tensors do not fit; nothing is changed.
        """
        checkpoint.check()
        differences = _differences(self.config, checkpoint.config)
        if self.has_logits and self.tie_word_embeddings != checkpoint.tied:
            differences.append(f"tie_word_embeddings={self.tie_word_embeddings} here, {checkpoint.tied} there")
        if differences:
            raise CheckpointError(f"{checkpoint.config_path} describes another model: {'; '.join(differences)}.")
        variables = self.pretrained_variables()
        odd = sorted(set(variables) ^ set(checkpoint.weights(self.has_logits)))
        if odd:
            raise CheckpointError(f"{checkpoint.path} and this {type(self).__name__} do not both have: {odd}.")
        for name, tensor in checkpoint.tensors(self.has_logits):
            variables[name].assign(_own(tensor))
        self.carried = checkpoint.carried

    def save_pretrained(self, folder: str | Path, format: str = "hf") -> None:
        """Write the model as transformers or mamba_ssm reads it: config.json and one file of tensors.

        Each weight keeps the dtype of its variable, and transformers' config the ids of special tokens that were loaded
        from one. A backbone is written as a language model with tied embedding.

        Args:
            folder: is made if needed; the files appear whole or not at all.
            format: `"hf"` (model.safetensors) or `"mamba_ssm"` (pytorch_model.bin).

        Raises:
            CheckpointError: the format is unknown or cannot describe the model, the folder holds another one, or LoRA
                adapters are not merged.
        """
        self._refuse_adapters()
        variables = self.pretrained_variables()
        dtypes = {name: keras.backend.standardize_dtype(variable.dtype) for name, variable in variables.items()}
        header = Header(self.config, not self.has_logits or self.tie_word_embeddings, self.carried)
        read = lambda name: ops.convert_to_numpy(variables[name])  # noqa: E731
        write_checkpoint(folder, format, header, dtypes, read, self.texts())

    def texts(self) -> dict[str, str]:
        """Files of text that belong to the model, by name."""
        return {}

    def pretrained_variables(self) -> dict[str, keras.Variable]:
        """The variables by their names in the tables of `dl_mamba.weights`: their paths inside the model."""
        weights = [part for variable in self.weights for part in slices(variable)]
        own = [variable for variable in weights if not variable.name.startswith("lora_")]
        return {variable.path.removeprefix(f"{self.path}/"): variable for variable in own}

    def _refuse_adapters(self) -> None:
        for layer in self._flatten_layers():
            if getattr(layer, "lora_enabled", False) and np.any(ops.convert_to_numpy(factors(layer)[1])):
                raise CheckpointError(
                    f"{layer.path} has adapters beside its weights; call dl_mamba.training.merge_lora(model) first."
                )


def _own(tensor: np.ndarray) -> np.ndarray:
    """A copy: JAX would go on reading the file. Half precision as float32, which every backend takes from NumPy."""
    return tensor.astype("float32" if tensor.dtype.itemsize == 2 else tensor.dtype)


def _differences(here: BackboneConfig, there: BackboneConfig) -> list[str]:
    if type(here) is not type(there):
        return [f"{type(here).__name__} here, {type(there).__name__} there"]
    names = [field.name for field in fields(here) if field.name not in (*FREE, *DERIVED)]
    names += [name for name in ("embedding_rows", "dt_width") if hasattr(here, name)]
    pairs = {name: (getattr(here, name), getattr(there, name)) for name in names}
    return [f"{name}={a!r} here, {b!r} there" for name, (a, b) in pairs.items() if a != b]
