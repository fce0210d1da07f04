"""What happens to kernels that are wrong; here the portable program stands for the kernels."""

import importlib
import inspect
import json
import re

import numpy as np
import pytest
from keras import ops

from dl_mamba.ops import last_implementation
from dl_mamba.ops.kernels import availability
from dl_mamba.ops.kernels.self_check import check_kernels
from dl_mamba.pipelines import environment
from dl_mamba.pipelines.environment import OPS, kernels

SIZES = (2, 5, 64)


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A GPU on which all kernels are right."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(availability, "unavailable", lambda: None)
    monkeypatch.setattr(environment, "unavailable", lambda: None)
    monkeypatch.setattr(availability, "on_accelerator", lambda _: True)
    monkeypatch.setattr(availability, "interpreted", lambda: True)
    monkeypatch.setattr(availability, "installation", lambda: "this GPU")
    for op in (*OPS, "linear_cross_entropy"):
        replace(monkeypatch, op)
    availability.rejections.cache_clear()
    yield
    availability.rejections.cache_clear()


def replace(monkeypatch, op, change=lambda result: result):
    """Make the portable program, with a changed result, the kernels of an op."""
    table = importlib.import_module(f"dl_mamba.ops.{op}").IMPLEMENTATIONS
    portable = table["chunked"]

    def run(*args):
        given = inspect.signature(portable).bind(*args).arguments
        if given.get("initial_state", 0) is None:
            shapes = {"selective_scan": (64, 16), "ssd": (*given["x"].shape[2:], 64), "causal_conv1d": (3, 64)}
            given["initial_state"] = ops.zeros((given["x"].shape[0], *shapes[op]), dtype=given["x"].dtype)
        return change(portable(*given.values()))

    monkeypatch.setitem(table, "triton", run)


def ssd(**options):
    x, A, B = np.ones((1, 3, 2, 4), "float32"), -np.ones(2, "float32"), np.ones((1, 3, 1, 64), "float32")
    return importlib.import_module("dl_mamba.ops.ssd").ssd(x, x[..., 0], A, B, B, **options)


def without_one_token(y):
    """Zeros in the place of the second token."""
    return ops.concatenate([y[:, :1], ops.zeros_like(y[:, :1]), y[:, 2:]], axis=1)


def halved(y):
    """The same number with half of its gradient."""
    return 0.5 * (y + ops.stop_gradient(y))


def test_right_kernels_are_used(tmp_path):
    assert check_kernels(*SIZES) == {}
    assert json.loads((tmp_path / "dl_mamba_kernels.json").read_text()) == {"this GPU": {}}
    ssd()
    assert last_implementation("ssd") == "triton"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_one_token, "the result is off by"),
        (lambda y: y + float("nan"), "the result is off by nan; 1e-03 is allowed"),
        (halved, "the gradient of A is off by 2.5e-01; 1e-03 is allowed"),
    ],
)
def test_wrong_kernels_are_not_used_any_more(change, reason, monkeypatch, tmp_path):
    (tmp_path / "dl_mamba_kernels.json").write_text('{"another GPU": {"selective_scan": "wrong"}}')
    replace(monkeypatch, "ssd", lambda result: (change(result[0]), result[1]))
    (reason,), told = check_kernels(*SIZES).values(), reason
    assert reason.startswith(f"with float32 inputs {told}")
    ssd()
    assert last_implementation("ssd") == "chunked"
    with pytest.raises(ValueError, match=re.escape(f"'triton' of ssd cannot run: {reason}")):
        ssd(implementation="triton")
    assert kernels() == f"available; ssd is not used: {reason}"
    kept = json.loads((tmp_path / "dl_mamba_kernels.json").read_text())
    assert kept == {"another GPU": {"selective_scan": "wrong"}, "this GPU": {"ssd": reason}}
    assert [path.name for path in tmp_path.iterdir()] == ["dl_mamba_kernels.json"]


def test_kernels_that_are_right_again_are_used_again(monkeypatch):
    availability.reject({"ssd": "wrong"})
    ssd()
    assert last_implementation("ssd") == "chunked"
    assert check_kernels(*SIZES) == {}
    ssd()
    assert last_implementation("ssd") == "triton"


def test_a_broken_file_rejects_nothing_and_a_warning_names_it(tmp_path, caplog):
    (tmp_path / "dl_mamba_kernels.json").write_text("{")
    assert availability.rejections() == {}
    assert "dl_mamba_kernels.json is no JSON" in caplog.text
