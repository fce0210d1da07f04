"""The config of transformers, in both directions: model types mamba, mamba2 and falcon_mamba."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dl_mamba.config import BackboneConfig, Mamba2Config, MambaConfig
from dl_mamba.weights.errors import CheckpointError
from dl_mamba.weights.header import Header, build, check_keys

# Their key, and our field with the value that transformers assumes where the key is absent.
SHARED = {
    "hidden_size": ("d_model", 768),
    "num_hidden_layers": ("num_layers", 32),
    "state_size": ("d_state", 16),
    "conv_kernel": ("d_conv", 4),
    "use_bias": ("bias", False),
    "use_conv_bias": ("conv_bias", True),
    "layer_norm_epsilon": ("norm_epsilon", 1e-5),
    "residual_in_fp32": ("residual_in_fp32", True),
    "time_step_min": ("dt_min", 1e-3),
    "time_step_max": ("dt_max", 0.1),
    "time_step_floor": ("dt_init_floor", 1e-4),
}
MAMBA = SHARED | {
    "time_step_rank": ("dt_rank", "auto"),
    "time_step_scale": ("dt_scale", 1.0),
    "time_step_init_scheme": ("dt_init", "random"),
}
FALCON_MAMBA = MAMBA | {"mixer_rms_eps": ("bcdt_norm_epsilon", 1e-6)}
MAMBA2 = SHARED | {
    "hidden_size": ("d_model", 4096),
    "num_hidden_layers": ("num_layers", 64),
    "state_size": ("d_state", 128),
    "head_dim": ("headdim", 64),
    "n_groups": ("ngroups", 8),
    "chunk_size": ("chunk_size", 256),
    "time_step_limit": ("dt_limit", (0.0, math.inf)),
}
FIELDS = {"mamba": MAMBA, "mamba2": MAMBA2, "falcon_mamba": FALCON_MAMBA}
# Read apart from these tables.
MORE = {
    "mamba": ("vocab_size", "expand", "intermediate_size", "tie_word_embeddings"),
    "mamba2": ("vocab_size", "expand", "num_heads", "tie_word_embeddings"),
}
MORE["falcon_mamba"] = MORE["mamba"]

FIXED = {
    "hidden_act": ("silu", "swish"),
    "rms_norm": (True,),  # a word of mamba_ssm in published files; transformers has no other norm
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
}
# Ids of special tokens belong to text, the other two to initial weights.
CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "rescale_prenorm_residual")
IGNORED = {
    "model_type": "chose the table",
    "architectures": "the tensors say whether there is a head",
    "dtype": "the tensors have theirs",
    "torch_dtype": "the tensors have theirs",
    "transformers_version": "who wrote the file",
    "_name_or_path": "where it came from",
    "use_cache": "an option of a call",
    "return_dict": "an option of a call",
    "output_hidden_states": "an option of a call",
    "output_attentions": "an option of a call",
    "use_mambapy": "a choice of implementation",
    "use_falcon_mambapy": "a choice of implementation",
    "use_associative_scan": "a choice of implementation",
    "use_mamba_kernels": "a choice of implementation",
    "d_model": "a word of mamba_ssm beside hidden_size, which counts",
    "d_inner": "a word of mamba_ssm beside intermediate_size, which counts",
    "n_layer": "a word of mamba_ssm beside num_hidden_layers, which counts",
    "ssm_cfg": "a word of mamba_ssm; its content stands under the words of transformers",
    "fused_add_norm": "a choice of implementation",
    "pad_vocab_size_multiple": "vocab_size is already padded",
}
IGNORED_IN_MAMBA2 = {
    "norm_before_gate": "published as true beside weights trained with the gate first; transformers has no such option",
    "intermediate_size": "transformers uses expand x hidden_size",
    "time_step_rank": "dt of Mamba-2 has no low-rank projection",
    "time_step_scale": "dt of Mamba-2 has no low-rank projection",
    "time_step_init_scheme": "dt of Mamba-2 has no low-rank projection",
}


def read(path: Path, keys: dict[str, Any], rows: int) -> Header:
    """The model that a config of transformers describes.

    Args:
        path: the file, for errors.
        keys: its content.
        rows: of the embedding tensor, which is the vocabulary.

    Raises:
        CheckpointError: another architecture, or a key or value that is not implemented.
    """
    kind = keys.get("model_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise CheckpointError(f"{path} describes the model type {kind!r}; one of {list(FIELDS)} is needed.")
    fields, more = FIELDS[kind], MORE[kind]
    ignored = (*CARRIED, *IGNORED, *(IGNORED_IN_MAMBA2 if kind == "mamba2" else ()))
    check_keys(path, keys, (*fields, *more), FIXED, ignored)
    options = {ours: keys.get(theirs, default) for theirs, (ours, default) in fields.items()}
    options |= {"vocab_size": rows, "expand": _expand(keys, options["d_model"], kind)}
    config = build(path, Mamba2Config if kind == "mamba2" else MambaConfig, options)
    if kind == "mamba2" and keys.get("num_heads", config.nheads) != config.nheads:
        raise CheckpointError(
            f"{path}: num_heads={keys['num_heads']}, but expand x hidden_size / head_dim is {config.nheads}."
        )
    carried = {key: keys[key] for key in CARRIED if key in keys}
    return Header(config, keys.get("tie_word_embeddings"), carried)


def _expand(keys: dict[str, Any], d_model: Any, kind: str) -> Any:
    """`expand`, or what intermediate_size makes of it: FalconMamba says expand 16 beside the width of expand 2."""
    inner = keys.get("intermediate_size")
    if kind == "mamba2" or inner is None or not isinstance(inner, int) or not isinstance(d_model, int):
        return keys.get("expand", 2)
    return inner / d_model if inner % d_model else inner // d_model


def write(header: Header, dtype: str) -> dict[str, Any]:
    """The config of transformers for a model, which transformers then loads in `dtype`.

    Raises:
        CheckpointError: lists the options that transformers has no words for.
    """
    config = header.config
    unsaid = _unsaid(config)
    if unsaid:
        raise CheckpointError(f"transformers cannot describe {', '.join(unsaid)}; save with format='mamba_ssm'.")
    options = config.to_dict()
    kind = "mamba2" if isinstance(config, Mamba2Config) else "mamba"
    kind = "falcon_mamba" if options.get("bcdt_norm_epsilon") else kind
    keys = {theirs: options[ours] for theirs, (ours, _) in FIELDS[kind].items()}
    keys |= {"vocab_size": config.embedding_rows, "expand": max(1, round(config.expand)), "hidden_act": "silu"}
    if kind == "mamba2":
        keys |= {"num_heads": config.nheads}
        architecture = "Mamba2ForCausalLM"
    else:
        keys |= {"time_step_rank": config.dt_width, "intermediate_size": config.d_inner}
        architecture = {"mamba": "MambaForCausalLM", "falcon_mamba": "FalconMambaForCausalLM"}[kind]
    named = {"architectures": [architecture], "model_type": kind, "tie_word_embeddings": header.tied is not False}
    return {**named, "dtype": dtype, **keys, **header.carried}


def _unsaid(config: BackboneConfig) -> list[str]:
    if isinstance(config, MambaConfig):
        return []
    only: Mapping[str, tuple] = {
        "rmsnorm": (True,),
        "norm_before_gate": (False,),
        "D_has_hdim": (False,),
        "d_ssm": (None, config.d_inner),
    }
    options = config.to_dict()
    return [f"{name}={options[name]!r}" for name, allowed in only.items() if options[name] not in allowed]
