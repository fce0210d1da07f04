"""A model whose state is an ordinary input and output, for formats that know tensors alone."""

from __future__ import annotations

from typing import Any

import keras

from dl_mamba.layers.mixer import MixerState


def stateful(model: keras.Model, length: int | None = None, batch_size: int | None = None) -> keras.Model:
    """A functional model that reads tokens behind a state: what `export` writes for a service that keeps the state.

    Args:
        model: a `Mamba`, `Mamba2`, `MambaCausalLM` or `Mamba2CausalLM`; the weights are shared with it.
        length: tokens of a call, 1 for a program that reads one token after another; None for any number.
        batch_size: rows of a call; None for any number.

    Returns:
        A model from `{"input_ids": (batch, length) int32, "conv_0", "ssm_0", "conv_1", ...}` to
        `{"last_hidden_state" (and "logits" of a language model), "next_conv_0", "next_ssm_0", ...}`: one pair a
        layer, with the shapes and dtypes of `MixerState`. It begins with zeros, and what it returns as `next_conv_0`
        it takes as `conv_0` in the following call.

    Raises:
        ValueError: the model carries no state.

    Example:

    >>> import dl_mamba, keras
    >>> model = dl_mamba.Mamba2CausalLM(vocab_size=11, d_model=8, num_layers=1, headdim=4, d_state=4)
    >>> step = dl_mamba.stateful(model, length=1)
    >>> state = {f"{key}_{i}": getattr(s, key) for i, s in enumerate(model.initial_state(2)) for key in s._fields}
    >>> out = step({"input_ids": keras.ops.array([[3], [1]]), **state})
    >>> tuple(out["logits"].shape), tuple(out["next_ssm_0"].shape)
    ((2, 1, 11), (2, 4, 4, 4))
    """
    backbone = getattr(model, "backbone", model)
    if not hasattr(backbone, "blocks"):
        raise ValueError(
            f"model is a {type(model).__name__}, which carries no state; give a Mamba, Mamba2 or one of their CausalLM."
        )
    ids = keras.Input((length,), batch_size=batch_size, dtype="int32", name="input_ids")
    state = tuple(_inputs(block, i, batch_size) for i, block in enumerate(backbone.blocks))
    outputs = dict(model(ids, state=state, return_state=True))
    outputs |= _flat("next_", outputs.pop("state"))
    return keras.Model({"input_ids": ids, **_flat("", state)}, outputs, name=f"stateful_{model.name}")


def _inputs(block: Any, i: int, batch_size: int | None) -> MixerState:
    shapes, dtypes = block.state_shapes(batch_size), MixerState(block.compute_dtype, "float32")
    return MixerState(
        *(
            keras.Input(shape[1:], batch_size=batch_size, dtype=dtype, name=f"{key}_{i}")
            for key, shape, dtype in zip(MixerState._fields, shapes, dtypes, strict=True)
        )
    )


def _flat(prefix: str, state: tuple[MixerState, ...]) -> dict[str, Any]:
    return {f"{prefix}{key}_{i}": value for i, layer in enumerate(state) for key, value in layer._asdict().items()}
