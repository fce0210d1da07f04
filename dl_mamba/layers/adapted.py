"""Dense and Embedding whose low-rank adapters can learn again after loading; Keras leaves both factors at zero."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dl_mamba.ops.numerics import barrier, plus, product
from dl_mamba.ops.sequence import on_accelerator, split_channels


class _Adapted:
    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        if self.lora_enabled:
            a, _ = factors(self)
            a.assign(keras.initializers.HeUniform()(a.shape, dtype=a.dtype))

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        super().quantize(mode, type_check=False, config=config)  # Keras asks it of no subclass


class Projection(_Adapted, keras.layers.Dense):
    """A Dense layer of a mixer, without activation."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        y = product(inputs, ops.convert_to_tensor(self.kernel))
        return y if self.bias is None else plus(y, ops.convert_to_tensor(self.bias))

    def parts(self, inputs: Any, *sizes: int) -> list[Any]:
        """The output, cut into parts of these sizes along its last axis.

        On an accelerator each part is a product of its own with columns of the kernel: a kernel of Triton needs its
        inputs without gaps, and the gradients of parts of one product have to be joined.
        """
        if not on_accelerator(inputs) or inputs.shape[1] == 1 or self.quantization_mode is not None:
            return split_channels(self(inputs), *sizes)
        kernels = split_channels(ops.cast(self.kernel, self.compute_dtype), *sizes)
        outputs = [ops.matmul(*barrier((inputs, kernel))) for kernel in kernels]  # XLA would make one product of them
        if self.bias is None:
            return outputs
        biases = split_channels(ops.cast(self.bias, self.compute_dtype), *sizes)
        return [output + bias for output, bias in zip(outputs, biases, strict=True)]


class TokenEmbedding(_Adapted, keras.layers.Embedding):
    """The embedding of a backbone."""


def factors(layer: keras.Layer) -> tuple[keras.Variable, keras.Variable]:
    """The factors of a layer's adapter: one drawn, and one that is zero at first."""
    kind = _kind(layer)
    return getattr(layer, f"lora_{kind}_a"), getattr(layer, f"lora_{kind}_b")


def merge(layer: keras.Layer) -> None:
    """Add a layer's adapter to what it adapts, and start it anew."""
    a, b = factors(layer)
    added = ops.matmul(ops.convert_to_tensor(a), ops.convert_to_tensor(b)) * (layer.lora_alpha / layer.lora_rank)
    getattr(layer, f"_{_kind(layer)}").assign_add(added)
    b.assign(ops.zeros(b.shape, dtype=b.dtype))


def _kind(layer: keras.Layer) -> str:
    return "embeddings" if isinstance(layer, keras.layers.Embedding) else "kernel"
