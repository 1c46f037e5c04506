"""Adaptive average pooling and the sum of branches: against loops, PyTorch and differences."""

import loops
import numpy as np
import pytest

from gpuconv import nn, ops
from gpuconv.autograd import Tensor


def case(seed):
    rng = np.random.default_rng([23, seed])
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 4)), *rng.integers(1, 10, 2))
    return rng.standard_normal(shape), (int(rng.integers(1, 9)), int(rng.integers(1, 9)))


def by_loops(x, size):
    N, C, H, W = x.shape
    y = np.empty((N, C, *size))
    for n, c, p, q in np.ndindex(y.shape):
        rows = [h for h in range(H) if (h + 1) * size[0] > p * H and h * size[0] < (p + 1) * H]
        columns = [w for w in range(W) if (w + 1) * size[1] > q * W and w * size[1] < (q + 1) * W]
        values = [float(x[n, c, h, w]) for h in rows for w in columns]
        y[n, c, p, q] = sum(values) / len(values)
    return y


@pytest.mark.parametrize("seed", range(40))
def test_definition_equals_loops_and_differences(seed):
    x, size = case(seed)
    np.testing.assert_allclose(ops.adaptive_avg_pool2d(x, size), by_loops(x, size), 1e-12, 1e-14)
    dy = np.random.default_rng(seed).standard_normal((*x.shape[:2], *size))
    dx = ops.adaptive_avg_pool2d_backward(dy, x.shape)
    if seed < 8:
        difference = loops.central_difference(
            lambda: float((dy * ops.adaptive_avg_pool2d(x, size)).sum()), x
        )
        np.testing.assert_allclose(dx, difference, 1e-5, 1e-7)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(20))
def test_definition_equals_pytorch(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, size = case(seed + 100)
    t = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.adaptive_avg_pool2d(t, size)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    y.backward(torch.tensor(dy))
    np.testing.assert_allclose(ops.adaptive_avg_pool2d(x, size), y.detach(), 1e-12, 1e-14)
    np.testing.assert_allclose(ops.adaptive_avg_pool2d_backward(dy, x.shape), t.grad, 1e-12, 1e-14)


def test_the_same_size_is_the_identity_and_one_is_the_global_mean():
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(ops.adaptive_avg_pool2d(x, (6, 7)), x)
    np.testing.assert_array_equal(ops.adaptive_avg_pool2d(x, 1)[..., 0, 0], x.mean((2, 3)))
    inputs = Tensor(x, requires_grad=True)
    y = nn.AdaptiveAvgPool2d(1)(inputs)
    np.testing.assert_array_equal(y.data[..., 0, 0], x.mean((2, 3)))
    y.backward(np.ones((2, 3, 1, 1), np.float32))
    np.testing.assert_allclose(inputs.grad, np.full(x.shape, 1 / 42), 1e-6)


def test_wrong_arguments_are_refused():
    x = np.ones((2, 3, 4, 4))
    for arguments, text in (
        ((x[0], 1), "4 axes"),
        ((x, 0), "output_size must be at least 1"),
        ((x[:, :, :0], 1), "without pixels"),
    ):
        with pytest.raises(ValueError, match=text):
            ops.adaptive_avg_pool2d(*arguments)
    with pytest.raises(ValueError, match="dy must have shape"):
        ops.adaptive_avg_pool2d_backward(np.ones((2, 2, 1, 1)), x.shape)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_sum_of_branches(activation, dtype):
    a, b = np.random.default_rng(1).standard_normal((2, 3, 5, 40, 120)).astype(dtype)
    a[0, 0, 0, 0] = np.nan
    expected = a + b
    if activation:
        expected = np.where(expected < 0, dtype(0), expected)
    for run in (ops.add, ops.add.reference):
        np.testing.assert_array_equal(run(a, b, activation), expected)
    view = b[::-1, :, ::2]
    np.testing.assert_array_equal(ops.add(a[:, :, ::2], view), a[:, :, ::2] + view)
    with pytest.raises(ValueError, match="b must have shape"):
        ops.add(a, b[:1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_element_by_element(dtype):
    a, b = np.random.default_rng(4).standard_normal((2, 3, 5, 40, 120)).astype(dtype)
    a[0, 0, 0, 0] = np.nan
    for run in (ops.multiply, ops.multiply.reference):
        np.testing.assert_array_equal(run(a, b), a * b)
    view = b[::-1, :, ::2]
    np.testing.assert_array_equal(ops.multiply(a[:, :, ::2], view), a[:, :, ::2] * view)
    assert ops.multiply(a[:0], b[:0]).shape == (0, 5, 40, 120)


def test_accumulate_adds_in_place():
    total, b = np.random.default_rng(2).standard_normal((2, 4, 9, 50, 60))
    expected = total.copy()
    expected[:, 2:5] += b[:, :3]
    assert ops.accumulate(total[:, 2:5], b[:, :3]).base is not None
    np.testing.assert_array_equal(total, expected)
    assert ops.accumulate(np.zeros((0, 2)), np.zeros((0, 2))).shape == (0, 2)
