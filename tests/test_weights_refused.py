"""Checkpoints that do not fit are refused whole, with the reason, before anything is loaded or written."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from model_harness import MODELS, SMALL_MODEL, small_model
from published import json_of, mamba_ssm_checkpoint, with_keys, with_tensors

from dl_mamba.weights import Checkpoint, CheckpointError, Header, convert, hub, resolve, write_checkpoint
from dl_mamba.weights.containers import TorchFile
from dl_mamba.weights.tables import bare_names, weights_of


def dtypes_of(model):
    return dict.fromkeys(weights_of(model.config, head=False), "float32")


def test_every_tensor_that_does_not_fit_is_listed_and_nothing_is_loaded(folder):
    def change(tensors):
        tensors["backbone.layers.1.mixer.extra"] = torch.zeros(1)
        del tensors["backbone.layers.0.mixer.D"]
        tensors["backbone.norm_f.weight"] = torch.zeros(3)
        tensors["backbone.layers.0.norm.weight"] = torch.zeros(16, dtype=torch.int32)

    with_tensors(folder, change)
    with pytest.raises(CheckpointError) as caught:
        MODELS["mamba"].from_pretrained(folder)
    for part in (
        "nothing was loaded",
        "layers.0.mixer.D [32] is missing",
        "norm_f.weight has shape [3] instead of [16]",
    ):
        assert part in str(caught.value)
    assert "layers.1.mixer.extra is no weight of this config" in str(caught.value)
    assert "layers.0.norm.weight has dtype I32" in str(caught.value)
    model = MODELS["mamba"](**{**SMALL_MODEL["mamba"], "vocab_size": 24, "d_model": 16})
    before = model.get_weights()
    with pytest.raises(CheckpointError):
        model.assign_pretrained(Checkpoint(folder))
    for came, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(came, wanted)


BAD_KEYS = [
    ({"model_type": "jamba"}, "describes the model type 'jamba'; one of"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not implemented (only 'silu' or 'swish')"),
    ({"quantization_config": {"bits": 4}, "attn_layers": [1]}, "attn_layers=[1] is unknown"),
    ({"hidden_size": "16"}, "d_model='16'; an integer >= 1"),
    ({"use_bias": "false"}, "bias='false' is of the wrong type"),
    ({"layer_norm_epsilon": None, "expand": "two", "intermediate_size": None}, "config.json"),
]


@pytest.mark.parametrize(("keys", "message"), BAD_KEYS)
def test_a_config_that_is_not_what_we_build_is_refused(keys, message, folder):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(with_keys(folder, **keys))
    assert "config.json" in str(caught.value)
    assert message in str(caught.value)


BAD_SSM_KEYS = [
    ({"attn_layer_idx": [9, 18], "d_intermediate": 4096}, "attn_layer_idx=[9, 18] is not implemented"),
    ({"rms_norm": False}, "rms_norm=False is not implemented"),
    ({"ssm_cfg": {"layer": "Mamba3"}}, "describes the layer 'Mamba3'"),
    ({"ssm_cfg": {"d_state": 4, "rank": 4}}, "rank=4 is unknown"),
    ({"ssm_cfg": [4]}, "ssm_cfg=[4]; an object is needed"),
]


@pytest.mark.parametrize(("keys", "message"), BAD_SSM_KEYS)
def test_a_config_of_mamba_ssm_that_is_not_what_we_build_is_refused(keys, message, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(mamba_ssm_checkpoint(tmp_path / "ssm", "mamba", **keys))
    assert message in str(caught.value)


BAD_SAFETENSORS = {
    "cut short in its tensors": lambda data: data[:-7],
    "longer than it says": lambda data: data + b"more",
    "cut short in its header": lambda data: data[:40],
    "empty": lambda data: b"",
    "another kind of file": lambda data: b"PK" + data,
}


@pytest.mark.parametrize("damage", BAD_SAFETENSORS)
def test_a_damaged_safetensors_file_is_named_with_its_reason(damage, folder):
    file = folder / "model.safetensors"
    file.write_bytes(BAD_SAFETENSORS[damage](file.read_bytes()))
    with pytest.raises(CheckpointError, match="model.safetensors is damaged, or is no safetensors file: .*header"):
        MODELS["mamba"].from_pretrained(folder)


class Payload:
    def __reduce__(self):
        return os.system, ("touch owned",)


BAD_PICKLES = {
    "code": (lambda tensors: {**tensors, "x": Payload()}, r"it names \w+\.system, which is no tensor"),
    "an object": (lambda tensors: {**tensors, "x": Path("x")}, r"it names pathlib\.\w+, which is no tensor"),
    "a number": (lambda tensors: {**tensors, "step": 3}, "holds 'step', a int"),
    "a nested dict": (lambda tensors: {"model": tensors}, "holds 'model', a dict"),
    "a list": (lambda tensors: list(tensors.values()), "holds a list"),
}


@pytest.mark.parametrize("content", BAD_PICKLES)
def test_a_pickle_of_anything_but_tensors_is_refused_and_runs_nothing(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = mamba_ssm_checkpoint(tmp_path / "ssm", "mamba")
    change, message = BAD_PICKLES[content]
    torch.save(change(torch.load(folder / "pytorch_model.bin")), folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=f"pytorch_model.bin .*{message}") as caught:
        Checkpoint(folder)
    assert "weights_only" not in str(caught.value)  # torch's advice
    assert not (tmp_path / "owned").exists()


def test_a_damaged_or_old_pickle_is_named_with_its_reason(tmp_path):
    folder = mamba_ssm_checkpoint(tmp_path / "ssm", "mamba")
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b"_rebuild_tensor_v2")] ^= 0xFF
    for data in (whole[:-50], b"", pickle.dumps({"a": 1}), damaged):
        file.write_bytes(data)
        with pytest.raises(
            CheckpointError, match=r"model\.bin is cut short, older than torch 1\.6, or no plain file of"
        ):
            Checkpoint(folder)


def test_tensors_of_torch_are_read_in_any_layout(tmp_path):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {"a": base.t(), "b": base[1:3, ::2], "c": base.to(torch.bfloat16).t(), "d": torch.nn.Parameter(base)}
    torch.save({**tensors, "e": base.to_sparse()}, tmp_path / "x.bin")
    file = TorchFile(tmp_path / "x.bin")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(name).astype("float32"), tensor.detach().float().numpy())
    with pytest.raises(CheckpointError, match=r"x\.bin: e cannot be read: .*Sparse"):
        file.read("e")


@pytest.mark.parametrize(
    ("format", "library", "advice"),
    [("hf", "safetensors", r'library safetensors: pip install "dl-mamba\[hf\]"')]
    + [("mamba_ssm", "torch", r'library torch: pip install "dl-mamba\[torch\]", or convert the file')],
)
def test_a_missing_library_is_named_by_its_extra_and_nothing_is_made(format, library, advice, tmp_path, monkeypatch):
    model = small_model("mamba")
    model.save_pretrained(tmp_path / "there", format=format)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(CheckpointError, match=advice):
        Checkpoint(tmp_path / "there")
    with pytest.raises(CheckpointError, match=advice):
        write_checkpoint(tmp_path / "new", format, Header(model.config, tied=True), dtypes_of(model), None)
    assert not (tmp_path / "new").exists()


def test_a_folder_without_a_checkpoint_says_what_is_missing(tmp_path, folder):
    with pytest.raises(CheckpointError, match=r"holds none of config\.json, params\.json"):
        Checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds none of model\.safetensors, .*pytorch_model\.bin"):
        Checkpoint(folder)


def test_an_index_that_lies_is_refused(tmp_path):
    folder = published.saved(published.theirs("mamba2"), tmp_path, max_shard_size="4KB")
    index = json_of(folder, "model.safetensors.index.json")
    name, file = next(iter(index["weight_map"].items()))

    def check(weight_map, message):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            Checkpoint(folder)

    check({**index["weight_map"], name: "elsewhere.safetensors"}, "not beside it: elsewhere.safetensors")
    check({**index["weight_map"], name: f"../{folder.name}/{file}"}, "not beside it")
    check({**index["weight_map"], "backbone.more": file}, "where these tensors are: backbone.more")
    check({n: f for n, f in index["weight_map"].items() if n != name}, "where these tensors are")
    check([], "has no weight_map")


def test_two_names_of_one_weight_are_refused():
    with pytest.raises(CheckpointError, match=r"backbone\.embedding\.weight and backbone\.embeddings\.weight"):
        bare_names(["backbone.embedding.weight", "backbone.embeddings.weight"], "x")


def test_a_tied_head_that_differs_is_refused(folder):
    with_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["backbone.embeddings.weight"] + 1}))
    with pytest.raises(CheckpointError, match="ties the head to the embedding, but .* differ"):
        Checkpoint(folder)


def test_a_folder_is_written_whole_or_left_as_it_was(tmp_path, folder):
    model = small_model("mamba")
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors of another checkpoint; choose an empty"):
        model.save_pretrained(folder, format="mamba_ssm")
    with pytest.raises(CheckpointError, match="format='pt' is unknown; choose one of"):
        model.save_pretrained(tmp_path / "new", format="pt")
    assert not (tmp_path / "new").exists()
    before = sorted(path.name for path in folder.iterdir())

    def fail(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(folder, "hf", Header(model.config, tied=True), dtypes_of(model), fail)
    assert sorted(path.name for path in folder.iterdir()) == before
    Checkpoint(folder).check()
    model.save_pretrained(folder)
    assert Checkpoint(folder).config == model.config
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
    with pytest.raises(CheckpointError, match="choose another folder"):
        convert(Checkpoint(folder), folder, "hf")
    with pytest.raises(CheckpointError, match="dtype='int8' is unknown"):
        convert(Checkpoint(folder), tmp_path / "new", "hf", dtype="int8")


def test_a_format_says_what_it_cannot_describe():
    falcon = small_model("mamba", bcdt_norm_epsilon=1e-6)
    with pytest.raises(CheckpointError, match=r"mamba_ssm cannot describe bcdt_norm_epsilon=1e-06"):
        falcon.save_pretrained("never", format="mamba_ssm")
    options = {"norm_before_gate": True, "D_has_hdim": True, "d_ssm": 8, "headdim": 4}
    with pytest.raises(CheckpointError, match="norm_before_gate=True, D_has_hdim=True, d_ssm=8; save with format='ma"):
        small_model("mamba2", **options).save_pretrained("never")
    assert not Path("never").exists()


class NoNetwork:
    def list_repo_files(self, *args, **options):
        raise ConnectionError("no route to host")


def test_without_a_network_the_error_says_what_is_cached_and_how_to_fetch(tmp_path, monkeypatch, folder):
    import huggingface_hub

    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub, "HfApi", NoNetwork)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    fetched, scanned = huggingface_hub.snapshot_download, huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: fetched(*a, cache_dir=cache, **k))
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scanned(cache))
    with pytest.raises(CheckpointError, match="no route to host.*cache holds: nothing.*hf download owner/model"):
        MODELS["mamba"].from_pretrained("owner/model")
    repository = cache / "models--owner--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / "c0ffee")
    assert MODELS["mamba"].from_pretrained("owner/small").config.d_model == 16
    assert MODELS["mamba"].from_pretrained("owner/small", offline=True).config.d_model == 16
    with pytest.raises(CheckpointError, match="offline=True.*cache holds: owner/small"):
        MODELS["mamba"].from_pretrained("owner/model", offline=True)
    with pytest.raises(CheckpointError, match="no/such/folder is neither a folder nor the name of a repository"):
        resolve("no/such/folder")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r'needs huggingface_hub: pip install "dl-mamba\[hf\]"'):
        MODELS["mamba"].from_pretrained("owner/model")


def test_of_several_forms_of_the_weights_one_is_fetched_safetensors_first():
    both = ["config.json", "pytorch_model.bin", "model.safetensors", "README.md", "tokenizer.json"]
    assert "model.safetensors" in hub._chosen(both)
    assert not any(pattern.startswith("pytorch_model") for pattern in hub._chosen(both))
    assert "pytorch_model.bin" in hub._chosen(["config.json", "pytorch_model.bin"])
    shards = hub._chosen(["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"])
    assert {"model.safetensors.index.json", "model-*.safetensors"} <= set(shards)
