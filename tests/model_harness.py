"""Layers and models under test: random options, perturbed weights, a float64 forward of both mixers, weight gradients.

The forward is written from the papers' equations, one token of one row at a time, and shares no code with the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from harness import BACKEND, numpy
from keras import ops

import dl_mamba
from dl_mamba.layers import MixerState
from dl_mamba.layers.stacked import StackedVariable, slices

FAMILIES = ("mamba", "mamba2")
MIXERS = {"mamba": dl_mamba.MambaLayer, "mamba2": dl_mamba.Mamba2Layer}
BLOCKS = {"mamba": dl_mamba.MambaResidualBlock, "mamba2": dl_mamba.Mamba2ResidualBlock}
MODELS = {"mamba": dl_mamba.Mamba, "mamba2": dl_mamba.Mamba2}
WITH_HEAD = {"mamba": dl_mamba.create_mamba_with_head, "mamba2": dl_mamba.create_mamba2_with_head}

SMALL_MIXER = {
    "mamba": {"d_model": 6, "d_state": 3, "dt_rank": 2},
    "mamba2": {"d_model": 6, "d_state": 3, "headdim": 3, "ngroups": 2, "chunk_size": 4},
}
SMALL_MODEL = {
    "mamba": {"vocab_size": 11, "d_model": 8, "num_layers": 2, "d_state": 4, "dt_rank": 2},
    "mamba2": {"vocab_size": 11, "d_model": 8, "num_layers": 2, "d_state": 4, "headdim": 4, "chunk_size": 4},
}


def run(function: Callable, *arrays: Any) -> Any:
    """`function(*arrays)` with every tensor of its result in numpy.

    Compiled on JAX, whose eager loops compile anew at every call; eager elsewhere.
    """
    if BACKEND == "jax":
        import jax

        function = jax.jit(function)
    tensors = [None if array is None else keras.tree.map_structure(ops.convert_to_tensor, array) for array in arrays]
    return keras.tree.map_structure(numpy, function(*tensors))


def perturb(layer: keras.Layer, seed: int = 0, size: float = 0.3) -> keras.Layer:
    """Add noise to every weight, so that none is zero, one, or equal to another by its initial value."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        if "seed_generator" not in weight.path:
            weight.assign(numpy(weight.value) + rng.normal(size=weight.shape, scale=size).astype("float32"))
    return layer


def small_mixer(family: str, **options: Any) -> keras.Layer:
    """A built, perturbed mixer."""
    layer = MIXERS[family](**{**SMALL_MIXER[family], **options}, name="mixer")
    layer.build((None, None, layer.config.d_model))
    return perturb(layer)


def small_model(family: str, **options: Any) -> keras.Model:
    """A perturbed backbone."""
    return perturb(MODELS[family](**{**SMALL_MODEL[family], **options}))


