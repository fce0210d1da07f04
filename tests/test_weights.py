"""Checkpoints: every format comes back bit for bit, and what does not fit is refused whole, with its reason."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
from pathlib import Path

import keras
import numpy as np
import published
import pytest
import torch
from harness import numpy
from model_harness import MODELS, SMALL_MODEL, mixer_options, own_path, perturb, small_model
from safetensors.torch import load_file, save_file

import dl_mamba
from dl_mamba.weights import Checkpoint, CheckpointError, Header, convert, hub, resolve, write_checkpoint
from dl_mamba.weights.containers import TorchFile
from dl_mamba.weights.tables import bare_names, weights_of

CLASS = {"mamba": "mamba", "mamba2": "mamba2", "falcon_mamba": "mamba"}
CONFIGS = [("mamba", {}), ("mamba2", {}), ("mamba2", {"tie_word_embeddings": True}), ("falcon_mamba", {})]
CONFIGS += [("mamba", {"intermediate_size": 40, "tie_word_embeddings": False, "use_bias": True})]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of transformers, mamba, small and tied."""
    return published.saved(published.theirs("mamba"), tmp_path / "checkpoint")


def json_of(folder, name="config.json"):
    return json.loads((folder / name).read_text())


def with_keys(folder, **keys):
    (folder / "config.json").write_text(json.dumps({**json_of(folder), **keys}))
    return folder


def with_tensors(folder, change):
    """The folder, its tensors changed by a function of the dict that holds them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def dtypes_of(model):
    return dict.fromkeys(weights_of(model.config, head=False), "float32")


def in_mamba_ssm(folder, config, tensors, **keys):
    """A checkpoint of mamba_ssm: its config, its names, its .bin."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    torch.save(published.in_mamba_ssm_names(tensors), folder / "pytorch_model.bin")
    return folder


def mamba_ssm_checkpoint(folder, family, **keys):
    """A checkpoint of mamba_ssm with the tensors of a model of transformers."""
    model = published.theirs(family, **({"tie_word_embeddings": True, "vocab_size": 32} if family == "mamba2" else {}))
    config = {"d_model": 16, "n_layer": 2, "vocab_size": 21, "ssm_cfg": {"d_state": 4}}
    if family == "mamba2":
        ssm = {"layer": "Mamba2", "d_state": 4, "headdim": 8, "ngroups": 2}
        config |= {"ssm_cfg": ssm, "pad_vocab_size_multiple": 16, "tie_embeddings": True, "attn_cfg": {}}
        config |= {"attn_layer_idx": [], "d_intermediate": 0, "rms_norm": True}
    return in_mamba_ssm(folder, config, model.state_dict(), **keys)


@pytest.mark.parametrize(("kind", "options"), CONFIGS)
def test_transformers_to_ours_and_back_is_bit_identical(kind, options, tmp_path):
    their = published.theirs(kind, **options)
    first, second = published.saved(their, tmp_path / "first"), tmp_path / "second"
    convert(Checkpoint(first), second, "hf")
    published.same_tensors(published.from_safetensors(second), published.from_safetensors(first))
    config_class, model_class = published.KINDS[kind]
    again, report = model_class.from_pretrained(second, output_loading_info=True)
    assert not any(report.values()), report
    published.same_tensors(published.state(again), published.state(their))
    assert config_class.from_pretrained(second).to_diff_dict() == config_class.from_pretrained(first).to_diff_dict()


@pytest.mark.parametrize(("kind", "options"), CONFIGS)
def test_a_model_saves_the_tensors_that_it_was_loaded_from(kind, options, tmp_path):
    their = published.theirs(kind, bos_token_id=3, eos_token_id=4, pad_token_id=5, **options)
    first, second = published.saved(their, tmp_path / "first"), tmp_path / "second"
    MODELS[CLASS[kind]].from_pretrained(first).save_pretrained(second)
    wanted = published.from_safetensors(first)
    wanted.pop("lm_head.weight", None)  # a backbone has none
    published.same_tensors(published.from_safetensors(second), wanted)
    assert json_of(second)["tie_word_embeddings"] is True
    assert [json_of(second)[f"{token}_token_id"] for token in ("bos", "eos", "pad")] == [3, 4, 5]


