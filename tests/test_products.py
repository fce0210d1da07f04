"""The products of torch on a CPU, those by oneDNN whatever processor runs the test."""

from __future__ import annotations

import numpy as np
import pytest
import recurrences
from harness import BACKEND, assert_laws_hold, values_and_gradients
from test_next_token_loss import drawn
from test_next_token_loss import run as losses
from test_recurrence_laws import draw, float32, oracle_and_its_gradients, run

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="XLA has its own products; only torch asks MKL")


@pytest.fixture
def asked(monkeypatch):
    """The number of products that oneDNN was asked for, however small."""
    from dl_mamba.ops import products

    if not products._has_both():
        pytest.skip("this build of torch lacks MKL or oneDNN")
    counted, matmul = [], products.matmul
    monkeypatch.setattr(products, "on_amd", lambda: True)
    monkeypatch.setattr(products, "WORTH_A_CALL", 1)
    monkeypatch.setattr(products, "matmul", lambda a, b: counted.append(products._is_faster(a, b)) or matmul(a, b))
    return counted


@pytest.mark.parametrize("rows", [(1,), (1, 1), (5,), (2, 3)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_and_its_gradients_equal_those_in_float64(rows, turned, asked):
    from dl_mamba.ops.numerics import product

    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(*rows, 7)), "w": rng.normal(size=(4, 7) if turned else (7, 4))}
    function = lambda x, w: (product(x, w.mT if turned else w),)  # noqa: E731
    assert_laws_hold(values_and_gradients(function, float32(arrays)), values_and_gradients(function, arrays))
    assert asked == [True] * 3 + [False]  # float64 is not oneDNN's, and has torch's own gradients


@pytest.mark.parametrize("rows", [1, 8, 9])
def test_few_rows_times_many_columns_equal_the_product_in_float64(rows, asked):
    from dl_mamba.ops.numerics import product

    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(rows, 7)), "w": rng.normal(size=(24, 7))}
    function = lambda x, w: (product(x, w.mT),)  # noqa: E731
    assert_laws_hold(values_and_gradients(function, float32(arrays)), values_and_gradients(function, arrays))
    assert any(asked) == (rows == 9)  # eight rows go to all cores in eight parts of the columns


@pytest.mark.parametrize(("amd", "rows", "kernel"), [(False, 6, "mm"), (False, 7, "bmm"), (True, 1, "bmm")])
def test_few_rows_are_one_product_where_mkl_gives_them_to_all_cores(amd, rows, kernel, monkeypatch):
    import torch

    from dl_mamba.ops import products

    monkeypatch.setattr(products, "on_amd", lambda: amd)
    monkeypatch.setattr(products, "WORTH_A_CALL", 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        products.product(torch.ones(rows, 7), torch.ones(24, 7).mT)
    assert {event.key for event in profile.key_averages()} & {"aten::mm", "aten::bmm"} == {f"aten::{kernel}"}


def test_a_gradient_that_nobody_wants_is_not_computed(asked):
    import torch

    from dl_mamba.ops.numerics import product

    x, w = torch.ones(2, 3, requires_grad=True), torch.ones(3, 4)
    product(x, w).sum().backward()
    assert (x.grad == 4.0).all()
    assert asked == [True] * 2
    product(x.detach(), w.requires_grad_()).sum().backward()
    assert (w.grad == 2.0).all()
    assert asked == [True] * 4


@pytest.mark.parametrize("chunk_size", [4, 21, 64])
@pytest.mark.parametrize(("batch", "ngroups"), [(1, 1), (2, 1), (1, 2)])
def test_ssd_equals_the_float64_recurrence(batch, ngroups, chunk_size, asked):
    arrays = draw(recurrences.SSD, ngroups=ngroups, batch=batch)
    came = run(recurrences.SSD, float32(arrays), chunk_size=chunk_size)
    assert_laws_hold(came, oracle_and_its_gradients(recurrences.SSD, arrays))
    assert any(asked) == (batch == ngroups == 1)


def test_losses_from_the_embeddings_equal_those_in_float64(asked):
    arrays, targets = drawn()
    assert_laws_hold(losses(arrays, targets, "chunked"), losses(*drawn(dtype="float64"), "reference"))
    assert asked == [True] * 4


@pytest.mark.parametrize(("name", "wanted"), [("AMD EPYC", True), ("AMD Ryzen 9 9950X", True), ("Intel Xeon", False)])
def test_the_processor_and_the_user_decide(name, wanted, monkeypatch):
    import torch

    from dl_mamba.ops import products

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    available = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    products.on_amd.cache_clear()
    large, small = torch.ones(1024, 1024), torch.ones(2, 2)
    try:
        assert products._is_faster(large, large) == (wanted and available)
        assert not products._is_faster(small, small)
        assert not products._is_faster(large.double(), large.double())
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        assert not products._is_faster(large, large)
    finally:
        products.on_amd.cache_clear()
