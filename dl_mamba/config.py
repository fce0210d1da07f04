"""What fixes a model: frozen classes of plain numbers, with the sizes that follow from them as properties.

`MambaLayer`, `Mamba2Layer` and the models describe the fields; here each is written once, with its default and its
check.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs: equality, `to_dict`, and construction from named options."""

    @classmethod
    def from_options(cls, owner: str, options: Mapping[str, Any], others: tuple[str, ...] = ()) -> tuple[Self, dict]:
        """A config from `options`, and the options named in `others`; any further option is an error.

        Raises:
            ValueError: an option is unknown, missing or does not fit the others.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(options) - known - set(others))
        if unknown:
            valid = ", ".join(sorted(known | set(others)))
            raise ValueError(f"{owner} got the unknown option {unknown[0]!r}; choose from: {valid}.")
        config = cls(**{name: value for name, value in options.items() if name in known})
        return config, {name: value for name, value in options.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python values that JSON can hold."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def _at_least(self, low: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name}={value!r}; an integer >= {low} is needed.")

    def _pair(self, name: str, low: float) -> None:
        pair = tuple(getattr(self, name))
        if len(pair) != 2 or not low <= pair[0] <= pair[1]:
            raise ValueError(f"{name}={pair!r}; two numbers with {low} <= first <= second are needed.")
        object.__setattr__(self, name, (float(pair[0]), float(pair[1])))


@dataclass(frozen=True, kw_only=True)
class MixerConfig(Config):
    """What both generations of mixers share."""

    d_model: int
    d_conv: int = 4
    expand: int | float = 2
    bias: bool = False
    conv_bias: bool = True
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_init_floor: float = 1e-4
    num_layers: int = 1

    def __post_init__(self) -> None:
        self._at_least(1, "d_model", "d_conv", "num_layers", "d_state")
        self._check_expand()
        if not 0.0 < self.dt_min <= self.dt_max:
            raise ValueError(f"dt_min={self.dt_min}, dt_max={self.dt_max}; 0 < dt_min <= dt_max is needed.")

    def _check_expand(self) -> None:
        self._at_least(1, "expand")

    @property
    def d_inner(self) -> int:
        """Width inside the mixer: expand x d_model."""
        return round(self.expand * self.d_model)

    @property
    def out_proj_parameters(self) -> int:
        """Weights of the projection back to d_model."""
        return (self.d_inner + self.bias) * self.d_model


@dataclass(frozen=True, kw_only=True)
class MambaMixerConfig(MixerConfig):
    """Fields of `MambaLayer`."""

    d_state: int = 16
    dt_rank: int | str = "auto"
    dt_init: str = "random"
    dt_scale: float = 1.0
    bcdt_norm_epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bcdt_norm_epsilon is not None and not self.bcdt_norm_epsilon > 0:
            raise ValueError(
                f"bcdt_norm_epsilon={self.bcdt_norm_epsilon!r}; None or a number > 0 is needed, e.g. 1e-6."
            )
        if self.dt_rank != "auto":
            self._at_least(1, "dt_rank")
        if self.dt_init not in ("random", "constant"):
            raise ValueError(f"dt_init={self.dt_init!r} is unknown; choose 'random' or 'constant'.")

    def _check_expand(self) -> None:
        width = self.expand * self.d_model
        if not width >= 1 or abs(width - round(width)) > 1e-6:  # a fraction such as 5/3 comes as a rounded float
            raise ValueError(
                f"expand={self.expand!r} with d_model={self.d_model} gives d_inner={width}; "
                "a whole number >= 1 is needed."
            )

    @property
    def dt_width(self) -> int:
        """Rank of the dt projection: `dt_rank`, or ceil(d_model / 16) for "auto"."""
        return math.ceil(self.d_model / 16) if self.dt_rank == "auto" else self.dt_rank

    @property
    def mixer_parameters(self) -> int:
        """Number of weights of one mixer."""
        inner, projected = self.d_inner, self.dt_width + 2 * self.d_state
        in_proj = (self.d_model + self.bias) * 2 * inner
        conv = (self.d_conv + self.conv_bias) * inner
        scan = inner * projected + (self.dt_width + 1) * inner + inner * self.d_state + inner
        return in_proj + conv + scan + self.out_proj_parameters


@dataclass(frozen=True, kw_only=True)
class Mamba2MixerConfig(MixerConfig):
    """Fields of `Mamba2Layer`."""

    d_state: int = 128
    headdim: int = 64
    ngroups: int = 1
    d_ssm: int | None = None
    chunk_size: int = 256
    A_init_range: tuple[float, float] = (1.0, 16.0)
    dt_limit: tuple[float, float] = (0.0, float("inf"))
    conv_init: float | None = None
    D_has_hdim: bool = False
    rmsnorm: bool = True
    norm_before_gate: bool = False
    norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "headdim", "ngroups", "chunk_size")
        self._pair("A_init_range", 1e-30)
        self._pair("dt_limit", 0.0)
        if self.d_ssm is not None:
            self._at_least(1, "d_ssm")
            if self.d_ssm > self.d_inner:
                raise ValueError(f"d_ssm={self.d_ssm} is larger than d_inner={self.d_inner}; choose d_ssm <= d_inner.")
        if self.ssm_width % self.headdim:
            raise ValueError(self._headdim_message())
        if self.nheads % self.ngroups:
            divisors = [g for g in range(1, self.nheads + 1) if self.nheads % g == 0]
            raise ValueError(f"ngroups={self.ngroups} does not divide nheads={self.nheads}; choose one of {divisors}.")

    def _headdim_message(self) -> str:
        width, head = self.ssm_width, self.headdim
        divisors = [p for p in range(1, width + 1) if width % p == 0]
        nearest = min(divisors, key=lambda p: abs(p - head))
        if self.d_ssm is not None:
            return f"d_ssm={width} is not a multiple of headdim={head}; choose headdim={nearest}, or another d_ssm."
        unit = head // math.gcd(head, self.expand)
        lower = self.d_model // unit * unit
        models = " or ".join(str(d) for d in (lower, lower + unit) if d)
        return (
            f"d_model={self.d_model} with expand={self.expand} gives d_inner={width}, not a multiple of "
            f"headdim={head}; choose d_model={models}, or headdim={nearest}."
        )

    @property
    def ssm_width(self) -> int:
        """Channels that pass through the state space: `d_ssm`, or d_inner."""
        return self.d_inner if self.d_ssm is None else self.d_ssm

    @property
    def mlp_width(self) -> int:
        """Channels that pass beside the state space through a gated MLP."""
        return self.d_inner - self.ssm_width

    @property
    def nheads(self) -> int:
        """Heads of the state space."""
        return self.ssm_width // self.headdim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.ssm_width + 2 * self.ngroups * self.d_state

    @property
    def in_proj_width(self) -> int:
        """Outputs of the first projection: MLP gate and value, z, x, B, C, dt."""
        return 2 * self.mlp_width + self.ssm_width + self.conv_width + self.nheads

    @property
    def mixer_parameters(self) -> int:
        """Number of weights of one mixer."""
        in_proj = (self.d_model + self.bias) * self.in_proj_width
        conv = (self.d_conv + self.conv_bias) * self.conv_width
        skip = self.ssm_width if self.D_has_hdim else self.nheads
        return in_proj + conv + 2 * self.nheads + skip + self.rmsnorm * self.ssm_width + self.out_proj_parameters


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Config):
    """What a residual block adds to its mixer; the mixer of Mamba-2 norms with the same epsilon."""

    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(BlockConfig):
    """What a backbone adds to its blocks."""

    vocab_size: int
    pad_vocab_size_multiple: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(1, "vocab_size", "pad_vocab_size_multiple")

    @property
    def embedding_rows(self) -> int:
        """vocab_size rounded up to a multiple of `pad_vocab_size_multiple`."""
        multiple = self.pad_vocab_size_multiple
        return -(-self.vocab_size // multiple) * multiple

    @property
    def num_parameters(self) -> int:
        """Number of weights of the backbone, which a language model with tied embeddings shares."""
        block = self.d_model + self.mixer_parameters
        return self.embedding_rows * self.d_model + self.num_layers * block + self.d_model


@dataclass(frozen=True, kw_only=True)
class MambaBlockConfig(BlockConfig, MambaMixerConfig):
    """Fields of `MambaResidualBlock`."""


@dataclass(frozen=True, kw_only=True)
class Mamba2BlockConfig(BlockConfig, Mamba2MixerConfig):
    """Fields of `Mamba2ResidualBlock`."""


@dataclass(frozen=True, kw_only=True)
class MambaConfig(BackboneConfig, MambaMixerConfig):
    """Fields of `Mamba`.

    Example:

    >>> from dl_mamba.config import MambaConfig
    >>> config = MambaConfig(vocab_size=50277, pad_vocab_size_multiple=8, d_model=768, num_layers=24)
    >>> config.d_inner, config.dt_width, config.num_parameters
    (1536, 48, 129135360)
    """


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(BackboneConfig, Mamba2MixerConfig):
    """Fields of `Mamba2`.

    Example:

    >>> from dl_mamba.config import Mamba2Config
    >>> config = Mamba2Config(vocab_size=50277, pad_vocab_size_multiple=16, d_model=768, num_layers=24)
    >>> config.nheads, config.num_parameters
    (24, 128989632)
    """


def with_options_of(config_class: type[Config], *first: str):
    """Class decorator: show the fields of a config as the signature of a class that takes them as options."""

    def decorate(cls: type) -> type:
        own = inspect.signature(cls.__init__).parameters.values()
        named = {p.name: p for p in own if p.kind is not p.VAR_KEYWORD and p.name != "self"}
        shown = [named.pop(name) for name in first]
        for field in fields(config_class):
            if field.name not in first:
                shown.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default))
        shown += [p.replace(kind=p.KEYWORD_ONLY) for p in named.values()]
        cls.__signature__ = inspect.Signature(shown)
        return cls

    return decorate
