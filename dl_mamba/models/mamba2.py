"""Mamba-2: embedding, residual blocks, final norm."""

from __future__ import annotations

import keras

from dl_mamba.config import Mamba2Config, with_options_of
from dl_mamba.layers.blocks import Mamba2ResidualBlock
from dl_mamba.models.backbone import Backbone


@keras.saving.register_keras_serializable(package="dl_mamba")
@with_options_of(Mamba2Config, "vocab_size", "d_model", "num_layers")
class Mamba2(Backbone):
    """Mamba-2 backbone: token ids to hidden states.

    Source: Dao and Gu, "Transformers are SSMs", 2024.

    Args:
        vocab_size: number of tokens.
        d_model: width of the residual stream.
        num_layers: residual blocks.
        pad_vocab_size_multiple: the embedding has vocab_size rows, rounded up to a multiple of this.
        gradient_checkpointing: keep only the input of each block for the backward pass, and run the block again there.
        scan_layers: keep a weight of all blocks in one variable (num_layers, ...) and run the blocks as one loop, each
            again for the backward pass: JAX and TensorFlow compile one block, and an optimizer updates about ten
            variables, however many blocks there are. Files are the same as without. Calls with a state, quantized
            blocks and torch, which compiles nothing, take the blocks one by one.
        norm_epsilon, residual_in_fp32: see `Mamba2ResidualBlock`.
        **options: every option of `Mamba2Layer`, and `name`, `dtype`, `trainable` of a Keras model.

    Call arguments, results and errors are those of `Mamba`.

    Example:

    >>> import numpy as np, dl_mamba
    >>> model = dl_mamba.Mamba2(vocab_size=100, d_model=32, num_layers=2, headdim=16, d_state=8)
    >>> tuple(model(np.array([[5, 17, 3, 99]], "int32"))["last_hidden_state"].shape)
    (1, 4, 32)
    """

    family = "mamba2"
    block_class = Mamba2ResidualBlock
