"""The 1x1 convolution by BLAS: when it is taken, and that it is right for any batch and thread
count.
"""

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.cpu import conv_pointwise
from gpuconv.shapes import Window
from gpuconv.threads import set_thread_count, thread_count

U = 2.0**-24


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = thread_count()
    set_thread_count(request.param)
    yield request.param
    set_thread_count(before)


@pytest.mark.parametrize(
    "shape", [(1, 16, 20, 20), (3, 20, 19, 23), (8, 64, 28, 28), (13, 17, 20, 21)]
)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_every_pass_meets_the_proved_bound(threads, shape, activation):
    rng = np.random.default_rng(shape)
    x, w = (
        rng.standard_normal(shape, np.float32),
        rng.standard_normal((33, shape[1], 1, 1), np.float32),
    )
    b = rng.standard_normal(33, np.float32)
    assert conv_pointwise.suits(x.shape, w.shape, Window(1), 1)
    wide, W = x.astype(np.float64), w[:, :, 0, 0].astype(np.float64)
    exact = np.einsum("kc,nchw->nkhw", W, wide) + b[:, None, None]
    size = np.einsum("kc,nchw->nkhw", abs(W), abs(wide)) + abs(b)[:, None, None]
    y = ops.conv2d(x, w, b, activation=activation)
    expected = np.maximum(exact, 0) if activation else exact
    assert (abs(y - expected) <= (shape[1] + 2) * U * 1.01 * size).all()
    dy = rng.standard_normal(y.shape, np.float32)
    dx, _, _ = ops.conv2d_backward(dy, x, w, b)
    exact = np.einsum("kc,nkhw->nchw", W, dy.astype(np.float64))
    size = np.einsum("kc,nkhw->nchw", abs(W), abs(dy.astype(np.float64)))
    assert (abs(dx - exact) <= 35 * U * size).all()
    np.testing.assert_array_equal(y, ops.conv2d(x, w, b, activation=activation))


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [((1, 2), 1), ((1, 1, 1), 1), ((1,), 2), ((3, 1, 1), 1), (((1, 2),), 1)],
)
def test_other_windows_are_left_to_others(arguments, groups):
    assert not conv_pointwise.suits(
        (4, 32, 14, 14), (32, 32 // groups, 1, 1), Window(*arguments), groups
    )


def test_dilation_of_one_tap_and_same_padding_change_nothing():
    assert conv_pointwise.suits((4, 32, 28, 28), (32, 32, 1, 1), Window(1, 1, "same", 3), 1)


def test_nan_stays_in_its_pixel():
    x = np.zeros((2, 16, 20, 20), np.float32)
    x[1, 3, 4, 5] = np.nan
    y = ops.conv2d(x, np.ones((16, 16, 1, 1), np.float32), activation="relu")
    assert np.isnan(y[1, :, 4, 5]).all()
    assert np.isnan(y).sum() == 16
