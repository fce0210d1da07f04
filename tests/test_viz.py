"""The pictures are true: the hidden attention matrix gives the layer's own output, the states are its own states."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from harness import assert_close, numpy
from model_harness import BLOCKS, FAMILIES, SMALL_MIXER, perturb, place, small_mixer

import dl_mamba
from dl_mamba import viz

D = 6  # width of the small mixers
# summed in float64 from float32 step sizes; the layer's own float32 sums are within 1e-5 of it
EXACT = 1e-5
SPECIAL = {
    "mamba": [{"bcdt_norm_epsilon": 1e-5}, {"d_state": 1}],
    "mamba2": [
        {"rmsnorm": False, "ngroups": 1},
        {"D_has_hdim": True, "dt_limit": (0.01, 0.5)},
        {"d_ssm": 6, "ngroups": 1},
    ],
}
CASES = [(family, options) for family in FAMILIES for options in ({}, *SPECIAL[family])]


def inputs(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def ragged():
    """Rows of 7, 4 and 1 tokens with padding between them, in documents, as (x, mask, segment_ids)."""
    x, mask = place([inputs(n, D, seed=n) for n in (7, 4, 1)], 9, "between", filler=50.0)
    return x, mask, np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3]] * 3, "int32")


@pytest.mark.parametrize(("family", "options"), CASES)
def test_the_matrix_in_place_of_the_recurrence_gives_the_layers_output(family, options):
    layer, x = small_mixer(family, **options), inputs(2, 9, D)
    matrix = viz.hidden_attention(layer, x)
    assert_close(viz.attend(layer, x, matrix), numpy(layer(x)), EXACT)
    assert not np.triu(matrix, 1).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_matrix_obeys_masks_and_documents(family):
    layer, (x, mask, documents) = small_mixer(family), ragged()
    matrix = viz.hidden_attention(layer, x, mask, documents)
    wanted = numpy(layer(x, mask=mask, segment_ids=documents))
    assert_close(viz.attend(layer, x, matrix, mask, documents)[mask], wanted[mask], EXACT)
    for row, seen in enumerate(mask):
        assert not matrix[row][:, :, ~seen].any()
        foreign = documents[row][:, None] != documents[row][None]
        assert not matrix[row][:, foreign & seen[:, None] & seen[None]].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_residual_block_and_some_channels(family):
    block = BLOCKS[family](**SMALL_MIXER[family])
    block.build((None, None, D))
    perturb(block)
    x = inputs(1, 5, D)
    matrix = viz.hidden_attention(block, x)
    assert_close(viz.attend(block, x, matrix), numpy(block(x)), EXACT)
    np.testing.assert_array_equal(viz.hidden_attention(block, x, channels=[1]), matrix[:, [1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_states_are_those_that_the_layer_returns(family):
    layer, (x, mask, documents) = small_mixer(family), ragged()
    _, state = layer(x, mask=mask, segment_ids=documents, return_state=True)
    states = viz.states(layer, x, mask, documents)
    assert_close(states[:, -1], numpy(state.ssm), EXACT)
    norms = viz.state_norms(layer, x, mask, documents)
    assert_close(norms[0, 3, 0], np.linalg.norm(states[0, 3, 0]), EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_of_a_token_is_the_product_of_the_later_decays(family):
    layer, (x, mask, documents) = small_mixer(family), ragged()
    dt = viz.step_sizes(layer, x, mask, documents)
    assert (dt[mask] > 0).all()
    assert not dt[~mask].any()
    decay, left = viz.decays(layer, x, mask, documents), viz.retention(layer, x, mask, documents)
    assert decay.shape == left.shape
    assert (decay[~mask] == 1.0).all()
    for t in range(9):
        assert_close(left[:, t], np.prod(decay[:, t + 1 :], axis=1), 1e-6, f"token {t}")  # float32 products
    first = documents[0, mask[0]][0]
    assert not left[0, mask[0] & (documents[0] == first)].any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layer, x: viz.hidden_attention("layer", x), TypeError, "layer is a str; a MambaLayer"),
        (lambda layer, x: viz.hidden_attention(layer, x[0]), ValueError, r"x has shape \(5, 6\)"),
        (lambda layer, x: viz.states(layer, x, mask=np.ones((1, 4))), ValueError, "mask has shape"),
        (lambda layer, x: viz.attend(layer, x, np.ones((5, 5))), ValueError, "hidden_attention with channels=None"),
        (lambda layer, x: viz.plot_attention(x), ValueError, r"\(length, length\) is needed"),
        (lambda layer, x: viz.plot_attention(np.eye(3), tokens="ab"), ValueError, "2 tokens came for a length of 3"),
        (lambda layer, x: viz.plot_token_map(x, "dt"), ValueError, r"\(length, channels\) is needed"),
        (lambda layer, x: viz.plot_state_norms(x), ValueError, r"\(length, channels\) is needed"),
        (lambda layer, x: viz.plot_learning_curve({"mae": [1.0]}), ValueError, r"no 'loss'; it has \['mae'\]"),
    ],
)
def test_a_wrong_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(dl_mamba.MambaLayer(D), inputs(1, 5, D))


def test_confusion_counts_have_true_classes_as_rows():
    counts = viz.confusion_counts(np.array([0, 1, 1, 2]), np.array([0, 2, 1, 2]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_every_picture_names_its_axes_and_draws_where_it_is_told():
    from matplotlib.figure import Figure

    def drawn(draw):
        ax = Figure().subplots()
        assert draw(ax) is ax
        return ax.get_xlabel(), ax.get_ylabel()

    assert drawn(lambda ax: viz.plot_attention(np.eye(50), ["token"] * 50, ax)) == (
        "input token j (position)",
        "output at token i (position)",
    )
    assert drawn(lambda ax: viz.plot_token_map(-np.ones((2, 3)), "h", "ab", ax, channels="head")) == (
        *("token", "head (index)"),
    )
    assert drawn(lambda ax: viz.plot_state_norms(np.ones((4, 2)), ax, label="row")) == (
        *("position (tokens)", "norm of the state (no unit)"),
    )
    assert drawn(lambda ax: viz.plot_learning_curve({"accuracy": [0.5]}, "accuracy", ax, best_epoch=1)) == (
        *("epoch", "accuracy (share of examples)"),
    )
    assert drawn(lambda ax: viz.plot_confusion_matrix(np.eye(2, dtype=int), ["no", "maybe"], ax)) == (
        *("predicted class", "true class"),
    )


def test_every_count_of_a_confusion_matrix_is_told_from_its_ground():
    from matplotlib.figure import Figure

    ax = viz.plot_confusion_matrix(np.array([[137, 19], [36, 133]]), ["no", "yes"], Figure().subplots())
    image = ax.images[0]
    for text, value in zip(ax.texts, image.get_array().ravel(), strict=True):
        ground = np.mean(image.cmap(image.norm(value))[:3])
        assert abs(ground - (1.0 if text.get_color() == "white" else 0.0)) > 0.3, text.get_text()


def test_arrays_need_no_matplotlib_and_pictures_say_what_is_missing():
    code = """
import sys
sys.modules["matplotlib"] = None
import numpy as np
from dl_mamba import MambaLayer, viz
assert viz.state_norms(MambaLayer(4), np.ones((1, 2, 4), "float32")).shape == (1, 2, 8)
viz.plot_attention(np.eye(2))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        'ImportError: drawing needs matplotlib, which is not installed: pip install "dl-mamba[plots]"' in result.stderr
    )
