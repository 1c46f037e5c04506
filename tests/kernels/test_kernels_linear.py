"""linear_small.cu, run by the simulator, against the float64 definition within the proved bound;
and sum_partials.cu, which adds what the blocks of other kernels leave.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from kernel_runs import F4, assert_within, gamma, how_of, run

from gpuconv import ops
from gpuconv.cuda import split_k
from gpuconv.cuda.launch_config import THREADS, Launch
from gpuconv.ops import linear_launch

TINY = 1e-37


def draw(seed, rows, features):
    rng = np.random.default_rng([31, seed])
    x = rng.standard_normal((rows, features[0])).astype(F4)
    ws = [rng.standard_normal((out, into)).astype(F4) / 8 for into, out in pairwise(features)]
    return x, ws, [rng.standard_normal(n).astype(F4) for n in features[1:]]


# Rows around the images of a block, features in fours and not, one to four layers.
CHAINS = [
    (1, (400, 120, 100, 10)),
    (133, (12, 8, 5)),
    (7, (33, 1)),
    (300, (9, 16, 7, 20, 3)),
    (131, (130, 4, 129)),
]


@pytest.mark.parametrize(
    "number",  # those of four rows a block compile for seconds
    [pytest.param(n, marks=pytest.mark.slow if CHAINS[n][0] > 264 else ()) for n in range(5)],
)
def test_layers_in_a_row(number):
    rows, features = CHAINS[number]
    x, ws, bs = draw(number, rows, features)
    biases = tuple((number + i) % 3 > 0 for i in range(len(ws)))
    relus = tuple((number + i) % 2 == 0 for i in range(len(ws)))
    config = linear_launch.config_chain(rows, features, biases, relus)
    images = 1 if rows <= 132 else 2 if rows <= 264 else 4
    assert config.launches[0].grid[0] == -(-rows // images)
    inputs, outputs = {"x": x}, {}
    for i in range(linear_launch.MAX_LAYERS):
        has = i < len(ws)
        inputs[f"w{i}"] = ws[i] if has else x
        inputs[f"b{i}"] = bs[i] if has else x
        outputs[f"y{i}"] = ((rows, features[i + 1]) if has else (1,), F4)
    found = run(config, inputs, outputs, **{**how_of(number), "check": number == 2})
    for i, (w, b) in enumerate(zip(ws, bs, strict=True)):  # each from what was found before it
        before = x if i == 0 else found[f"y{i - 1}"]
        given = before.astype(np.float64), w.astype(np.float64), b * biases[i]
        exact = ops.linear.definition(*given, "relu" if relus[i] else None)
        size = ops.linear.definition(*map(abs, given))
        assert_within(found[f"y{i}"], exact, gamma(w.shape[1] + 1) * size + TINY)


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=pytest.mark.slow if n % 4 == 0 else ()) for n in range(16)]
)
def test_gradients(seed):
    rng = np.random.default_rng([32, seed])
    rows = int(rng.choice([1, 15, 16, 17, 64, 65, 130]))
    into, out = (int(rng.choice([1, 4, 15, 16, 31, 32, 33, 64, 100])) for _ in range(2))
    (x, (w,), _), bias, mask = draw(seed, rows, (into, out)), seed % 3 > 0, seed % 2 > 0
    dy, y = (rng.standard_normal((rows, out)).astype(F4) for _ in range(2))
    g = np.where(mask & (y <= 0), 0, dy).astype(np.float64)
    wide = x.astype(np.float64), w.astype(np.float64), np.zeros(out)
    exact = ops.linear_backward.definition(g, *wide)
    sizes = ops.linear_backward.definition(abs(g), *map(abs, wide))
    for need_dx in (True, False):
        config = linear_launch.config_backward(rows, into, out, bias, mask, need_dx)
        outputs = {"dx": (x.shape, F4), "dw": (w.shape, F4), "db": ((out,), F4)}
        found = run(config, {"dy": dy, "y": y, "x": x, "w": w}, outputs, **how_of(seed))
        if need_dx:
            assert_within(found["dx"], exact[0], gamma(out + 1) * sizes[0] + TINY)
        assert_within(found["dw"], exact[1], gamma(rows + 1) * sizes[1] + TINY)
        if bias:
            assert_within(found["db"], exact[2], gamma(rows + 1) * sizes[2] + TINY)


def test_which_layers_are_few_rows():
    applies = linear_launch.applies
    assert applies(512, (400, 120, 100, 10))
    assert applies(64, (1690, 10))
    assert not applies(0, (400, 120))
    assert not applies(2048, (400, 120))
    assert not applies(64, (4096, 4096))
    assert not applies(64, (9, 9, 9, 9, 9, 9))
    assert not applies(64, (9, 0))


@pytest.mark.parametrize("splits", [1, 2, 15, 16, 17, 33, 100, 513, 1000])
@pytest.mark.parametrize("count", [1, 6, 31, 257])
def test_partial_sums_are_added_in_order(splits, count):
    config = split_k.split_k(Launch("", "", (1, 1, 1), 1, (), {}, {}), "out", count, splits)
    if splits == 1:
        assert len(config.launches) == 1
        return
    last = config.launches[1]
    assert last.scalars["parts"] == min(32, 2 ** ((splits - 1) // 16).bit_length())
    assert last.scalars["parts"] * last.scalars["length"] >= splits
    assert last.block == THREADS
    rng = np.random.default_rng(splits)
    partials = rng.standard_normal((splits, count)).astype(F4)
    config = type(config)((replace(last, arrays={}),))
    results = set()
    for order in ("forward", "reverse", "shuffled"):
        check = count == 31
        given = {"partials": partials}, {"out": ((count,), F4)}
        found = run(config, *given, order=order, check=check)["out"]
        exact = partials.sum(0, np.float64)
        assert_within(found, exact, gamma(splits) * abs(partials.astype(np.float64)).sum(0))
        results.add(found.tobytes())
    assert len(results) == 1
