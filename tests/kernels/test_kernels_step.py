"""kernels/step.cu, clip.cu, and the averages of optim.cu, against NumPy and plain sums."""

import math

import numpy as np
import pytest
from kernel_runs import F4, asarray, asnumpy, start
from test_kernels_optim import COUNTS, Tensors

from gpuconv.cuda import step_launch
from gpuconv.cuda.step_launch import COLUMNS, CORRECT, LOSSES, NOTED, STATE, STEP
from gpuconv.optim.device import config_clip

SLOTS, ROOM = 8, (6, 310)
POISON = F4(-77)
LATER = np.full(ROOM[0], 9, np.uint64), np.full(ROOM[1], POISON)
NO_ROWS = np.zeros((SLOTS, 0), np.uint32)


def run(config, step=0, stop=0, counts=None, **arrays):
    """{name: array} after a launch at a step, with "state" and "ring" among them."""
    state = np.zeros(STATE, np.uint32)
    state[0], state[STEP] = stop, step
    arrays = {"ring": np.full(COLUMNS * SLOTS + 1, POISON), "state": state, **arrays}
    held = {name: asarray(array) for name, array in arrays.items()}
    (launch,) = config.launches
    start(launch, held, counts, check=True)
    return {name: asnumpy(array) for name, array in held.items()}


def noted(given, step, stop=0, rows=NO_ROWS, now=LATER):
    """What note_batch leaves, with rows of the table, uint32, and the seeds and numbers now."""
    labels = {"int64": "long long", "int32": "int"}[str(given["labels"].dtype)]
    config = step_launch.config_note_batch(*given["scores"].shape, labels, SLOTS, ROOM)
    table = np.zeros(SLOTS * (2 * ROOM[0] + ROOM[1]), np.uint32)
    table[: rows.size] = rows.ravel()
    arrays = {"seeds": now[0], "numbers": now[1], "table": table}
    arrays |= {"later_seeds": LATER[0], "later_numbers": LATER[1]}
    seeds = 3 if rows.shape[1] == 6 else 2 if rows.shape[1] == 304 else 0
    counts = {"seed_count": seeds, "number_count": rows.shape[1] - 2 * seeds}
    return run(config, step, stop, counts, **given, **arrays)


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
    found = noted({"loss": np.array([0.5], F4), "scores": scores, "labels": labels}, 3)
    expected = ring_with(3, **{f"c{CORRECT}": (answers == labels).sum(), f"c{LOSSES}": 0.5})
    np.testing.assert_array_equal(found["ring"], expected)
    assert found["state"][0] == 0


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_stops(loss):
    given = {"scores": np.eye(3, dtype=F4), "labels": np.array([0, 1, 0], np.int32)}
    given["loss"] = np.array([loss], F4)
    found = noted(given, 5)
    expected = ring_with(5, **{f"c{CORRECT}": 2, f"c{LOSSES}": loss}, end=6)
    np.testing.assert_array_equal(found["ring"], expected)
    assert found["state"][0] == 1
    other = step_launch.config_note_loss(4, SLOTS)
    found = run(other, 5, loss=np.array([loss], F4))
    np.testing.assert_array_equal(found["ring"], ring_with(5, c4=loss, end=6))
    assert found["state"][0] == 1
    later = run(step_launch.config_note_loss(1, SLOTS, turned=True), 5, loss=given["loss"])
    np.testing.assert_array_equal(later["ring"], ring_with(0, c1=loss, end=1))
    # nothing is noted after that
    for found in (noted(given, 5, stop=1), run(other, 5, stop=1, loss=given["loss"])):
        np.testing.assert_array_equal(found["ring"], ring_with(5))


@pytest.mark.parametrize(("seeds", "numbers"), [(0, 0), (0, 5), (3, 0), (2, 300)])
@pytest.mark.parametrize(("step", "stop"), [(0, 0), (5, 0), (SLOTS - 1, 0), (5, 1)])
def test_a_step_turns(seeds, numbers, step, stop):
    """Its numbers go to the kernels after it, the table's next row to those of the next step."""
    rng = np.random.default_rng(61)
    rows_of_seeds = rng.integers(0, 2**64, (SLOTS, seeds), np.uint64)
    rows_of_numbers = rng.standard_normal((SLOTS, numbers)).astype(F4)
    rows = np.concatenate([rows_of_seeds.view(np.uint32), rows_of_numbers.view(np.uint32)], axis=1)
    now = rng.integers(0, 2**64, ROOM[0], np.uint64), rng.standard_normal(ROOM[1]).astype(F4)
    given = {"loss": np.ones(1, F4), "scores": np.eye(3, dtype=F4), "labels": np.zeros(3, np.int32)}
    found = noted(given, step, stop, rows, now)
    fresh = step < SLOTS - 1 and not stop
    for k, (name, after, count) in enumerate(
        (("seeds", rows_of_seeds, seeds), ("numbers", rows_of_numbers, numbers))
    ):
        expected = after[step + 1] if fresh else now[k][:count]
        np.testing.assert_array_equal(found[name][:count], expected)
        np.testing.assert_array_equal(found[name][count:], now[k][count:])
        later = found[f"later_{name}"]
        assert later[:count].tobytes() == (LATER[k][:count] if stop else now[k][:count]).tobytes()
        assert later[count:].tobytes() == LATER[k][count:].tobytes()
    assert found["state"][STEP] == step + 1 - stop
    assert found["state"][NOTED] == (0 if stop else step)
    assert found["ring"][-1] == (0 if step == 0 else POISON)


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
