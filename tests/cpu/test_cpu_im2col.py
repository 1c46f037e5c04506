"""Convolution over gathered columns: held to the definition wherever it is allowed, not only where
it is chosen.
"""

import numpy as np
import pytest
from test_cpu_conv import arrays, check, random_geometry

from gpuconv.cpu import conv, conv_direct, conv_gemm, conv_im2col, conv_pointwise, winograd
from gpuconv.cpu.blocking import forward_blocking
from gpuconv.shapes import Window
from gpuconv.threads import set_thread_count, thread_count


@pytest.fixture(params=[1, 2, 3])
def always(request, monkeypatch):
    """Columns whenever the stride allows it, on 1, 2 and 3 threads; counts the calls."""
    calls = []
    convolve = conv_im2col.convolve

    def counted(*arguments):
        calls.append(arguments[1])
        return convolve(*arguments)

    monkeypatch.setattr(
        conv_im2col, "cheaper", lambda blocking, filters: blocking.tile_shape.stride_w <= 2
    )
    monkeypatch.setattr(conv_im2col, "convolve", counted)
    for other in (winograd, conv_pointwise, conv_gemm):
        monkeypatch.setattr(other, "suits", lambda *arguments: False)
    before = thread_count()
    set_thread_count(request.param)
    yield calls
    set_thread_count(before)


@pytest.mark.parametrize("seed", range(24))
def test_random_geometry(always, seed):
    rng = np.random.default_rng([seed, 3])
    x_shape, K, window, groups = random_geometry(rng)
    x, w, b = arrays(rng, x_shape, K, window.kernel_size, groups)
    check(x, w, b if seed % 3 else None, window, groups, rng)


@pytest.mark.parametrize(
    ("x_shape", "K", "window", "groups"),
    [
        ((1, 1, 1, 1), 1, Window(1), 1),
        ((5, 16, 5, 5), 13, Window(5), 1),  # one pixel an image: a vector spans many
        ((3, 70, 7, 7), 25, Window(3, padding=1), 1),  # depth 630: more than one chunk
        ((1, 1030, 3, 2), 5, Window(1), 1),  # three chunks of one tap
        ((2, 3, 40, 41), 7, Window(3, padding=1), 1),  # more pixels than a line holds
        ((1, 2, 4, 5), 200, Window(3, padding=1), 1),  # few pixels: threads share the filters
        ((2, 4, 9, 8), 6, Window((3, 2), stride=(1, 2), padding=(1, 0)), 2),
        ((2, 4, 9, 37), 6, Window(3, stride=2, padding=((2, 0), (0, 2))), 1),
        ((2, 3, 8, 70), 5, Window(3, stride=(3, 2), dilation=(1, 2)), 1),
        ((2, 3, 6, 6), 4, Window(1, stride=2), 1),  # no output reaches half of the pixels
        ((2, 2, 1, 1), 2, Window((2, 2), stride=2, padding=2), 1),  # windows on padding alone
    ],
)
def test_edges(always, x_shape, K, window, groups):
    rng = np.random.default_rng(K)
    x, w, b = arrays(rng, x_shape, K, window.kernel_size, groups)
    check(x, w, b, window, groups, rng)
    assert always


def test_relu_and_a_nan_that_stays_in_its_windows(always):
    rng = np.random.default_rng(1)
    x, w, b = arrays(rng, (3, 5, 7, 7), 9, (3, 3))
    window = Window(3, padding=1)
    plain = conv.forward(x, w, b, window, 1)
    np.testing.assert_array_equal(conv.forward(x, w, b, window, 1, "relu"), np.maximum(plain, 0))
    x[1, 2, 3, 6] = np.nan
    y = conv.forward(x, w, b, window, 1, "relu")
    nan = np.zeros(y.shape, bool)
    nan[1, :, 2:5, 5:7] = True
    np.testing.assert_array_equal(np.isnan(y), nan)
    np.testing.assert_array_equal(y[~nan], np.maximum(plain, 0)[~nan])


def test_threads_change_no_bit():
    rng = np.random.default_rng(2)
    x, w, b = arrays(rng, (4, 130, 7, 7), 300, (3, 3))
    window, before, results = Window(3, padding=1), thread_count(), []
    for threads in (1, 2, 3):
        set_thread_count(threads)
        assert conv_im2col.cheaper(forward_blocking(x.shape, window, 1, threads), 300)
        y = conv_direct.forward(x, w, b, window, 1, False)
        results.append((y, conv_direct.input_gradient(y, w, x.shape, window, 1)))
    set_thread_count(before)
    for y, dx in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(dx, results[0][1])
