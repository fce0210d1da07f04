"""The config of the authors' package mamba_ssm, in both directions, and Codestral's params.json, which is akin to it.

Our names are theirs, so a key of `ssm_cfg` is a field; absent keys have the defaults of their layers, which are ours.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from dl_mamba.config import BackboneConfig, Mamba2Config, MambaConfig
from dl_mamba.weights.errors import CheckpointError
from dl_mamba.weights.header import Header, build, check_keys

SHARED_SSM = ("d_state", "d_conv", "expand", "bias", "conv_bias", "dt_min", "dt_max", "dt_init_floor")
SSM_KEYS = {
    "Mamba1": (*SHARED_SSM, "dt_rank", "dt_init", "dt_scale"),
    "Mamba2": (
        *SHARED_SSM,
        "headdim",
        "ngroups",
        "chunk_size",
        "dt_limit",
        "A_init_range",
        "conv_init",
        "d_ssm",
        "D_has_hdim",
        "rmsnorm",
        "norm_before_gate",
    ),
}
CLASSES = {"Mamba1": MambaConfig, "Mamba2": Mamba2Config}
KEYS = ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple", "residual_in_fp32", "tie_embeddings", "ssm_cfg")
FIXED = {
    "rms_norm": (True,),  # LayerNorm is not built
    "d_intermediate": (0,),  # no MLP between the mixers
    "attn_layer_idx": ([], None),  # no attention
    "attn_cfg": ({}, None),
}
IGNORED = {"fused_add_norm": "a choice of implementation"}
SSM_FIXED = {"activation": ("swish", "silu"), "learnable_init_states": (False,), "process_group": (None,)}
SSM_IGNORED = {
    "use_fast_path": "a choice of implementation",
    "use_mem_eff_path": "a choice of implementation",
    "sequence_parallel": "how weights lie on several devices",
    "layer": "chose the table",
}
PADDING = 8  # their default of pad_vocab_size_multiple
EPSILON = 1e-5  # written in their code, in no config

PARAMS = {"dim": "d_model", "n_layers": "n_layer"}
PARAMS_KEPT = ("vocab_size", "pad_vocab_size_multiple", "residual_in_fp32", "tie_embeddings", "rms_norm")


def read(path: Path, keys: dict[str, Any], rows: int) -> Header:
    """The model that a config of mamba_ssm describes.

    Args:
        path: the file, for errors.
        keys: its content.
        rows: of the embedding tensor; the vocabulary, unless vocab_size rounded up gives just as many.

    Raises:
        CheckpointError: a hybrid, another layer, or a key or value that is not implemented.
    """
    check_keys(path, keys, KEYS, FIXED, IGNORED)
    ssm = keys.get("ssm_cfg") or {}
    if not isinstance(ssm, dict):
        raise CheckpointError(f"{path}: ssm_cfg={ssm!r}; an object is needed.")
    layer = ssm.get("layer", "Mamba1")
    if not isinstance(layer, str) or layer not in SSM_KEYS:
        raise CheckpointError(f"{path} describes the layer {layer!r}; one of {list(SSM_KEYS)} is needed.")
    check_keys(path, ssm, SSM_KEYS[layer], SSM_FIXED, SSM_IGNORED)
    missing = [key for key in ("d_model", "n_layer") if key not in keys]
    if missing:
        raise CheckpointError(f"{path} lacks {' and '.join(missing)}; it describes no model of mamba_ssm.")
    options = {name: value for name, value in ssm.items() if name in SSM_KEYS[layer]}
    options |= {"d_model": keys["d_model"], "num_layers": keys["n_layer"], "norm_epsilon": EPSILON}
    options |= {"residual_in_fp32": keys.get("residual_in_fp32", True), **_vocabulary(keys, rows)}
    return Header(build(path, CLASSES[layer], options), keys.get("tie_embeddings"))


def _vocabulary(keys: dict[str, Any], rows: int) -> dict[str, int]:
    size, multiple = keys.get("vocab_size"), keys.get("pad_vocab_size_multiple", PADDING)
    whole = all(isinstance(value, int) and value > 0 for value in (size, multiple))
    if whole and -(-size // multiple) * multiple == rows:
        return {"vocab_size": size, "pad_vocab_size_multiple": multiple}
    return {"vocab_size": rows, "pad_vocab_size_multiple": 1}


def read_params(path: Path, keys: dict[str, Any], rows: int) -> Header:
    """The model that Codestral's params.json describes: Mamba-2 with the defaults of mamba_ssm.

    Raises:
        CheckpointError: a key or value that is not implemented.
    """
    known = (*PARAMS, *PARAMS_KEPT, "n_groups", *IGNORED)
    check_keys(path, keys, known, {"model_type": ("mamba", "mamba2")}, ())
    renamed = {PARAMS.get(key, key): value for key, value in keys.items() if key in (*PARAMS, *PARAMS_KEPT)}
    ssm = {"layer": "Mamba2"} | ({"ngroups": keys["n_groups"]} if "n_groups" in keys else {})
    return read(path, {**renamed, "ssm_cfg": ssm}, rows)


def write(header: Header) -> dict[str, Any]:
    """The config of mamba_ssm for a model.

    Raises:
        CheckpointError: lists the options that mamba_ssm has no words for.
    """
    config = header.config
    unsaid = _unsaid(config)
    if unsaid:
        raise CheckpointError(f"mamba_ssm cannot describe {', '.join(unsaid)}; save with format='hf'.")
    layer = "Mamba2" if isinstance(config, Mamba2Config) else "Mamba1"
    options = config.to_dict()
    defaults = {field.name: field.default for field in fields(config)}
    ssm = {} if layer == "Mamba1" else {"layer": layer}  # the first release knows no key "layer"
    for name in SSM_KEYS[layer]:
        if getattr(config, name) != defaults[name]:
            ssm[name] = options[name]
    return {
        "d_model": config.d_model,
        "n_layer": config.num_layers,
        "vocab_size": config.vocab_size,
        "ssm_cfg": ssm,
        "rms_norm": True,
        "residual_in_fp32": config.residual_in_fp32,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": config.pad_vocab_size_multiple,
        "tie_embeddings": header.tied is not False,
    }


def _unsaid(config: BackboneConfig) -> list[str]:
    unsaid = [] if config.norm_epsilon == EPSILON else [f"norm_epsilon={config.norm_epsilon!r}"]
    if getattr(config, "bcdt_norm_epsilon", None) is not None:
        unsaid.append(f"bcdt_norm_epsilon={config.bcdt_norm_epsilon!r}")
    if int(config.expand * config.d_model) != config.d_inner:  # they cut the product where we round it
        unsaid.append(f"expand={config.expand!r}")
    return unsaid