def mixer_options(family: str, seed: int) -> dict[str, Any]:
    """Random options of a mixer that fit each other."""
    rng = np.random.default_rng(seed)

    def choose(*values):
        return values[rng.integers(len(values))]

    options = {
        "d_model": choose(5, 6, 8),
        "d_state": choose(1, 3, 5),
        "d_conv": choose(1, 2, 3, 4),
        "expand": choose(1, 2, 3),
        "bias": choose(False, True),
        "conv_bias": choose(False, True),
        "dt_min": choose(1e-3, 1e-2),
        "num_layers": choose(1, 3),
    }
    if family == "mamba":
        norm = {"bcdt_norm_epsilon": choose(None, 1e-3)}
        return {**options, "dt_rank": choose("auto", 1, 3), "dt_init": choose("random", "constant"), **norm}
    inner = options["d_model"] * options["expand"]
    headdim = choose(*(p for p in (1, 2, 3, 4) if p <= inner))
    nheads = int(rng.integers(1, inner // headdim + 1))
    width = None if inner % headdim == 0 and choose(False, True) else nheads * headdim
    nheads = inner // headdim if width is None else nheads
    return {
        **options,
        "headdim": headdim,
        "d_ssm": width,
        "ngroups": choose(*(g for g in range(1, nheads + 1) if nheads % g == 0)),
        "chunk_size": choose(1, 2, 3, 256),
        "D_has_hdim": choose(False, True),
        "rmsnorm": choose(False, True, True),
        "norm_before_gate": choose(False, True),
        "norm_epsilon": choose(1e-5, 1e-2),
        "dt_limit": choose((0.0, math.inf), (0.3, 0.9)),
        "conv_init": choose(None, 0.2),
    }


def own_path(layer: keras.Layer, variable: keras.Variable) -> str:
    """Path of a weight inside a layer or model."""
    return variable.path.removeprefix(f"{layer.path}/")


def float64_weights(layer: keras.Layer) -> dict[str, np.ndarray]:
    """Weights of a mixer by their paths."""
    return {own_path(layer, v): numpy(v.value).astype("float64") for v in layer.weights}


def oracle(
    layer: keras.Layer, x: np.ndarray, state: MixerState | None = None, weights: dict[str, np.ndarray] | None = None
) -> tuple[np.ndarray, MixerState]:
    """Outputs of a mixer for x (batch, length, d_model), and the state behind the last token, in float64.

    With other `weights` than its own if they are given.
    """
    row = {"MambaLayer": _mamba_row, "Mamba2Layer": _mamba2_row}[type(layer).__name__]
    w = float64_weights(layer) if weights is None else weights
    if state is None:
        state = MixerState(*(np.zeros(shape) for shape in layer.state_shapes(len(x))))
    rows = [row(w, layer.get_config(), *(a.astype("float64") for a in item)) for item in zip(x, *state, strict=True)]
    y, conv, ssm = (np.stack(column) for column in zip(*rows, strict=True))
    return y, MixerState(conv, ssm)


def _silu(x):
    return x / (1.0 + np.exp(-x))


def _dense(w, name, x):
    return x @ w[f"{name}/kernel"] + w.get(f"{name}/bias", 0.0)


def _convolve(w, window, x):
    window = np.concatenate([window, x[None]])
    return _silu(np.sum(window * w["conv1d/kernel"], axis=0) + w.get("conv1d/bias", 0.0)), window[1:]


def _mamba_row(w, options, u, window, h):
    d, n, rank = options["d_model"], options["d_state"], options["dt_rank"]
    rank = -(-d // 16) if rank == "auto" else rank
    A, outputs = -np.exp(w["A_log"]), []
    for token in u:
        x, z = np.split(_dense(w, "in_proj", token), 2)
        x, window = _convolve(w, window, x)
        delta, B, C = np.split(_dense(w, "x_proj", x), [rank, rank + n])
        if options["bcdt_norm_epsilon"] is not None:
            delta, B, C = (v / np.sqrt(np.mean(v**2) + options["bcdt_norm_epsilon"]) for v in (delta, B, C))
        dt = np.logaddexp(0.0, _dense(w, "dt_proj", delta) + w["dt_bias"])
        h = np.exp(dt[:, None] * A) * h + (dt * x)[:, None] * B
        outputs.append(_dense(w, "out_proj", (h @ C + w["D"] * x) * _silu(z)))
    return np.reshape(outputs, (len(u), d)), window, h


def _mamba2_row(w, options, u, window, h):
    d, n, groups, head = (options[name] for name in ("d_model", "d_state", "ngroups", "headdim"))
    inner = d * options["expand"]
    width = inner if options["d_ssm"] is None else options["d_ssm"]
    nheads, beside = width // head, inner - width
    A, outputs = -np.exp(w["A_log"]), []
    D = np.broadcast_to(w["D"] if options["D_has_hdim"] else w["D"][:, None], (nheads, head))
    for token in u:
        cuts = np.cumsum([beside, beside, width, width + 2 * groups * n])
        z0, x0, z, xBC, dt = np.split(_dense(w, "in_proj", token), cuts)
        xBC, window = _convolve(w, window, xBC)
        x, B, C = np.split(xBC, [width, width + groups * n])
        x, B, C = x.reshape(nheads, head), B.reshape(groups, n), C.reshape(groups, n)
        dt = np.clip(np.logaddexp(0.0, dt + w["dt_bias"]), *options["dt_limit"])
        y, h = np.zeros((nheads, head)), h.copy()
        for i in range(nheads):
            g = i // (nheads // groups)
            h[i] = np.exp(A[i] * dt[i]) * h[i] + dt[i] * np.outer(x[i], B[g])
            y[i] = h[i] @ C[g] + D[i] * x[i]
        y = _gated(w, options, y.reshape(width), z)
        outputs.append(_dense(w, "out_proj", np.concatenate([_silu(z0) * x0, y])))
    return np.reshape(outputs, (len(u), d)), window, h


def _gated(w, options, y, z):
    if not options["rmsnorm"]:
        return y * _silu(z)
    y = y if options["norm_before_gate"] else y * _silu(z)
    groups = y.reshape(options["ngroups"], -1)
    groups = groups / np.sqrt(np.mean(groups**2, axis=-1, keepdims=True) + options["norm_epsilon"])
    y = groups.reshape(-1) * w["norm/scale"]
    return y * _silu(z) if options["norm_before_gate"] else y


def weight_gradients(layer: keras.Layer, loss: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Gradient of `loss()` for each trainable weight of a single layer, by its path inside the model."""
    weights = layer.trainable_variables
    gradients = {"jax": _gradients_jax, "tensorflow": _gradients_tensorflow, "torch": _gradients_torch}[BACKEND]
    found = {}
    for weight, gradient in zip(weights, gradients(weights, loss), strict=True):
        rows = gradient if isinstance(weight, StackedVariable) else [gradient]
        found |= {own_path(layer, part): numpy(row) for part, row in zip(slices(weight), rows, strict=True)}
    return found


def _gradients_jax(weights, loss):
    import jax

    def loss_of(values):
        with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
            return loss()

    return jax.jit(jax.grad(loss_of))([w.value for w in weights])


def _gradients_tensorflow(weights, loss):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, [w.value for w in weights])
    return [tf.convert_to_tensor(gradient) for gradient in gradients]  # those of the embedding come as slices


def _gradients_torch(weights, loss):
    import torch

    return torch.autograd.grad(loss(), [w.value for w in weights])


def projected(tensor: Any, seed: int = 0) -> Any:
    """A fixed random projection of a tensor to one number: a loss that no symmetry hides."""
    weights = np.random.default_rng(seed).normal(size=tensor.shape).astype("float32")
    return ops.sum(ops.cast(tensor, "float32") * ops.convert_to_tensor(weights))


def tokens(*shape: int, seed: int = 0, vocab_size: int = 11) -> np.ndarray:
    """Random ids."""
    return np.random.default_rng(seed).integers(0, vocab_size, shape).astype("int32")


def place(rows: list[np.ndarray], length: int, side: str, filler: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded to a length on one side, or with padding strewn between their tokens ("between"), and the mask."""
    rng = np.random.default_rng(0)
    padded = np.full((len(rows), length, *rows[0].shape[1:]), filler, rows[0].dtype)
    mask = np.zeros((len(rows), length), "bool")
    for i, row in enumerate(rows):
        where = {
            "left": np.arange(length - len(row), length),
            "right": np.arange(len(row)),
            "between": np.sort(rng.permutation(length)[: len(row)]),
        }[side]
        padded[i, where], mask[i, where] = row, True
    return padded, mask
