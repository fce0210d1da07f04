"""Mamba-1: embedding, residual blocks, final norm."""

from __future__ import annotations

import keras

from dl_mamba.config import MambaConfig, with_options_of
from dl_mamba.layers.blocks import MambaResidualBlock
from dl_mamba.models.backbone import Backbone


@keras.saving.register_keras_serializable(package="dl_mamba")
@with_options_of(MambaConfig, "vocab_size", "d_model", "num_layers")
class Mamba(Backbone):
    """Mamba-1 backbone: token ids to hidden states.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.

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
        norm_epsilon, residual_in_fp32: see `MambaResidualBlock`.
        **options: every option of `MambaLayer`, and `name`, `dtype`, `trainable` of a Keras model.

    Call arguments:
        inputs: (batch, length) int ids, or a dict with `"input_ids"` and, if wanted, `"attention_mask"` (batch,
            length), true at real tokens, and `"segment_ids"` (batch, length) int, numbers of documents packed into
            one row.
        state: what an earlier call returned, to continue from; one `MixerState` for each layer.
        return_state: add `"state"` to the result.
        output_hidden_states: add `"hidden_states"`: the embeddings, the residual stream after each block but the
            last, and `last_hidden_state`.
        output_embeddings: add `"embeddings"` (rows, d_model), to which a head may tie its logits.

    Returns:
        `{"last_hidden_state": (batch, length, d_model)}` in the compute dtype, and what was asked for.

    Raises:
        ValueError: an option is unknown, a shape does not fit, or (eagerly) an id is outside the vocabulary.

    Example:

    >>> import numpy as np, dl_mamba
    >>> model = dl_mamba.Mamba(vocab_size=100, d_model=32, num_layers=2)
    >>> ids = np.array([[5, 17, 3, 99]], "int32")
    >>> tuple(model(ids)["last_hidden_state"].shape)
    (1, 4, 32)
    >>> outputs = model(ids, return_state=True)
    >>> tuple(model(np.array([[8]], "int32"), state=outputs["state"])["last_hidden_state"].shape)
    (1, 1, 32)
    """

    family = "mamba"
    block_class = MambaResidualBlock