@pytest.mark.parametrize("family", MODELS)
def test_mamba_ssm_to_ours_and_back_is_bit_identical(family, tmp_path):
    first, second, third = mamba_ssm_checkpoint(tmp_path / "first", family), tmp_path / "second", tmp_path / "third"
    model = MODELS[family].from_pretrained(first)
    assert (model.config.vocab_size, model.config.embedding_rows) == (21, {"mamba": 24, "mamba2": 32}[family])
    model.save_pretrained(second, format="mamba_ssm")
    convert(Checkpoint(first), third, "mamba_ssm")
    for folder in (second, third):
        published.same_tensors(published.from_torch(folder), published.from_torch(first))
        assert Checkpoint(folder).config == Checkpoint(first).config
    tensors = torch.load(third / "pytorch_model.bin", weights_only=True, mmap=True)
    assert tensors["lm_head.weight"].data_ptr() == tensors["backbone.embedding.weight"].data_ptr()


@pytest.mark.parametrize("family", MODELS)
def test_every_format_and_naming_holds_the_same_model(family, tmp_path):
    first = mamba_ssm_checkpoint(tmp_path / "first", family)
    convert(Checkpoint(first), tmp_path / "hf", "hf")
    convert(Checkpoint(tmp_path / "hf"), tmp_path / "again", "mamba_ssm")
    published.same_tensors(published.from_torch(tmp_path / "again"), published.from_torch(first))
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    for i, rename in enumerate((lambda n: n.removeprefix("backbone."), lambda n: n.replace("embeddings", "embedding"))):
        other = tmp_path / str(i)
        other.mkdir()
        (other / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
        save_file({rename(name): tensor for name, tensor in tensors.items()}, other / "model.safetensors")
        for name, array in Checkpoint(other).tensors(head=True):
            np.testing.assert_array_equal(array, Checkpoint(first).read(name))


def test_codestral_is_read_from_its_params_and_consolidated_tensors(tmp_path):
    options = {"hidden_size": 128, "state_size": 128, "num_heads": 4, "head_dim": 64, "num_hidden_layers": 1}
    their = published.theirs("mamba2", **options)  # n_groups 2; the rest as the defaults of mamba_ssm
    params = {"dim": 128, "n_layers": 1, "vocab_size": 24, "n_groups": 2, "rms_norm": True, "residual_in_fp32": True}
    params |= {"fused_add_norm": True, "pad_vocab_size_multiple": 1, "tie_embeddings": False, "model_type": "mamba"}
    (tmp_path / "params.json").write_text(json.dumps(params))
    tensors = published.in_mamba_ssm_names(their.state_dict())
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "consolidated.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.tied, checkpoint.config.ngroups) == ("codestral", False, 2)
    convert(checkpoint, tmp_path / "hf", "hf")
    published.same_tensors(published.from_safetensors(tmp_path / "hf"), published.state(their))
    assert MODELS["mamba2"].from_pretrained(tmp_path).config == checkpoint.config


def test_shards_are_read_through_their_index(tmp_path):
    their = published.theirs("mamba2")
    folder = published.saved(their, tmp_path / "shards", max_shard_size="4KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    convert(Checkpoint(folder), tmp_path / "one", "hf")
    published.same_tensors(published.from_safetensors(tmp_path / "one"), published.state(their))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_exactly_into_either_precision(dtype, tmp_path):
    their = published.theirs("mamba").to(getattr(torch, dtype))
    folder = published.saved(their, tmp_path / "half")
    wanted = {name: tensor.float().numpy() for name, tensor in their.state_dict().items()}
    assert Checkpoint(folder).dtype == dtype
    for options, expected in (({}, "float32"), ({"dtype": dtype}, dtype), ({"dtype": f"mixed_{dtype}"}, "float32")):
        model = MODELS["mamba"].from_pretrained(folder, **options)
        for name, variable in model.pretrained_variables().items():
            weight = weights_of(model.config, head=False)[name]
            stored = weight.layout.to_ours(wanted[f"backbone.{weight.file_name}"], weight.shape)
            np.testing.assert_array_equal(numpy(variable.value), stored)
            kept = name.endswith(("A_log", "mixer/D", "dt_bias"))
            assert keras.backend.standardize_dtype(variable.dtype) == ("float32" if kept else expected)
        model.save_pretrained(tmp_path / f"{len(options)}{expected}")
        assert Checkpoint(tmp_path / f"{len(options)}{expected}").dtype == expected
        assert MODELS["mamba"].from_pretrained(tmp_path / f"{len(options)}{expected}").config == model.config


def test_a_conversion_narrows_all_but_what_must_not_round(folder, tmp_path):
    convert(Checkpoint(folder), tmp_path / "half", "hf", dtype="bfloat16")
    came, wanted = load_file(tmp_path / "half" / "model.safetensors"), load_file(folder / "model.safetensors")
    for name, tensor in wanted.items():
        kept = name.endswith(("A_log", ".D", "dt_proj.bias"))
        assert torch.equal(came[name], tensor if kept else tensor.to(torch.bfloat16)), name


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", MODELS)
def test_the_tables_name_every_weight_of_every_model_with_its_shape(family, seed):
    options = {**mixer_options(family, seed), "num_layers": 2, "vocab_size": 11}
    model = MODELS[family](**options)
    shapes = {own_path(model, weight): tuple(weight.shape) for weight in model.weights}
    assert {name: weight.shape for name, weight in weights_of(model.config, head=False).items()} == shapes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", MODELS)
def test_a_format_keeps_every_option_or_refuses_it(family, seed, tmp_path):
    options = {**mixer_options(family, seed), "num_layers": 2, "vocab_size": 11, "norm_epsilon": 1e-5}
    model = perturb(MODELS[family](**options))
    refused = 0
    for format in ("hf", "mamba_ssm"):
        try:
            model.save_pretrained(tmp_path / format, format=format)
        except CheckpointError as error:
            assert "cannot describe" in str(error)  # noqa: PT017 - one of the two outcomes
            refused += 1
            continue
        again = MODELS[family].from_pretrained(tmp_path / format)
        assert not dl_mamba.models.pretrained._differences(again.config, model.config)
        for came, wanted in zip(again.weights, model.weights, strict=True):
            np.testing.assert_array_equal(numpy(came.value), numpy(wanted.value))
    assert refused < 2


@pytest.mark.parametrize("form", [[0.05, math.inf], [0.05, {"__float__": "Infinity"}]])
def test_an_infinite_step_size_is_read_in_every_form_of_json(form, tmp_path):
    folder = published.saved(published.theirs("mamba2"), tmp_path)
    assert Checkpoint(with_keys(folder, time_step_limit=form)).config.dt_limit == (0.05, math.inf)


def test_the_gate_of_transformers_stands_before_the_norm_whatever_its_config_says(tmp_path):
    folder = published.saved(published.theirs("mamba2"), tmp_path / "hf")
    assert Checkpoint(with_keys(folder, norm_before_gate=True, rms_norm=True)).config.norm_before_gate is False
    ssm = {"layer": "Mamba2", "d_state": 4, "headdim": 8, "ngroups": 2, "norm_before_gate": True}
    assert Checkpoint(mamba_ssm_checkpoint(tmp_path / "ssm", "mamba2", ssm_cfg=ssm)).config.norm_before_gate is True


@pytest.mark.parametrize(
    ("said", "head", "tied"),
    [(True, "none", True), (True, "equal", True), (None, "none", True), (None, "equal", True), (None, "other", False)]
    + [(False, "equal", False), (False, "other", False)],
)
def test_the_head_is_tied_if_the_config_says_so_or_else_the_tensors(said, head, tied, folder):
    config = {key: value for key, value in json_of(folder).items() if key != "tie_word_embeddings"}
    (folder / "config.json").write_text(json.dumps(config if said is None else {**config, "tie_word_embeddings": said}))

    def change(tensors):
        if head != "none":
            tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"].clone() + (head == "other")

    checkpoint = Checkpoint(with_tensors(folder, change))
    checkpoint.check()
    assert checkpoint.tied is tied
    assert ("lm_head/kernel" in checkpoint.weights(head=True)) is not tied
    assert "lm_head/kernel" not in checkpoint.weights(head=False)


def test_the_vocabulary_is_the_rows_of_the_embedding(folder, tmp_path):
    assert Checkpoint(with_keys(folder, vocab_size=20)).config.vocab_size == 24
    ssm = Checkpoint(mamba_ssm_checkpoint(tmp_path / "ssm", "mamba", vocab_size=11)).config
    assert (ssm.vocab_size, ssm.embedding_rows) == (24, 24)


def test_a_variant_takes_published_weights_of_its_size_only(tmp_path):
    perturb(MODELS["mamba"].from_variant("tiny")).save_pretrained(tmp_path)
    model = MODELS["mamba"].from_variant("tiny", weights=tmp_path, gradient_checkpointing=True, dt_min=0.01)
    for came, wanted in zip(model.weights, MODELS["mamba"].from_pretrained(tmp_path).weights, strict=True):
        np.testing.assert_array_equal(numpy(came.value), numpy(wanted.value))
    with pytest.raises(CheckpointError, match="another model: d_state=8 here, 16 there"):
        MODELS["mamba"].from_variant("tiny", weights=tmp_path, d_state=8)
    with pytest.raises(CheckpointError, match="embedding_rows=100 here, 256 there"):
        MODELS["mamba"].from_variant("tiny", 100, weights=tmp_path)
    with pytest.raises(CheckpointError, match="describes a Mamba; Mamba2 cannot load it"):
        MODELS["mamba2"].from_pretrained(tmp_path)


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
