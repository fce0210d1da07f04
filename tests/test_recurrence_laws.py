"""The laws that selective_scan, ssd and causal_conv1d share, for every implementation, in values and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import recurrences
from harness import assert_close, assert_laws_hold, float64_enabled, numpy, values_and_gradients
from keras import ops

from dl_mamba.ops import implementation_scope, last_implementation

IMPLEMENTATIONS = ("reference", "chunked")
BATCH, LENGTH = 2, 21  # no multiple of a chunk of any implementation


@pytest.fixture(params=recurrences.ALL)
def op(request):
    return recurrences.ALL[request.param]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    with implementation_scope(request.param):
        yield request.param


def draw(op, length=LENGTH, ngroups=2, batch=BATCH, seed=0):
    return op.inputs(np.random.default_rng(seed), batch, length, ngroups)


def float32(arrays):
    return {name: array.astype("float32") for name, array in arrays.items()}


def run(op, arrays, compiled=False, **options):
    """((y, final state), gradients) of one call."""

    def function(**tensors):
        return op.run(**tensors, return_final_state=True, **options)

    return values_and_gradients(function, arrays, compiled)


def oracle_and_its_gradients(op, arrays, **options):
    """Values by the numpy recurrence; gradients by automatic differentiation of the definition in float64."""
    mask = options.get("mask", np.ones(arrays["x"].shape[:2], bool))
    starts = recurrences.document_starts(options.get("segment_ids", np.zeros(mask.shape, int)), mask)
    extra = {name: options[name] for name in ("dt_limit",) if name in options}
    values = op.oracle(arrays, starts, mask, **extra)
    with float64_enabled(), implementation_scope("reference"):
        definition, gradients = run(op, arrays, **options)
    for came, wanted in zip(definition, values, strict=True):
        real = mask if came.shape[:2] == mask.shape else np.ones(came.shape[:1], bool)
        assert_close(came[real], wanted[real], 1e-12, "the definition in float64")  # rounding of float64 only
    return definition, gradients


def sliced(op, arrays, start, stop):
    return {name: array[:, start:stop] if name in op.sequences else array for name, array in arrays.items()}


def padded(op, arrays, mask):
    """Rows as long as `mask`, the tokens at its true places and rubbish at padding."""
    rng = np.random.default_rng(9)
    out = {}
    for name, array in arrays.items():
        out[name] = array
        if name in op.sequences:
            out[name] = rng.normal(size=(*mask.shape, *array.shape[2:])).astype(array.dtype)
            out[name][mask] = array.reshape(-1, *array.shape[2:])
    return out


def mask_of(side, padding=5):
    mask = np.zeros((BATCH, LENGTH + padding), bool)
    first = {"left": padding, "right": 0}[side]
    mask[:, first : first + LENGTH] = True
    return mask


# every length at one group count, every group count at one length; a depthwise convolution has no groups
SHAPES = [(name, length, 2) for name in recurrences.ALL for length in (1, 40)]
SHAPES += [(name, 21, ngroups) for name in ("selective_scan", "ssd") for ngroups in (1, 2, None)]


@pytest.mark.parametrize(("name", "length", "ngroups"), SHAPES)
def test_values_and_gradients_equal_the_float64_recurrence(implementation, name, length, ngroups):
    op = recurrences.ALL[name]
    arrays = draw(op, length, ngroups)
    assert_laws_hold(run(op, float32(arrays)), oracle_and_its_gradients(op, arrays))


def test_the_reference_computes_in_float64_when_its_inputs_are(op):
    arrays = draw(op)
    plain = np.zeros((BATCH, LENGTH), bool), np.ones((BATCH, LENGTH), bool)
    with float64_enabled(), implementation_scope("reference"):
        came = [numpy(output) for output in op.run(**arrays, return_final_state=True)]
    for a, b in zip(came, op.oracle(arrays, *plain), strict=True):
        assert_close(a, b, 1e-12)  # rounding of float64


def test_mask_and_documents_together_equal_the_float64_recurrence(op, implementation):
    arrays, rng = draw(op), np.random.default_rng(1)
    mask = rng.random((BATCH, LENGTH)) < 0.7
    segment_ids = np.cumsum(rng.random((BATCH, LENGTH)) < 0.2, axis=1).astype("int32")
    options = {"mask": mask, "segment_ids": segment_ids}
    assert_laws_hold(run(op, float32(arrays), **options), oracle_and_its_gradients(op, arrays, **options))


@pytest.mark.parametrize("split", [1, 8])
def test_two_parts_with_carried_state_equal_the_whole(op, implementation, split):
    arrays = float32(draw(op))

    def in_parts(**tensors):
        first = {n: t[:, :split] if n in op.sequences else t for n, t in tensors.items()}
        second = {n: t[:, split:] if n in op.sequences else t for n, t in tensors.items()}
        y1, state = op.run(**first, return_final_state=True)
        y2, state = op.run(**{**second, "initial_state": state}, return_final_state=True)
        return ops.concatenate([y1, y2], axis=1), state

    # both sides are float32 programs with sums in another order: twice the bound to the oracle would be 2e-5
    assert_laws_hold(values_and_gradients(in_parts, arrays), run(op, arrays))


def test_calls_of_one_token_equal_one_call(op, implementation):
    arrays = float32(draw(op, length=6))
    (y, state), _ = run(op, arrays)
    carried = arrays["initial_state"]
    for t in range(6):
        token = {**sliced(op, arrays, t, t + 1), "initial_state": carried}
        y_t, carried = op.run(**token, return_final_state=True)
        assert_close(numpy(y_t)[:, 0], y[:, t], 1e-5, f"token {t}")
    assert_close(numpy(carried), state, 1e-5, "state")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_at_real_tokens_nor_in_the_final_state(op, implementation, side):
    arrays, mask = float32(draw(op)), mask_of(side)
    (y, state), gradients = run(op, arrays)

    def at_real_tokens(**tensors):
        y, state = op.run(**tensors, mask=mask, return_final_state=True)
        first = int(np.argmax(mask[0]))
        return y[:, first : first + LENGTH], state

    values, padded_gradients = values_and_gradients(at_real_tokens, padded(op, arrays, mask))
    for name in op.sequences:
        assert np.all(padded_gradients[name][~mask] == 0.0), f"padding of {name} has a gradient"
        padded_gradients[name] = padded_gradients[name][mask].reshape(arrays[name].shape)
    assert_laws_hold((values, padded_gradients), ((y, state), gradients))


@pytest.mark.parametrize("first", [2, 13])
def test_packed_documents_equal_separate_ones(op, implementation, first):
    arrays = float32(draw(op))
    ids = np.where(np.arange(LENGTH) < first, 7, 3)[None].repeat(BATCH, axis=0).astype("int32")
    empty = np.zeros_like(arrays["initial_state"])

    def separately(**tensors):
        one = {n: t[:, :first] if n in op.sequences else t for n, t in tensors.items()}
        two = {n: t[:, first:] if n in op.sequences else t for n, t in tensors.items()}
        y1 = op.run(**one)
        y2, state = op.run(**{**two, "initial_state": ops.convert_to_tensor(empty)}, return_final_state=True)
        return ops.concatenate([y1, y2], axis=1), state

    assert_laws_hold(run(op, arrays, segment_ids=ids), values_and_gradients(separately, arrays))


def test_documents_are_not_taken_for_the_mask_of_an_earlier_call(op):
    """Outside a compiled program, where JAX keeps the programs of earlier calls."""
    tensors = {name: ops.convert_to_tensor(array) for name, array in float32(draw(op, length=5)).items()}
    mask = ops.convert_to_tensor(np.array([[True, True, True, False, False]] * BATCH))
    ids = ops.convert_to_tensor(np.array([[0, 0, 0, 1, 1]] * BATCH, "int32"))
    op.run(**tensors, mask=mask)
    packed = op.run(**tensors, segment_ids=ids)
    with implementation_scope("reference"):
        wanted = op.run(**tensors, segment_ids=ids)
    assert_close(numpy(packed), numpy(wanted), 1e-5)  # the project's bound for float32


def test_an_id_that_returns_starts_a_new_document(op, implementation):
    arrays = float32(draw(op, length=6))
    returning, fresh = np.array([[1, 1, 2, 2, 1, 1]] * BATCH), np.array([[1, 1, 2, 2, 3, 3]] * BATCH)
    came, wanted = (op.run(**arrays, segment_ids=ids.astype("int32")) for ids in (returning, fresh))
    np.testing.assert_array_equal(numpy(came), numpy(wanted))


def test_rows_of_padding_alone_keep_their_state_and_stay_finite(op, implementation):
    arrays = float32(draw(op))
    mask = np.ones((BATCH, LENGTH), bool)
    mask[1] = False
    (y, state), gradients = run(op, arrays, mask=mask)
    assert np.all(np.isfinite(y))
    assert all(np.all(np.isfinite(g)) for g in gradients.values())
    assert_close(state[1], arrays["initial_state"][1], 1e-6, "state")  # one multiplication by exp(0)


def test_two_runs_are_bitwise_equal(op, implementation):
    arrays = float32(draw(op))
    (first, first_gradients), (second, second_gradients) = run(op, arrays), run(op, arrays)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    for name in first_gradients:
        np.testing.assert_array_equal(first_gradients[name], second_gradients[name])


@pytest.mark.parametrize("op", [recurrences.SCAN, recurrences.SSD], ids=["selective_scan", "ssd"])
def test_step_sizes_from_minus_40_to_40_keep_every_digit(op, implementation):
    arrays = draw(op, length=LENGTH)
    arrays["dt"] = np.random.default_rng(2).uniform(-40.0, 40.0, arrays["dt"].shape)
    # gradients of dt reach 1e-17 of the largest one where softplus is flat: they are bounded relative to the largest
    assert_laws_hold(run(op, float32(arrays)), oracle_and_its_gradients(op, float64(float32(arrays))))


def float64(arrays):
    return {name: array.astype("float64") for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_loses_no_more_than_its_rounding(op, dtype):
    """Against float64 on the same rounded inputs: at most 1.5 times the error of a float32 program, rounded once."""
    arrays = {n: numpy(ops.cast(a, dtype)) for n, a in float32(draw(op)).items()}
    wanted = oracle_and_its_gradients(op, float64(arrays))[0][0]
    half = {n: ops.cast(a, dtype) for n, a in arrays.items()}
    with implementation_scope("reference"):
        plain = numpy(ops.cast(op.run(**arrays), dtype))
    with implementation_scope("chunked"):
        came = numpy(op.run(**half))
    for norm in (np.linalg.norm, lambda v: np.max(np.abs(v))):
        assert norm(came - wanted) <= 1.5 * norm(plain - wanted)


def test_the_compiled_program_equals_the_eager_one(op):
    arrays = float32(draw(op))
    mask = np.random.default_rng(3).random((BATCH, LENGTH)) < 0.8
    ids = np.cumsum(np.random.default_rng(4).random((BATCH, LENGTH)) < 0.2, axis=1).astype("int32")
    options = {"mask": mask, "segment_ids": ids}
    with implementation_scope("reference"):
        wanted = run(op, arrays, **options)
    assert_laws_hold(run(op, arrays, compiled=True, **options), wanted)


def test_the_implementation_that_ran_is_known(op, implementation):
    op.run(**float32(draw(op, length=2)))
    assert last_implementation(op.run.__name__) == implementation
