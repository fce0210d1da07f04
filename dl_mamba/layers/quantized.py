"""Layers whose parts were quantized, so that a `.keras` file of them can be read back."""

from __future__ import annotations

from typing import Any, Self

import keras

RESTORED = ("int8", "int4", "float8")


class QuantizedParts:
    """Mixin for a layer made of others: its config tells which of them `quantize` has changed, and they come back so.

    `keras.Model.quantize` changes leaf layers alone; the layers that hold them write configs which do not say so, and a
    model made from such a config cannot hold the weights of the file (Keras issues 19381 and 19858).
    """

    _to_quantize: dict[str, Any] | None = None

    def get_config(self) -> dict[str, Any]:
        quantized = quantized_parts(self)
        return {**super().get_config(), **({"quantized": quantized} if quantized else {})}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        quantized = config.pop("quantized", None)
        layer = super().from_config(config)
        layer._to_quantize = quantized
        return layer

    def build_from_config(self, config: dict[str, Any]) -> None:
        super().build_from_config(config)
        quantize_parts(self, self._to_quantize or {})


def is_quantized(layer: keras.Layer) -> bool:
    """Whether a part of the layer is quantized."""
    return any(part.quantization_mode is not None for part in _parts(layer).values())


def quantized_parts(layer: keras.Layer) -> dict[str, dict[str, Any]]:
    """How each part of a layer is quantized, by the part's path inside the layer.

    Raises:
        ValueError: a part is quantized in a way that only the weights that it was made of can restore.
    """
    parts = {}
    for path, part in _parts(layer).items():
        if part.quantization_mode is None:
            continue
        if part.quantization_mode not in RESTORED:
            raise ValueError(
                f"{part.path} is quantized to {part.quantization_mode!r}, which a file of {layer.name!r} cannot hold; "
                f"choose one of {RESTORED}, or save the model before `quantize`."
            )
        config = keras.saving.serialize_keras_object(getattr(part, "quantization_config", None))
        parts[path] = {"mode": part.quantization_mode, "config": config}
    return parts


def quantize_parts(layer: keras.Layer, parts: dict[str, dict[str, Any]]) -> None:
    """Quantize parts of a built layer as `quantized_parts` has told.

    Raises:
        ValueError: the layer has no such part.
    """
    known = _parts(layer)
    for path, options in parts.items():
        if path not in known:
            raise ValueError(f"{layer.name!r} has no part {path!r} to quantize; it has {sorted(known)}.")
        config = keras.saving.deserialize_keras_object(options["config"])
        known[path].quantize(options["mode"], type_check=False, config=config)


def _parts(layer: keras.Layer) -> dict[str, keras.Layer]:
    """The layers with weights and without layers of their own inside a layer, by their paths in it."""
    inner = layer._flatten_layers(include_self=False)
    leaves = [part for part in inner if part.weights and len(list(part._flatten_layers())) == 1]
    return {part.path.removeprefix(f"{layer.path}/"): part for part in leaves}
