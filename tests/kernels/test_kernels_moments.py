"""The statistics that a convolution makes of its output, tile by tile, and their merging.

They are those of the very y that the kernel wrote, within the bounds of merging by moments
(test_kernels_norm.py, `merged_bounds`); y has the bits of the convolution without them.
"""

from math import log2

import numpy as np
import pytest
from kernel_runs import F4, assert_within, how_of, last, run
from test_kernels_conv import big_tiles, draw, sweep_case  # noqa: F401
from test_kernels_norm import UNTRACKED, U, merged_bounds

from gpuconv.ops import batch_norm2d_launch, conv2d_launch
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.shapes import window

TRACKED = {"keep": 0.75, "momentum": 0.25, "unbiased": 1.5}


def moments(conv, x, w, b, **how):
    """y (N, P, Q, K), the merged mean and var, and the partial moments."""
    parts = conv2d_launch.moment_parts(conv)
    config = conv2d_launch.config_forward(conv, b is not None, False, True)
    inputs = {"x": last(x), "w": last(w), "b": w.ravel() if b is None else b}
    shapes = {"y": (conv.N, conv.P, conv.Q, conv.K)}
    shapes["partials"] = (config.launches[0].sizes["partials"],)
    found = run(config, inputs, {n: (shape, F4) for n, shape in shapes.items()}, **how)
    pixels = conv.N * conv.P * conv.Q
    merge = batch_norm2d_launch.config_merge(pixels, conv.K, parts, False)
    both = {"mean": ((conv.K,), F4), "var": ((conv.K,), F4)}
    partials, numbers = found["partials"], UNTRACKED
    return found["y"], run(merge, {"partials": partials}, both, numbers, **how), partials


def compare(x, w, b, stride=1, pads=0, dilation=1, groups=1, **how):
    conv = Conv2dShape.of(x.shape, w.shape, window(w.shape[2:], stride, pads, dilation), groups)
    parts = conv2d_launch.moment_parts(conv)
    if not parts:
        assert conv.depthwise
        return None
    y, found, _ = moments(conv, x, w, b, **how)
    plain = conv2d_launch.config_forward(conv, b is not None, False)
    inputs = {"x": last(x), "w": last(w), "b": w.ravel() if b is None else b}
    np.testing.assert_array_equal(run(plain, inputs, {"y": (y.shape, F4)})["y"], y)
    channels = np.moveaxis(y, 3, 1)
    bounds = merged_bounds(channels, 1 + log2(128 / 4), log2(128 / 4) / 2, parts)
    pixels = y.reshape(-1, conv.K).astype(float)
    assert_within(found["mean"], pixels.mean(0), bounds[0])
    assert_within(found["var"], pixels.var(0), bounds[1])
    return conv


@pytest.mark.parametrize("seed", range(8))
def test_convolutions(seed):
    compare(*sweep_case(seed), **how_of(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8, 160))
def test_convolutions_at_length(seed):
    compare(*sweep_case(seed), **how_of(seed))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (9, 7), (8, 8), (13, 5), (8, 16), (43, 3)])
def test_one_below_at_and_above_the_parts(size):
    x, w, b = draw(41, 1, 8, *size, 12, 1, 1)
    compare(x, w, b, check=True)


@pytest.mark.parametrize("K", [72, pytest.param(132, marks=pytest.mark.slow)])
def test_large_tiles(big_tiles, K):  # noqa: F811
    x, w, b = draw(42, 2, 16, 13, 15, K, 3, 3)
    conv = compare(x, w, b if K == 72 else None, 1, 1)
    assert conv2d_launch.moment_parts(conv) == -(-2 * 13 * 15 // 128)
    compare(x[:1, :, :4], w, b, 1, 1, check=True)


@pytest.mark.parametrize(
    "seed", [0, 3, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 4, 5))]
)
def test_few_channels(seed):
    """Tiles of 32 columns, which an image may fill in part, by 8, 16 or 32 rows."""
    rng = np.random.default_rng([46, seed])
    C, K = int(rng.integers(1, 4)), (5, 8, 12, 30, 36, 64)[seed]
    size = (int(rng.integers(10, 30)), int(rng.integers(34, 50)))
    x, w, b = draw(seed, 2, C, *size, K, 3, 5)
    conv = compare(x, w, b if seed % 2 else None, (1, 2)[seed // 3], 1, check=seed == 5)
    launch = conv2d_launch.config_forward(conv, False, False, True).launches[0]
    assert launch.kernel == "conv2d_forward_few_channels"


def test_every_order_of_blocks_gives_the_same_bits():
    x, w, b = draw(43, 3, 8, 11, 13, 20, 3, 3)
    conv = Conv2dShape.of(x.shape, w.shape, window(3, 1, 1), 1)
    found = set()
    for order, seed in (("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)):
        y, merged, partials = moments(conv, x, w, b, order=order, seed=seed)
        found.add(b"".join(a.tobytes() for a in (y, partials, merged["mean"], merged["var"])))
    assert len(found) == 1


@pytest.mark.parametrize("tile", [64, 128])
def test_a_mean_of_a_thousand_deviations(tile, request):
    """The variance keeps its digits far from zero: sums of squares would leave none of them."""
    if tile == 128:
        request.getfixturevalue("big_tiles")
    x, w, _ = draw(44, 2, 16, 25, 23, 72, 1, 1)
    deviation = np.sqrt((w.astype(float) ** 2).sum((1, 2, 3)))
    conv = compare(x, w, (1000 * deviation).astype(F4))
    assert conv2d_launch.moment_parts(conv) == -(-2 * 25 * 23 // tile)
    y, found, _ = moments(conv, x, w, (1000 * deviation).astype(F4))
    pixels = y.reshape(-1, conv.K).astype(float)
    assert (abs(pixels.mean(0)) > 900 * pixels.std(0)).all()
    np.testing.assert_allclose(found["var"], pixels.var(0), 1e-5)
    np.testing.assert_allclose(found["mean"], pixels.mean(0), 2 * U)


def test_the_running_statistics_move_with_the_merging():
    """As by hand, each operation rounded once."""
    rng = np.random.default_rng(45)
    for parts, C in ((1, 3), (5, 8), (300, 2)):
        partials = rng.random((parts, 4, C)).astype(F4)
        merge = batch_norm2d_launch.config_merge(64 * parts - 7, C, parts, True)
        plain = batch_norm2d_launch.config_merge(64 * parts - 7, C, parts, False)
        outputs = dict.fromkeys(("mean", "var"), ((C,), F4))
        expected = run(plain, {"partials": partials}, outputs, UNTRACKED)
        running = {name: rng.random(C).astype(F4) for name in ("running_mean", "running_var")}
        found = in_place(merge, {"partials": partials, **running}, outputs)
        for name in ("mean", "var"):
            np.testing.assert_array_equal(found[name], expected[name])
            new = expected[name] * F4(1.5) if name == "var" else expected[name]
            before = running[f"running_{name}"]
            moved = F4(0.75) * before + F4(0.25) * new
            np.testing.assert_array_equal(found[f"running_{name}"], moved)


def in_place(config, inputs, outputs):
    """All arrays after a configuration that changes some of its inputs."""
    from kernel_runs import asarray, asnumpy, start

    held = {name: asarray(a) for name, a in inputs.items()}
    held |= {name: asarray(np.zeros(shape, kind)) for name, (shape, kind) in outputs.items()}
    for launch in config.launches:
        start(launch, held, TRACKED, check=True)
    return {name: asnumpy(array) for name, array in held.items()}
