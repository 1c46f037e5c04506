"""kernels/step.cu, clip.cu, and the averages of optim.cu, against NumPy and plain sums."""

import math

import numpy as np
import pytest
from kernel_runs import F4, asarray, asnumpy, start
from test_kernels_optim import COUNTS, Tensors

from gpuconv.cuda import step_launch
from gpuconv.cuda.step_launch import COLUMNS, CORRECT, LOSSES, STATE, STEP
from gpuconv.optim.device import config_clip

SLOTS, NEXT = 8, 1
POISON = F4(-77)


def run(config, step=0, stop=0, **arrays):
    """{name: array} after a launch at a step, with "state" and "ring" among them."""
    state = np.zeros(STATE, np.uint32)
    state[0], state[NEXT], state[STEP] = stop, step, step
    arrays = {"ring": np.full(COLUMNS * SLOTS + 1, POISON), "state": state, **arrays}
    held = {name: asarray(array) for name, array in arrays.items()}
    (launch,) = config.launches
    start(launch, held, check=True)
    return {name: asnumpy(array) for name, array in held.items()}


def ring_with(step, **columns):
    """The ring where only these columns of a step were written; end: its last element."""
    ring = np.full(COLUMNS * SLOTS + 1, POISON)
    if "end" in columns:
        ring[-1] = columns.pop("end")
    for name, value in columns.items():
        ring[step * COLUMNS + int(name[1:])] = value
    return ring


SCORES = {
    "random": lambda rng, shape: rng.standard_normal(shape),
    "ties": lambda rng, shape: rng.integers(0, 3, shape),
    "NaN": lambda rng, shape: np.where(rng.random(shape) < 0.2, np.nan, rng.integers(0, 3, shape)),
    "infinities": lambda rng, shape: rng.choice([-np.inf, np.inf, 0], shape),
}


@pytest.mark.parametrize("shape", [(1, 1), (5, 10), (257, 3), (40, 64), (9, 1000), (300, 257)])
@pytest.mark.parametrize("kind", SCORES)
def test_right_answers_are_numpys_argmax(shape, kind):
    rng = np.random.default_rng([60, *shape])
    scores = SCORES[kind](rng, shape).astype(F4)
    answers = scores.argmax(axis=1)  # the first of the largest, or the first NaN
    labels = np.where(rng.random(shape[0]) < 0.6, answers, rng.integers(0, shape[1], shape[0]))
    config = step_launch.config_note_batch(*shape, "long long", SLOTS)
    found = run(config, 3, loss=np.array([0.5], F4), scores=scores, labels=labels)
    expected = ring_with(3, **{f"c{CORRECT}": (answers == labels).sum(), f"c{LOSSES}": 0.5})
    np.testing.assert_array_equal(found["ring"], expected)
    assert found["state"][0] == 0


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops(loss):
    given = {"scores": np.eye(3, dtype=F4), "labels": np.array([0, 1, 0], np.int32)}
    batch = step_launch.config_note_batch(3, 3, "int", SLOTS)
    found = run(batch, 5, loss=np.array([loss], F4), **given)
    expected = ring_with(5, **{f"c{CORRECT}": 2, f"c{LOSSES}": loss}, end=6)
    np.testing.assert_array_equal(found["ring"], expected)
    assert found["state"][0] == 1
    other = step_launch.config_note_loss(4, SLOTS)
    found = run(other, 5, loss=np.array([loss], F4))
    np.testing.assert_array_equal(found["ring"], ring_with(5, c4=loss, end=6))
    assert found["state"][0] == 1
    for config, more in ((batch, given), (other, {})):  # nothing is noted after that
        found = run(config, 5, stop=1, loss=np.array([loss], F4), **more)
        np.testing.assert_array_equal(found["ring"], ring_with(5))


