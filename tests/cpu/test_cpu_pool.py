"""The fast CPU pooling against its definition, window by window."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from gpuconv.cpu import pool
from gpuconv.shapes import Window

NO_TAP = 255  # the index of a window of padding alone


def windows(shape, window):
    """((p, q), [(tap, h, w) inside the image]) of every window, in row order."""
    (H, W), (R, S), (sh, sw), (dh, dw) = (
        shape[2:],
        window.kernel_size,
        window.stride,
        window.dilation,
    )
    P, Q = window.output_size(H, W)
    (top, _), (left, _) = window.pads(H, W)
    for p in range(P):
        for q in range(Q):
            places = [
                (r * S + s, p * sh - top + r * dh, q * sw - left + s * dw)
                for r in range(R)
                for s in range(S)
            ]
            yield (p, q), [(tap, h, w) for tap, h, w in places if 0 <= h < H and 0 <= w < W]


def define_max(x, window):
    shape = (*x.shape[:2], *window.output_size(*x.shape[2:]))
    y, argmax = np.full(shape, -np.inf, x.dtype), np.full(shape, NO_TAP, np.uint8)
    for (p, q), taps in windows(x.shape, window):
        for n, c in np.ndindex(x.shape[:2]):
            for tap, h, w in taps:
                value = x[n, c, h, w]
                if argmax[n, c, p, q] == NO_TAP or value > y[n, c, p, q] or np.isnan(value):
                    y[n, c, p, q], argmax[n, c, p, q] = value, tap
    return y, argmax


def define_max_backward(dy, argmax, x_shape, window):
    dx = np.zeros(x_shape)
    for (p, q), taps in windows(x_shape, window):
        for tap, h, w in taps:
            dx[:, :, h, w] += np.where(argmax[:, :, p, q] == tap, dy[:, :, p, q], 0)
    return dx


def random_case(rng):
    while True:
        window = Window(
            tuple(rng.integers(1, 5, 2).tolist()),
            tuple(rng.integers(1, 5, 2).tolist()),
            tuple(tuple(rng.integers(0, 3, 2).tolist()) for _ in range(2)),
            tuple(rng.integers(1, 3, 2).tolist()),
            bool(rng.integers(2)),
        )
        shape = (*rng.integers(1, 4, 2).tolist(), *rng.integers(1, 20, 2).tolist())
        try:
            window.output_size(*shape[2:])
        except ValueError:
            continue
        return shape, window


CASES = [
    ((1, 1, 1, 1), Window(1)),
    ((2, 3, 1, 1), Window(2, stride=2, padding=1)),
    ((2, 3, 9, 9), Window(4, stride=4, padding=2, ceil_mode=True)),
    ((2, 3, 28, 28), Window(2, stride=2)),
    ((2, 3, 29, 37), Window(2, stride=2)),
    ((2, 3, 29, 69), Window(2, stride=2, ceil_mode=True)),
    ((2, 2, 23, 70), Window(3, stride=2, padding=1)),
    ((2, 2, 5, 5), Window(1, stride=3, padding=2)),  # some windows on padding alone
    ((1, 1, 20, 20), Window((15, 17))),
]
CASES += [random_case(np.random.default_rng(seed)) for seed in range(60)]


@pytest.mark.parametrize(("shape", "window"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_max(shape, window, dtype):
    rng = np.random.default_rng(1)
    x = rng.integers(-3, 4, shape).astype(dtype)  # ties everywhere
    x[rng.random(shape) < 0.1] = -np.inf
    x[rng.random(shape) < 0.1] = np.nan
    y, argmax = pool.max_forward(x, window)
    expected, indices = define_max(x, window)
    assert np.array_equal(y, expected, equal_nan=True)
    assert np.array_equal(argmax, indices)
    assert y.dtype == dtype
    dy = rng.integers(-9, 10, y.shape).astype(dtype)
    dx = pool.max_backward(dy, argmax, shape, window)
    assert np.array_equal(dx, define_max_backward(dy, argmax, shape, window))
    assert dx.dtype == dtype


@pytest.mark.parametrize(("shape", "window"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sum(shape, window, dtype):
    rng = np.random.default_rng(2)
    x = rng.integers(-9, 10, shape).astype(dtype)  # sums of small integers are exact
    y = pool.sum_forward(x, window)
    expected, dx = np.zeros(y.shape), np.zeros(shape)
    dy = rng.integers(-9, 10, y.shape).astype(dtype)
    for (p, q), taps in windows(shape, window):
        for _, h, w in taps:
            expected[:, :, p, q] += x[:, :, h, w]
            dx[:, :, h, w] += dy[:, :, p, q]
    assert np.array_equal(y, expected)
    assert np.array_equal(pool.sum_backward(dy, shape, window), dx)
    assert y.dtype == dtype


def test_any_strides():
    rng = np.random.default_rng(3)
    base = rng.standard_normal((3, 4, 12, 16)).astype(np.float32)
    frozen = base.copy()
    frozen.flags.writeable = False
    window = Window(3, stride=2, padding=1)
    for x in (
        base[::-1, :, ::-1, ::-1],
        base.swapaxes(2, 3),
        frozen,
        base[:, 1:, ::3, ::2],
        np.asfortranarray(base),
    ):
        y, argmax = pool.max_forward(x, window)
        expected, indices = define_max(x, window)
        assert np.array_equal(y, expected)
        assert np.array_equal(argmax, indices)
        dy = np.asfortranarray(y)
        dx = pool.max_backward(dy, np.asfortranarray(argmax), x.shape, window)
        assert np.array_equal(dx, pool.max_backward(y, argmax, x.shape, window))
        assert np.array_equal(pool.sum_forward(x, window), pool.sum_forward(x.copy(), window))
        assert np.array_equal(
            pool.sum_backward(dy, x.shape, window), pool.sum_backward(y, x.shape, window)
        )


def test_repeats_bit_for_bit_from_several_threads():
    x = np.random.default_rng(4).standard_normal((8, 16, 40, 40)).astype(np.float32)
    window = Window(3, stride=2, padding=1)

    def run():
        y, argmax = pool.max_forward(x, window)
        dx = pool.max_backward(y, argmax, x.shape, window)
        return [a.tobytes() for a in (y, argmax, dx, pool.sum_backward(y, x.shape, window))]

    expected, wrong = run(), []
    threads = [
        threading.Thread(target=lambda: [run() == expected or wrong.append(1) for _ in range(3)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceil_mode"),
    [(2, 2, 0, False), (3, 2, 1, True), (3, 1, 1, False)],
)
def test_as_torch_does(kernel, stride, padding, ceil_mode):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(5).standard_normal((2, 5, 31, 33)).astype(np.float32)
    x[0, 0, 3, 3:5] = np.nan
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.max_pool2d(tensor, kernel, stride, padding, ceil_mode=ceil_mode)
    window = Window(kernel, stride, padding, ceil_mode=ceil_mode)
    y, argmax = pool.max_forward(x, window)
    assert np.array_equal(y, expected.detach().numpy(), equal_nan=True)
    dy = np.random.default_rng(6).integers(-9, 9, y.shape).astype(np.float32)
    expected.backward(torch.tensor(dy))
    assert np.array_equal(pool.max_backward(dy, argmax, x.shape, window), tensor.grad.numpy())
