"""Windows far larger than the image, or far apart: the definition's result, in a moment.

The definition itself is compared with loops over small windows elsewhere; here the windows that
read the image at all are few enough to count by hand.
"""

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.ops.op import Op
from gpuconv.shapes import Window

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 2, 8, 7)).astype(np.float32)
W = RNG.normal(size=(3, 2, 3, 3)).astype(np.float32)
B = RNG.normal(size=3).astype(np.float32)
N, LARGEST = 10_000, 2**31 - 1

CONVOLUTIONS = [
    # stride, padding, dilation
    (N, N, N),
    (LARGEST, 0, 1),
    (LARGEST, LARGEST // 2, LARGEST // 2),
    (N, "full", N - 3),
    ((1, N), (0, N), (2, N)),
    (65, (70, 0), 1),
]


@pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=str)
def test_convolution_equals_its_definition(geometry):
    y = ops.conv2d(X, W, B, *geometry, activation="relu")
    np.testing.assert_allclose(y, ops.conv2d.reference(X, W, B, *geometry, 1, "relu"), atol=1e-5)
    dy = RNG.normal(size=y.shape).astype(np.float32)
    found = ops.conv2d_backward(dy, X, W, B, *geometry)
    for got, expected in zip(
        found, ops.conv2d_backward.reference(dy, X, W, B, *geometry), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    pooled = ops.conv2d_relu_max_pool2d(X, W, B, *geometry, 1, (1,))[0]
    np.testing.assert_array_equal(pooled, y)


def test_one_tap_of_a_distant_window_reads_one_pixel():
    """Windows of taps N apart, N apart, with N of padding: only the middle tap hits the image."""
    y = ops.conv2d(X, W, None, N, N, N)
    assert y.shape == (2, 3, 1, 1)
    np.testing.assert_allclose(y[:, :, 0, 0], X[:, :, 0, 0] @ W[:, :, 1, 1].T, rtol=1e-5)
    dx, dw, _ = ops.conv2d_backward(np.ones_like(y), X, W, None, N, N, N)
    assert np.count_nonzero(dx) == 2 * 2
    np.testing.assert_allclose(dw[:, :, 1, 1], np.tile(X[:, :, 0, 0].sum(0), (3, 1)), rtol=1e-5)
    assert np.count_nonzero(dw) == 3 * 2


@pytest.mark.parametrize("kernel", [N, LARGEST - 1])
def test_pools_of_a_window_larger_than_the_image(kernel):
    geometry = (kernel, LARGEST, kernel // 2)  # one window: it holds the whole image
    total = X.sum((2, 3), dtype=np.float64)
    np.testing.assert_allclose(ops.sum_pool2d(X, *geometry)[:, :, 0, 0], total, rtol=1e-4)
    assert (ops.sum_pool2d_backward(total.astype("f4")[..., None, None], X.shape, *geometry)[0, 0]
            == total.astype("f4")[0, 0]).all()  # fmt: skip


def test_adaptive_pool_to_many_outputs():
    x = X[:1, :1]
    y = ops.adaptive_avg_pool2d(x, (20_000, 14))
    assert y.shape == (1, 1, 20_000, 14)
    np.testing.assert_array_equal(y[0, 0, ::2500, ::2], x[0, 0])
    dx = ops.adaptive_avg_pool2d_backward(np.ones_like(y), x.shape)
    np.testing.assert_array_equal(dx, 2500 * 2)


def test_taps_are_only_those_that_read_the_image():
    window = Window(LARGEST, 1, LARGEST // 2)  # as many windows as pixels, each sees all of them
    assert window.output_size(2, 3) == (2, 3)
    assert len(list(window.taps(2, 3))) == (2 * 2 - 1) * (2 * 3 - 1)


WINDOWS = [
    name
    for name in ops.__all__
    if isinstance(getattr(ops, name), Op)
    and "stride" in getattr(ops, name).parameters
    and not name.endswith("_backward")
]


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("size", [2**31, 2**64, 10**40])
def test_a_size_that_no_image_has_is_refused_in_one_line(name, size):
    function = getattr(ops, name)
    first = (X, W) if name.startswith("conv") else (X, 2)
    for option in ("stride", "padding", "dilation"):
        with pytest.raises(ValueError, match=f"^{name}: {option} must be at most {LARGEST}.*$"):
            function(*first, **{option: size})
