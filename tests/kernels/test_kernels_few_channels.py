"""The kernels for images of few channels (conv_few_channels.cu) against the float64 definition.

The gate is test_kernels_conv's: element by element, the proved bound.
"""

import numpy as np
import pytest
from kernel_runs import F4, how_of, set_constant
from test_kernels_conv import backward_weight, compare, draw, forward

from gpuconv.cuda import split_k
from gpuconv.ops import conv2d_launch, conv2d_launch_few_channels
from gpuconv.ops.conv2d_launch import Conv2dShape
from gpuconv.shapes import window

KERNELS = {"conv2d_forward_few_channels", "conv2d_backward_weight_few_channels"}
# R, S, C, K of the specialisations; the sweep draws everything else.
WINDOWS = [
    (3, 3, 3, 9),
    (5, 5, 1, 6),
    (7, 7, 3, 20),
    (2, 3, 4, 17),
    (1, 1, 2, 8),
    (11, 11, 3, 36),
    (1, 4, 3, 11),
    (6, 1, 1, 33),
]


def launched(conv):
    plans = (
        conv2d_launch.config_forward(conv, True, False),
        conv2d_launch.config_backward_weight(conv),
    )
    return {plan.launches[0].kernel for plan in plans}


def first_case(seed):
    """Rows of 16 to 70 columns of y, any stride, padding and dilation."""
    rng = np.random.default_rng([25, seed])
    R, S, C, K = WINDOWS[seed % len(WINDOWS)]
    stride = rng.choice([1, 1, 2, 3, 4], 2)
    dilation = rng.choice([1, 1, 2, 3], 2)
    pads = rng.integers(0, 4, (2, 2))
    P, Q = int(rng.integers(1, 12)), int(rng.integers(16, 71))
    reach = dilation * (np.array([R, S]) - 1) + 1
    spare = [int(rng.integers(n)) for n in stride]  # rows and columns that no window reads
    size = (np.array([P, Q]) - 1) * stride + reach + spare - pads.sum(1)
    H, W = (int(n) for n in np.maximum(size, 1))
    x, w, b = draw(seed, int(rng.integers(1, 4)), C, H, W, K, R, S)
    pads = tuple(tuple(map(int, side)) for side in pads)
    return x, w, b, tuple(map(int, stride)), pads, tuple(map(int, dilation))


def compare_first(number, **how):
    x, w, b, *geometry = first_case(number)
    conv = Conv2dShape.of(x.shape, w.shape, window(w.shape[2:], *geometry), 1)
    assert launched(conv) == KERNELS
    compare(x, w, b, *geometry, passes="yw", **how)


@pytest.mark.parametrize("seed", range(16))
def test_random_geometries(seed):
    compare_first(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16, 232))
def test_random_geometries_at_length(seed):
    compare_first(seed, **how_of(seed))


def test_what_the_sweep_holds():
    cases = [first_case(seed) for seed in range(232)]
    assert len({(x.shape, w.shape, *rest) for x, w, _, *rest in cases}) >= 200
    assert {x.shape[1] for x, *_ in cases} == {1, 2, 3, 4}
    assert any(len(x) == 1 for x, *_ in cases[:16])
    assert any(stride[0] != stride[1] for *_, stride, _, _ in cases[:16])
    assert any(dilation[0] != dilation[1] for *_, dilation in cases[:16])


# A segment has 32 columns; a tile 8, 16 or 32 rows; a block 8, 16 or 32 filters.
@pytest.mark.parametrize("Q", [31, 32, 33, 63, 64, 65])
def test_one_below_at_and_above_a_segment(Q):
    compare(*draw(Q, 2, 3, 3, Q, 5, 1, 1), passes="yw")


@pytest.mark.parametrize("K", [7, 8, 9, 15, 16, 17, 31, 32, 33])
def test_one_below_at_and_above_the_filters_and_rows_of_a_block(K):
    for P in (7, 8, 9) if K > 16 else (15, 16, 17) if K > 8 else (31, 32, 33):
        compare(*draw(K, 1, 1, P, 17, K, 1, 1), passes="yw")


@pytest.mark.parametrize("stride", [1, 2])
def test_slices_are_summed_in_order_in_every_order_of_blocks(stride, monkeypatch):
    set_constant(monkeypatch, split_k, "MIN_SPLIT", 64)
    x, w, b = draw(41, 2, 3, 11, 37, 40, 3, 3)
    conv = Conv2dShape.of(x.shape, w.shape, window(3, stride, 1), 1)
    assert launched(conv) == KERNELS
    assert conv2d_launch.config_backward_weight(conv).workspace > 4 * w.size
    compare(x, w, b, stride, 1, passes="yw", check=True)
    dy = np.random.default_rng(41).standard_normal((2, 40, conv.P, conv.Q)).astype(F4)
    orders = [("forward", 0), ("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
    for call, arguments in ((forward, (x, w, b)), (backward_weight, (dy, x))):
        results = {call(conv, *arguments, order=o, seed=s).tobytes() for o, s in orders}
        assert len(results) == 1


def test_what_no_window_reads_stays_unread():
    """Infinity beside the last window, where a segment ends: it must not meet a zero gradient."""
    x, w, b = draw(42, 1, 3, 9, 42, 5, 3, 3)
    x[..., 41] = np.inf  # 20 windows at stride 2 read columns 0 to 40
    conv = Conv2dShape.of(x.shape, w.shape, window(3, 2), 1)
    assert launched(conv) == KERNELS
    dy = np.ones((1, 5, conv.P, conv.Q), F4)
    assert np.isfinite(backward_weight(conv, dy, x)).all()
    assert np.isfinite(forward(conv, x, w, b)).all()


@pytest.mark.parametrize(
    ("conv", "applies"),
    [
        (Conv2dShape(8, 3, 224, 224, 64, 7, 7, 112, 112, 2, 2, 3, 3), True),
        (Conv2dShape(8, 3, 227, 227, 96, 11, 11, 55, 55, 4, 4), True),
        (Conv2dShape(8, 3, 224, 224, 64, 3, 3, 224, 224, 1, 1, 1, 1), True),
        (Conv2dShape(8, 1, 32, 32, 6, 5, 5, 28, 28), True),
        (Conv2dShape(8, 5, 32, 32, 6, 5, 5, 28, 28), False),  # channels
        (Conv2dShape(8, 4, 32, 32, 8, 1, 1, 32, 32, groups=2), False),
        (Conv2dShape(8, 3, 15, 15, 8, 1, 1, 15, 15), False),  # narrow
        (Conv2dShape(8, 4, 64, 64, 32, 10, 10, 55, 55), False),  # 400 (r,s,c)
        (Conv2dShape(1, 4, 90, 9000, 32, 1, 9, 90, 16, 1, 550), False),  # shared memory
    ],
)
def test_where_the_plan_takes_them(conv, applies):
    assert (launched(conv) == KERNELS) == applies
    if applies:
        found = dict(conv2d_launch_few_channels.macros(conv))
        groups, parts, lanes = (int(found[n]) for n in ("GROUPS", "PARTS", "LANES"))
        assert groups * int(found["COLUMNS"]) >= conv.R * conv.S * conv.C
        assert 128 <= groups * parts * lanes <= 256
