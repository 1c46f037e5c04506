"""`float64_sums`: float32 results that are the exact ones, rounded; `no_winograd`: the switch."""

import threading

import numpy as np
import pytest
from test_cpu_conv import arrays, define, random_geometry

import gpuconv
from gpuconv import ops
from gpuconv.cpu import conv, conv_direct
from gpuconv.cpu.precision import sums_in_float64, winograd_allowed
from gpuconv.shapes import Window

FLOAT32 = np.dtype(np.float32)


def rounded(result, exact):
    """Whether float32 results are the exact ones to half a unit in the last place, and a trifle for
    the sums in float64 themselves.
    """
    assert result.dtype == np.float32
    half = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64) / 2
    return bool((np.abs(result - exact) <= half * (1 + 1e-6) + 1e-12).all())


@pytest.mark.parametrize("seed", range(12))
def test_a_convolution_of_any_geometry_is_rounded_once(seed):
    rng = np.random.default_rng(seed)
    x_shape, K, window, groups = random_geometry(rng)
    x, w, b = arrays(rng, x_shape, K, window.kernel_size, groups)
    dy = rng.standard_normal((len(x), K, *window.output_size(*x.shape[2:]))).astype(np.float32)
    with gpuconv.float64_sums():
        results = (conv.forward(x, w, b, window, groups), *conv.backward(dy, x, w, window, groups))
        no_dx = conv.backward(dy, x, w, window, groups, need_dx=False)[0]
    for result, exact in zip(results, define(x, w, b, dy, window, groups), strict=True):
        assert rounded(result, exact)
    assert no_dx is None


def test_without_it_a_long_sum_is_not():
    """So that the tests above can tell."""
    rng = np.random.default_rng(0)
    x, w, b = arrays(rng, (2, 64, 12, 12), 32, (3, 3))
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    assert not rounded(conv.forward(x, w, b, window, 1), define(x, w, b, None, window, 1)[0])


def test_a_convolution_under_a_pool():
    rng = np.random.default_rng(1)
    x, w, b = arrays(rng, (3, 20, 14, 14), 16, (5, 5))
    y = define(x, w, b, None, Window((5, 5), (1, 1), ((0, 0), (0, 0)), (1, 1)), 1)[0]
    pooled = np.maximum(y.reshape(3, 16, 5, 2, 5, 2).max((3, 5)), 0)
    with gpuconv.float64_sums():
        result, _ = ops.conv2d_relu_max_pool2d(x, w, b, pool=(2,))
    assert rounded(result, pooled)


def test_a_linear_layer():
    rng = np.random.default_rng(2)
    x, w, dy = (rng.standard_normal(s, np.float32) for s in ((9, 700), (30, 700), (9, 30)))
    with gpuconv.float64_sums():
        y = ops.linear(x, w)
        dx, dw, _ = ops.linear_backward(dy, x, w)
    wide = [a.astype(np.float64) for a in (x, w, dy)]
    assert rounded(y, wide[0] @ wide[1].T)
    assert rounded(dx, wide[2] @ wide[1])
    assert rounded(dw, wide[2].T @ wide[0])


def test_it_ends_with_its_block_and_holds_for_one_thread():
    seen = []

    def look():
        seen.append(sums_in_float64(FLOAT32))

    with gpuconv.float64_sums():
        other = threading.Thread(target=look)
        other.start()
        other.join()
        with gpuconv.float64_sums():
            pass
        look()
        assert not sums_in_float64(np.dtype(np.float64))
    look()
    assert seen == [False, True, False]


def fail_within():
    with gpuconv.float64_sums():
        raise KeyError


def test_it_ends_with_an_error():
    with pytest.raises(KeyError):
        fail_within()
    assert not sums_in_float64(FLOAT32)


def test_without_winograd_a_3x3_convolution_is_the_direct_one():
    """Bit for bit, in every pass, whichever of the two was computed first; with it, it is not."""
    rng = np.random.default_rng(3)
    x, w, b = arrays(rng, (4, 64, 28, 28), 64, (3, 3))
    dy = rng.standard_normal((4, 64, 28, 28)).astype(np.float32)
    window = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    direct = (
        conv_direct.forward(x, w, b, window, 1, False),
        conv_direct.input_gradient(dy, w, x.shape, window, 1),
        conv_direct.weight_gradient(dy, x, w.shape, window, 1)[0],
    )

    def passes():
        y = ops.conv2d(x, w, b, padding=1)
        return (y, *ops.conv2d_backward(dy, x, w, b, padding=1)[:2])

    before = passes()
    with gpuconv.no_winograd():
        within = passes()
    after = passes()
    for exact, off, on, again in zip(direct, within, before, after, strict=True):
        assert off.tobytes() == exact.tobytes()
        assert on.tobytes() != exact.tobytes()
        assert again.tobytes() == on.tobytes()


def fail_without_winograd():
    with gpuconv.no_winograd():
        assert not winograd_allowed()
        raise KeyError


def test_the_switch_ends_with_an_error():
    with pytest.raises(KeyError):
        fail_without_winograd()
    assert winograd_allowed()
