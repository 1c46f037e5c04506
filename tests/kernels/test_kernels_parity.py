"""Strided backward data: phases of pixels that the same taps reach, and no wasted multiplication.

The gate is test_kernels_conv's: element by element, the proved bound. What is new to strides is
here: phases of unequal size, phases that no tap reaches, strides that share a factor with the
dilation, more phases than rows, tiles that a phase does not fill.
"""

from itertools import product

import counted
import numpy as np
import pytest
import simulated
from counted import multiply_adds
from kernel_runs import F4, run
from test_kernels_conv import backward_data, big_tiles, compare, doubles, draw  # noqa: F401

from gpuconv import ops
from gpuconv.ops import conv2d_launch
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.shapes import window


def strided_case(seed):
    """Strides 1 to 5 other than the window, dilations that share factors with them, groups."""
    rng = np.random.default_rng([24, seed])
    kernel, dilation = rng.integers(1, 6, 2), rng.integers(1, 5, 2)
    stride, pads = rng.integers(1, 6, 2), rng.integers(0, 4, (2, 2))
    least = np.maximum(1, dilation * (kernel - 1) + 1 - pads.sum(1))
    size = [int(n) for n in rng.integers(least, least + 9)]
    groups = int(rng.choice([1, 1, 2, 3]))
    many = 4 if seed % 2 else 1  # whole vectors on every other seed
    c, k = (many * int(n) for n in rng.integers(1, 6, 2))
    x, w, b = draw(seed, int(rng.integers(1, 4)), groups * c, *size, groups * k, *kernel, groups)
    pads = tuple(tuple(map(int, side)) for side in pads)
    return x, w, b, tuple(map(int, stride)), pads, tuple(map(int, dilation)), groups


@pytest.mark.parametrize("seed", range(14))
def test_random_strides(seed):
    compare(*strided_case(seed), passes="d")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(14, 234))
def test_random_strides_at_length(seed):
    order = ("forward", "reverse", "shuffled")[seed % 3]
    compare(*strided_case(seed), passes="d", order=order, seed=seed)


# One below, at and above a tile of 64 pixels of a phase, whose phases differ by a row.
@pytest.mark.parametrize("H", [125, 126, 127, 128, 129, 130])
def test_one_below_at_and_above_a_phase_of_a_tile(H):
    x, w, b = draw(H, 1, 5, H, 1, 6, 3, 1)
    compare(x, w, b, (2, 1), ((1, 1), (0, 0)), passes="d")


@pytest.mark.parametrize(
    ("shape", "stride", "dilation"),
    [
        ((2, 3, 7, 8, 5, 1, 1), 3, 1),  # eight phases of nine are zero
        ((2, 4, 9, 8, 8, 3, 2), (2, 4), (2, 4)),  # taps of one phase only
        ((1, 3, 12, 13, 4, 3, 3), (6, 4), (4, 6)),  # every second and third phase
        ((2, 2, 3, 4, 3, 2, 2), (9, 11), 1),  # fewer pixels than phases
        ((3, 2, 5, 1, 3, 5, 1), (2, 7), 1),
    ],
)
def test_phases_that_no_tap_reaches_are_zero(shape, stride, dilation):
    x, w, b = draw(31, *shape)
    compare(x, w, b, stride, 1, dilation, passes="d", check=True)
    conv = Conv2dShape.of(x.shape, w.shape, window(w.shape[2:], stride, 1, dilation), 1)
    ones = np.ones((conv.N, conv.K, conv.P, conv.Q), F4)
    reached = ops.conv2d_backward.reference(*doubles(ones, x, abs(w)), None, stride, 1, dilation)
    dx = backward_data(conv, ones, w, x)
    assert (dx[reached[0] == 0] == 0).all()
    assert (reached[0] == 0).any()


@pytest.mark.parametrize(("C", "K"), [(3, 7), (4, 8)])
def test_sub_filters_too_large_for_the_mask(C, K):
    x, w, b = draw(32, 1, C, 40, 36, K, 34, 3)
    conv = Conv2dShape.of(x.shape, w.shape, window(w.shape[2:], (2, 1), 1), 1)
    macros = dict(conv2d_launch.config_backward_data(conv, False).launches[0].defines)
    assert macros["WINDOW_BITS"] == "0"
    compare(x, w, b, (2, 1), 1, passes="d")