@pytest.mark.parametrize(("seeds", "numbers"), [(0, 0), (0, 5), (3, 0), (2, 300)])
def test_a_step_begins_with_its_row(seeds, numbers):
    rng = np.random.default_rng(61)
    words = 2 * seeds + numbers
    rows_of_seeds = rng.integers(0, 2**64, (SLOTS, seeds), np.uint64)
    rows_of_numbers = rng.standard_normal((SLOTS, numbers)).astype(F4)
    rows = np.concatenate([rows_of_seeds.view(np.uint32), rows_of_numbers.view(np.uint32)], axis=1)
    table = np.zeros(SLOTS * (2 * 256 + 512), np.uint32)
    table[: SLOTS * words] = rows.ravel()
    config = step_launch.config_begin(seeds, numbers, SLOTS, (256, 512))
    rest = {"seeds": np.full(256, 9, np.uint64), "numbers": np.full(512, POISON), "table": table}
    for step, stop in ((0, 0), (6, 0), (6, 1)):
        found = run(config, step, stop, **rest)
        expected = np.full(seeds, 9, np.uint64) if stop else rows_of_seeds[step]
        np.testing.assert_array_equal(found["seeds"][:seeds], expected)
        expected = np.full(numbers, POISON) if stop else rows_of_numbers[step]
        np.testing.assert_array_equal(found["numbers"][:numbers], expected)
        assert (found["seeds"][seeds:] == 9).all()
        assert (found["numbers"][numbers:] == POISON).all()
        assert found["state"][NEXT] == step + 1 - stop
        end = {} if step else {"end": 0}  # a new call of several steps: nothing has stopped
        np.testing.assert_array_equal(found["ring"], ring_with(0, **end))


@pytest.mark.parametrize("misaligned", [False, True])
def test_averages_are_numpys(misaligned):
    rng = np.random.default_rng(62)
    pairs = [[rng.standard_normal(n).astype(F4) for n in COUNTS] for _ in range(2)]
    there = Tensors([[a, v, a, a, a] for a, v in zip(*pairs, strict=True)], misaligned)
    there.step("average", share=F4(0.1))
    for found, average, value in zip(there.values(0), *pairs, strict=True):
        np.testing.assert_array_equal(found, average + (value - average) * F4(0.1))
    for found, value in zip(there.values(1), pairs[1], strict=True):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e25])
@pytest.mark.parametrize("misaligned", [False, True])
def test_clipping(scale, misaligned):
    rng = np.random.default_rng(63)
    gradients = [(scale * rng.standard_normal(n)).astype(F4) for n in COUNTS]
    exact = math.sqrt(math.fsum(float(x) ** 2 for g in gradients for x in g))
    there = Tensors([[g] * 5 for g in gradients], misaligned)
    norm, factor = clip(there, 2.0)
    assert math.isclose(norm, exact, rel_tol=1e-12)
    assert factor[1] == F4(norm)
    share = min(1.0, 2.0 / (exact + 1e-6))
    for found, gradient in zip(there.values(0), gradients, strict=True):
        exact = gradient.astype(float) * share
        # a rounding of the factor, one of the product; subnormal products count as 0
        assert (np.abs(found - exact) <= 2**-23 * np.abs(exact) + 2**-126).all()
        assert scale > 1e-3 or (found == gradient).all()


def test_a_norm_of_nan_spoils_all_gradients():
    gradients = [np.ones(n, F4) for n in COUNTS]
    gradients[2][1] = np.nan
    there = Tensors([[g] * 5 for g in gradients], False)
    norm, factor = clip(there, 2.0)
    assert math.isnan(norm)
    assert math.isnan(factor[1])
    assert all(np.isnan(found).all() for found in there.values(0))


def clip(there, max_norm):
    """The three launches over `Tensors`; the norm, and what "factor" holds."""
    config = config_clip(there.number, len(there.counts))
    held = {
        **{"tensors": there.table(), "owner": there.owner, "part": there.part},
        "norm": asarray(np.zeros(1)),
        "factor": asarray(np.zeros(2, F4)),
        "partials": asarray(np.full(there.number, np.nan)),
    }
    for launch in config.launches:
        start(launch, held, {"max_norm": max_norm}, check=True)
    return float(asnumpy(held["norm"])[0]), asnumpy(held["factor"])
