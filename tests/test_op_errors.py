"""Bad input to an op is refused before any compute, with what came, what was wanted and the way out."""

from __future__ import annotations

import numpy as np
import pytest
import recurrences
from test_recurrence_laws import draw, float32

from dl_mamba.ops import gated_rms_norm, implementation_scope, last_implementation

F, I = "float32", "int32"
CASES = [
    ("ssd", {"x": np.ones((2, 5, 4), F)}, r"x has shape \(2, 5, 4\); \(batch, length, nheads, headdim\)"),
    ("ssd", {"x": np.ones((2, 5, 4, 4), I)}, "x has dtype int32; a floating-point dtype"),
    ("ssd", {"dt": np.ones((2, 6, 4), F)}, r"dt has shape \(2, 6, 4\); \(batch=2, length=5, nheads=4\)"),
    ("ssd", {"A": np.ones(3, F)}, "A has shape .*nheads=4"),
    ("ssd", {"D": np.ones((4, 3), F)}, "D has shape .*headdim=4"),
    ("ssd", {"C": np.ones((2, 5, 2, 9), F)}, "C has shape .*d_state=3"),
    (
        "ssd",
        {"B": np.ones((2, 5, 3, 3), F), "C": np.ones((2, 5, 3, 3), F)},
        r"ngroups=3 does not divide nheads=4.*\[1, 2, 4\]",
    ),
    ("ssd", {"initial_state": np.ones((3, 4, 4, 3), F)}, "initial_state has shape .*batch=2"),
    ("ssd", {"mask": np.ones((2, 4), bool)}, r"mask has shape \(2, 4\); \(batch=2, length=5\)"),
    ("ssd", {"segment_ids": np.ones((2, 5), F)}, "segment_ids has dtype float32; integer"),
    ("ssd", {"chunk_size": 0}, "chunk_size=0; an integer >= 1"),
    ("ssd", {"dt_limit": (2.0, 1.0)}, r"dt_limit=\(2.0, 1.0\)"),
    ("ssd", {"implementation": "fast"}, "'fast' is unknown; choose one of 'reference', 'chunked', 'triton' or 'auto'"),
    ("selective_scan", {"z": np.ones((2, 5, 7), F)}, "z has shape .*d_inner=6"),
    ("selective_scan", {"A": np.ones((5, 3), F)}, "A has shape .*d_inner=6"),
    ("selective_scan", {"D": 1.0}, "D=1.0 is a number; pass an array"),
    ("selective_scan", {"initial_state": np.ones((1, 6, 3), F)}, "initial_state has shape .*batch=2"),
    ("selective_scan", {"segment_ids": np.ones((2, 9), I)}, "segment_ids has shape .*length=5"),
    ("causal_conv1d", {"weight": np.ones((4, 5), F)}, "weight has shape .*channels=6"),
    ("causal_conv1d", {"bias": np.ones(5, F)}, "bias has shape .*channels=6"),
    ("causal_conv1d", {"initial_state": np.ones((2, 4, 6), F)}, "initial_state has shape .*d_conv - 1=3"),
    ("causal_conv1d", {"activation": "relu"}, "activation='relu' is unknown; choose 'silu' or None"),
]


@pytest.mark.parametrize(("name", "changes", "message"), CASES)
def test_an_argument_that_does_not_fit_is_named(name, changes, message):
    op = recurrences.ALL[name]
    with pytest.raises(ValueError, match=message):
        op.run(**{**float32(draw(op, length=5)), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.ones(5, F)}, "weight has shape .*channels=6"),
        ({"z": np.ones((2, 5), F)}, "z has shape"),
        ({"ngroups": 4}, r"ngroups=4 does not divide channels=6; choose one of \[1, 2, 3, 6\]"),
    ],
)
def test_an_argument_of_the_norm_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        gated_rms_norm(**{"x": np.ones((2, 6), F), "weight": np.ones(6, F), **changes})


def test_an_unknown_implementation_or_op_is_refused():
    with (
        pytest.raises(ValueError, match="'cuda' is unknown; choose one of 'reference', 'chunked' or 'triton'"),
        implementation_scope("cuda"),
    ):
        pass
    with pytest.raises(ValueError, match="op='attention'"):
        last_implementation("attention")


def test_a_scope_ends_with_its_block_even_after_an_error():
    with pytest.raises(RuntimeError), implementation_scope("reference"):
        raise RuntimeError
    gated_rms_norm(np.ones((1, 2), F), np.ones(2, F))
    assert last_implementation("gated_rms_norm") == "chunked"