@pytest.mark.parametrize("geometry", [{"stride": 2, "pads": 1}, {"stride": (3, 2)}])
def test_large_tiles(big_tiles, geometry):  # noqa: F811
    x, w, b = draw(33, 2, 72, 17, 19, 136, 3, 3)
    stride, pads = geometry["stride"], geometry.get("pads", 0)
    conv = Conv2dShape.of(x.shape, w.shape, window(3, stride, pads), 1)
    assert (
        dict(conv2d_launch.config_backward_data(conv, False).launches[0].defines)["TILE"] == "128"
    )
    compare(x, w, b, stride, pads, passes="d")


def test_every_block_order_gives_the_same_bits():
    x, w, _ = draw(34, 2, 12, 15, 13, 8, 3, 3)
    conv = Conv2dShape.of(x.shape, w.shape, window(3, 2, 1), 1)
    dy = np.random.default_rng(34).standard_normal((2, 8, conv.P, conv.Q)).astype(F4)
    orders = [("forward", 0), ("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
    results = {backward_data(conv, dy, w, x, order=o, seed=s).tobytes() for o, s in orders}
    assert len(results) == 1


def test_nothing_is_counted_on_a_gpu(monkeypatch):
    """It would be 0, whatever ran: the sources that count are the simulator's."""
    monkeypatch.setattr(counted, "sim", simulated._Elsewhere())
    with pytest.raises(pytest.skip.Exception, match="the simulator's own Module"):
        counted.multiply_adds(monkeypatch, lambda: None)


@pytest.mark.parametrize(
    ("kernel", "stride"), [((3, 3), (2, 2)), ((1, 1), (2, 2)), ((7, 7), (2, 2)), ((3, 5), (1, 4))]
)
def test_no_multiplication_is_wasted(kernel, stride, monkeypatch):
    """Executed multiply-adds, counted: exactly those of the forward pass, where tiles fit.

    Each phase has 64 pixels, a tile; 64 channels, a tile; 16 filters, a panel. A kernel that walks
    all taps at every pixel would execute stride_h * stride_w times as many.
    """
    pads = tuple((k // 2, k - 1 - k // 2) for k in kernel)
    H, W = 8 * stride[0], 8 * stride[1]
    x, w, _ = draw(35, 1, 64, H, W, 16, *kernel)
    conv = Conv2dShape.of(x.shape, w.shape, window(kernel, stride, pads), 1)
    assert (conv.P, conv.Q) == (8, 8)
    dy = np.ones((1, 16, 8, 8), F4)
    config = conv2d_launch.config_backward_data(conv, False)
    inputs = {"dy": dy.transpose(0, 2, 3, 1), "w": w.transpose(0, 2, 3, 1), "x": dy}
    outputs = {"dx": ((1, H, W, 64), F4)}
    count = multiply_adds(monkeypatch, lambda: run(config, inputs, outputs))
    assert count == 8 * 8 * 16 * 64 * kernel[0] * kernel[1]


def test_the_taps_of_all_phases_are_the_filter(monkeypatch):
    """Where tiles do not fit: executed multiply-adds per phase, from its taps found by trying."""
    x, w, _ = draw(36, 2, 5, 11, 14, 7, 4, 3)
    stride, pads, dilation = (3, 2), ((2, 1), (0, 1)), (2, 3)
    conv = Conv2dShape.of(x.shape, w.shape, window((4, 3), stride, pads, dilation), 1)
    dy = np.ones((2, 7, conv.P, conv.Q), F4)
    wanted = 0
    for h, v in product(range(3), range(2)):
        taps = [
            (r, s)
            for r, s in product(range(4), range(3))
            if (h + 2 - 2 * r) % 3 == 0 and (v - 3 * s) % 2 == 0
        ]
        pixels = 2 * len(range(h, 11, 3)) * len(range(v, 14, 2))
        panels = -(-len(taps) * 7 // 16)
        wanted += -(-pixels // 64) * panels * 16 * 64 * 64
    count = multiply_adds(monkeypatch, lambda: backward_data(conv, dy, w, x))
    assert count == wanted
