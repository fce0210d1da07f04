"""Checkpoints: every format comes back bit for bit, on every backend and in every dtype."""

from __future__ import annotations

import json
import math

import keras
import numpy as np
import published
import pytest
import torch
from harness import numpy
from model_harness import MODELS, mixer_options, own_path, perturb
from published import json_of, mamba_ssm_checkpoint, with_keys, with_tensors
from safetensors.torch import load_file, save_file

import dl_mamba
from dl_mamba.weights import Checkpoint, CheckpointError, convert
from dl_mamba.weights.tables import weights_of

CLASS = {"mamba": "mamba", "mamba2": "mamba2", "falcon_mamba": "mamba"}
CONFIGS = [("mamba", {}), ("mamba2", {}), ("mamba2", {"tie_word_embeddings": True}), ("falcon_mamba", {})]
CONFIGS += [("mamba", {"intermediate_size": 40, "tie_word_embeddings": False, "use_bias": True})]


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
