"""Laws of the presets: every file loads, names are ordered, and the released parameter counts are met exactly."""

import json
from pathlib import Path

import pytest

from dl_mamba import Mamba, Mamba2, variants
from dl_mamba.config import Mamba2Config, MambaConfig

FILES = sorted(Path(variants.__file__).parent.glob("*.toml"))

RELEASED = {  # embedding rows (the padded vocabulary), layers, d_model, and weights with the head tied to the embedding
    "mamba-130m": (50280, 24, 768, 129_135_360),
    "mamba-370m": (50280, 48, 1024, 371_516_416),
    "mamba-790m": (50280, 48, 1536, 793_204_224),
    "mamba-1.4b": (50280, 48, 2048, 1_372_178_432),
    "mamba-2.8b": (50280, 64, 2560, 2_768_345_600),
    "mamba2-130m": (50288, 24, 768, 128_989_632),
    "mamba2-370m": (50288, 48, 1024, 368_346_624),
    "mamba2-780m": (50288, 48, 1536, 780_161_280),
    "mamba2-1.3b": (50288, 48, 2048, 1_343_757_312),
    "mamba2-2.7b": (50288, 64, 2560, 2_702_599_680),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_size_has_its_published_number_of_parameters(name):
    config = variants.load(name)
    assert (config.embedding_rows, config.num_layers, config.d_model, config.num_parameters) == RELEASED[name]
    assert config.vocab_size == 50277


@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m"])
def test_one_layer_of_a_released_width_has_the_parameters_that_its_config_counts(name):
    model = (Mamba2 if name.startswith("mamba2") else Mamba).from_variant(name, vocab_size=1, num_layers=1)
    rows, layers, width, total = RELEASED[name]
    block = model.count_params() - 2 * width  # but for one embedding row and the final norm
    assert total == rows * width + layers * block + width


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_a_preset_that_loads(file):
    config = variants.load(file.stem)
    assert type(config) is {"mamba": MambaConfig, "mamba2": Mamba2Config}[file.stem.partition("-")[0]]
    assert file.stem in variants.names()


def test_names_are_ordered_by_family_and_size():
    assert set(variants.names()) == {file.stem for file in FILES}
    assert variants.names() == variants.names("mamba") + variants.names("mamba2")
    assert variants.names("mamba2") == ["mamba2-tiny", *(name for name in RELEASED if name.startswith("mamba2-"))]
    for family in ("mamba", "mamba2"):
        sizes = [variants.load(name).num_parameters for name in variants.names(family)]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", [*RELEASED, "mamba-tiny", "mamba2-tiny"])
def test_a_config_comes_back_from_json(name):
    config = variants.load(name)
    assert type(config)(**json.loads(json.dumps(config.to_dict()))) == config


def test_short_names_and_aliases_find_their_preset():
    assert variants.load("mamba-base") == variants.load("mamba-130m")
    assert variants.load("mamba2-base") == variants.load("mamba2-130m")
    assert variants.load("mamba2-1.4b") == variants.load("mamba2-1.3b")
    assert variants.load("mamba2-2.8b") == variants.load("mamba2-2.7b")
    assert variants.find("mamba", "1.4b") == variants.find("mamba", "mamba-1.4b")


@pytest.mark.parametrize("name", ["130m", "mamba-3b", "mamba2-", "mamba3-130m", ""])
def test_an_unknown_name_lists_the_valid_ones(name):
    with pytest.raises(ValueError, match="is unknown") as caught:
        variants.load(name)
    family = name.partition("-")[0]
    listed = variants.names(family) if family in ("mamba", "mamba2") else variants.names()
    assert all(valid in str(caught.value) for valid in listed)


def test_an_unknown_family_lists_the_valid_ones():
    with pytest.raises(ValueError, match=r"'rwkv' is unknown; choose one of \['mamba', 'mamba2'\]"):
        variants.names("rwkv")


def test_a_config_cannot_be_changed():
    with pytest.raises(AttributeError, match="cannot assign"):
        variants.load("mamba-tiny").d_model = 3
