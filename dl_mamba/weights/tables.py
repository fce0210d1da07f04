"""Names: one table of what each weight is called here and in the files, and how it lies there.

Here a weight has the path of its Keras variable, `layers/3/mixer/in_proj/kernel`; in a file it has the name of torch's
parameter, `layers.3.mixer.in_proj.weight` behind a prefix. The rows of in_proj are in one order in both: [x, z] for
Mamba-1, [z, x, B, C, dt] for Mamba-2, with the gated MLP of mamba_ssm before these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dl_mamba.config import BackboneConfig, Mamba2Config, MambaConfig
from dl_mamba.weights.errors import CheckpointError

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How a weight lies in a file.

    Attributes:
        text: the rule in words, for `inspect`.
        file_shape: its shape in the file, from its shape here.
        to_ours: the tensor here, from that of the file and its shape here.
        to_file: the tensor of the file.
    """

    text: str
    file_shape: Callable[[Shape], Shape]
    to_ours: Callable[[np.ndarray, Shape], np.ndarray]
    to_file: Callable[[np.ndarray], np.ndarray]


AS_IS = Layout("as is", lambda shape: shape, lambda a, shape: a, lambda a: a)
TRANSPOSED = Layout("transposed", lambda shape: shape[::-1], lambda a, shape: a.T, lambda a: a.T)
# torch keeps (channels, 1, taps), here (taps, channels); the last tap is the current token in both.
TAPS = Layout("taps first", lambda s: (s[1], 1, s[0]), lambda a, shape: a[:, 0].T, lambda a: a.T[:, None])
FLAT = Layout("reshaped", lambda s: (math.prod(s),), lambda a, shape: a.reshape(shape), lambda a: a.reshape(-1))

MODEL = {
    "embedding/embeddings": ("embeddings.weight", AS_IS),
    "final_norm/scale": ("norm_f.weight", AS_IS),
    "lm_head/kernel": ("lm_head.weight", TRANSPOSED),
}
LAYER = {
    "norm/scale": ("norm.weight", AS_IS),
    "mixer/in_proj/kernel": ("mixer.in_proj.weight", TRANSPOSED),
    "mixer/in_proj/bias": ("mixer.in_proj.bias", AS_IS),
    "mixer/conv1d/kernel": ("mixer.conv1d.weight", TAPS),
    "mixer/conv1d/bias": ("mixer.conv1d.bias", AS_IS),
    "mixer/A_log": ("mixer.A_log", AS_IS),
    "mixer/D": ("mixer.D", FLAT),
    "mixer/out_proj/kernel": ("mixer.out_proj.weight", TRANSPOSED),
    "mixer/out_proj/bias": ("mixer.out_proj.bias", AS_IS),
}
MAMBA_LAYER = LAYER | {
    "mixer/x_proj/kernel": ("mixer.x_proj.weight", TRANSPOSED),
    "mixer/dt_proj/kernel": ("mixer.dt_proj.weight", TRANSPOSED),
    "mixer/dt_bias": ("mixer.dt_proj.bias", AS_IS),
}
MAMBA2_LAYER = LAYER | {
    "mixer/dt_bias": ("mixer.dt_bias", AS_IS),
    "mixer/norm/scale": ("mixer.norm.weight", AS_IS),
}

HEAD = "lm_head/kernel"
EMBEDDING = "embedding/embeddings"


class Weight(NamedTuple):
    """A weight of a model: its name in a file (without prefix), how it lies there, and its shape here."""

    file_name: str
    layout: Layout
    shape: Shape

    @property
    def file_shape(self) -> Shape:
        """Its shape in a file."""
        return self.layout.file_shape(self.shape)


def weights_of(config: BackboneConfig, head: bool) -> dict[str, Weight]:
    """Every weight of a model, by its name here.

    Args:
        config: of the backbone.
        head: whether the model has a head apart from its embedding.

    Example:

    >>> from dl_mamba import variants
    >>> from dl_mamba.weights.tables import weights_of
    >>> weights = weights_of(variants.load("mamba2-130m"), head=False)
    >>> len(weights), weights["layers/23/mixer/in_proj/kernel"].file_shape
    (218, (3352, 768))
    """
    table, shapes = _layer(config)
    size = (config.embedding_rows, config.d_model)
    weights = {EMBEDDING: Weight(*MODEL[EMBEDDING], size)}
    for i in range(config.num_layers):
        for name, shape in shapes.items():
            file_name, layout = table[name]
            weights[f"layers/{i}/{name}"] = Weight(f"layers.{i}.{file_name}", layout, shape)
    weights["final_norm/scale"] = Weight(*MODEL["final_norm/scale"], (config.d_model,))
    return weights | ({HEAD: Weight(*MODEL[HEAD], size[::-1])} if head else {})


def bare_names(names: list[str], place: str) -> dict[str, str]:
    """The names of a file by their form in the tables: without prefix, and `embedding` as `embeddings`.

    Args:
        names: as the file has them.
        place: the file, for the error.

    Raises:
        CheckpointError: two names of the file mean the same weight.
    """
    found: dict[str, str] = {}
    for name in names:
        bare = name.removeprefix("model.").removeprefix("backbone.")  # Codestral has both, a bare backbone none
        bare = "embeddings.weight" if bare == "embedding.weight" else bare
        if bare in found:
            raise CheckpointError(f"{place} holds {found[bare]} and {name}, two names of one weight.")
        found[bare] = name
    return found


def _layer(config: BackboneConfig) -> tuple[dict[str, tuple[str, Layout]], dict[str, Shape]]:
    """The table of a layer, and the shape here of each weight that it has under this config."""
    if isinstance(config, MambaConfig):
        return MAMBA_LAYER, _shared_shapes(config, 2 * config.d_inner, config.d_inner) | _mamba_shapes(config)
    if isinstance(config, Mamba2Config):
        return MAMBA2_LAYER, _shared_shapes(config, config.in_proj_width, config.conv_width) | _mamba2_shapes(config)
    raise TypeError(f"{type(config).__name__} has no table of weights.")


def _shared_shapes(c: BackboneConfig, projected: int, convolved: int) -> dict[str, Shape]:
    shapes = {
        "norm/scale": (c.d_model,),
        "mixer/in_proj/kernel": (c.d_model, projected),
        "mixer/conv1d/kernel": (c.d_conv, convolved),
        "mixer/out_proj/kernel": (c.d_inner, c.d_model),
    }
    biases = {"mixer/in_proj/bias": (projected,), "mixer/out_proj/bias": (c.d_model,)} if c.bias else {}
    return shapes | biases | ({"mixer/conv1d/bias": (convolved,)} if c.conv_bias else {})


def _mamba_shapes(c: MambaConfig) -> dict[str, Shape]:
    return {
        "mixer/x_proj/kernel": (c.d_inner, c.dt_width + 2 * c.d_state),
        "mixer/dt_proj/kernel": (c.dt_width, c.d_inner),
        "mixer/dt_bias": (c.d_inner,),
        "mixer/A_log": (c.d_inner, c.d_state),
        "mixer/D": (c.d_inner,),
    }


def _mamba2_shapes(c: Mamba2Config) -> dict[str, Shape]:
    shapes = {
        "mixer/A_log": (c.nheads,),
        "mixer/D": (c.nheads, c.headdim) if c.D_has_hdim else (c.nheads,),
        "mixer/dt_bias": (c.nheads,),
    }
    return shapes | ({"mixer/norm/scale": (c.ssm_width,)} if c.rmsnorm else {})
