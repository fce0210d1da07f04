"""Models of transformers as the other side of a comparison: small, every weight perturbed, in a folder of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

KINDS = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM),
    "mamba2": (transformers.Mamba2Config, transformers.Mamba2ForCausalLM),
    "falcon_mamba": (transformers.FalconMambaConfig, transformers.FalconMambaForCausalLM),
}
SIZE = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
SMALL = {
    "mamba": SIZE,
    "mamba2": {**SIZE, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "falcon_mamba": SIZE,
}


def theirs(kind: str, **options: Any) -> torch.nn.Module:
    """A model of transformers with noise on every weight, norms, biases, D and A_log too."""
    config_class, model_class = KINDS[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SMALL[kind], **options})).eval()
    return shaken(model)


def shaken(model: torch.nn.Module, size: float = 0.1) -> torch.nn.Module:
    """The model with noise added to every weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def saved(model: torch.nn.Module, folder: Path, **options: Any) -> Path:
    """The folder, with the model in it as transformers saves it."""
    model.save_pretrained(folder, **options)
    return folder


def outputs(model: torch.nn.Module, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Last hidden states and logits."""
    with torch.no_grad():
        hidden = model.backbone(torch.tensor(ids)).last_hidden_state
        return hidden.numpy(), model(torch.tensor(ids), use_cache=False).logits.numpy()


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Its tensors by name."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def in_mamba_ssm_names(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors of transformers under the names of mamba_ssm."""
    return {name.replace("embeddings", "embedding"): tensor for name, tensor in tensors.items()}


def same_tensors(came: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Names, dtypes and bits."""
    assert sorted(came) == sorted(wanted)
    for name, array in wanted.items():
        assert came[name].dtype == array.dtype, name
        np.testing.assert_array_equal(came[name], array, err_msg=name)


def from_safetensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of model.safetensors, read by the library of that name."""
    from safetensors.torch import load_file

    return {name: tensor.numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


def from_torch(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of pytorch_model.bin, read by torch, which maps the file."""
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True, mmap=True)
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def gradients(model: torch.nn.Module, ids: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Of the sum of the logits times `weights`, for each weight by its name."""
    loss = torch.sum(model(torch.tensor(ids), use_cache=False).logits * torch.tensor(weights))
    loss.backward()
    return {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def json_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of a checkpoint."""
    return json.loads((folder / name).read_text())


def with_keys(folder: Path, **keys: Any) -> Path:
    """The folder, its config changed."""
    (folder / "config.json").write_text(json.dumps({**json_of(folder), **keys}))
    return folder


def with_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The folder, its tensors changed by a function of the dict that holds them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def in_mamba_ssm(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], **keys: Any) -> Path:
    """A checkpoint of mamba_ssm: its config, its names, its .bin."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    torch.save(in_mamba_ssm_names(tensors), folder / "pytorch_model.bin")
    return folder


def mamba_ssm_checkpoint(folder: Path, family: str, **keys: Any) -> Path:
    """A checkpoint of mamba_ssm with the tensors of a model of transformers."""
    model = theirs(family, **({"tie_word_embeddings": True, "vocab_size": 32} if family == "mamba2" else {}))
    config = {"d_model": 16, "n_layer": 2, "vocab_size": 21, "ssm_cfg": {"d_state": 4}}
    if family == "mamba2":
        ssm = {"layer": "Mamba2", "d_state": 4, "headdim": 8, "ngroups": 2}
        config |= {"ssm_cfg": ssm, "pad_vocab_size_multiple": 16, "tie_embeddings": True, "attn_cfg": {}}
        config |= {"attn_layer_idx": [], "d_intermediate": 0, "rms_norm": True}
    return in_mamba_ssm(folder, config, model.state_dict(), **keys)
