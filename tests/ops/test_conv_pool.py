"""The fused convolution, ReLU and max-pool: against loops, differences, and layer by layer."""

import cases
import loops
import numpy as np
import pytest

from gpuconv import models, nn, ops
from gpuconv.autograd import Tensor

U32 = 2.0**-24


def case(seed):
    """A convolution whose output a small pool fits; every other one the 2x2 pool of LeNet."""
    x, w, b, *geometry = cases.conv_case(seed)
    b = np.zeros(len(w)) if b is None else b
    size = ops.conv2d.reference(x, w, b, *geometry).shape[2:]
    rng = np.random.default_rng([seed, 5])
    kernel = (2, 2) if seed % 2 else tuple(int(rng.integers(1, min(4, s) + 1)) for s in size)
    if min(size) < 2:
        kernel = (1, 1)
    pool = (kernel, tuple(int(rng.integers(1, 4)) for _ in kernel) if seed % 4 == 0 else None)
    return x, w, b, *geometry, pool


@pytest.mark.parametrize("seed", range(40))
def test_forward_equals_the_three_by_loops(seed):
    x, w, b, *geometry, pool = case(seed)
    exact, absolute = loops.conv2d(x, w, b, *geometry)
    kernel, stride = pool[0], pool[1] or pool[0]
    expected, _ = loops.max_pool2d(
        np.maximum(exact, 0), kernel, stride, ((0, 0), (0, 0)), (1, 1), False
    )
    bound, _ = loops.max_pool2d(absolute, kernel, stride, ((0, 0), (0, 0)), (1, 1), False)
    terms = w[0].size + 3
    for dtype, unit in ((np.float64, 2.0**-53), (np.float32, U32)):
        given = [a.astype(dtype) for a in (x, w, b)]
        y, argmax = ops.conv2d_relu_max_pool2d(*given, *geometry, pool)
        assert y.dtype == dtype
        assert argmax.dtype == np.uint8
        slack = (
            3 * terms * unit / (1 - terms * unit) * bound + 1e-37
        )  # inputs rounded to float32 too
        assert (np.abs(y - expected) <= slack).all()
        # the three operations may add the products in another order, and choose of two near ties
        conv = ops.conv2d(*given, *geometry, "relu")
        assert (np.abs(ops.max_pool2d(conv, *pool)[0] - y) <= slack).all()
        n, k, p, q = np.indices(y.shape)
        row, column = p * stride[0] + argmax // kernel[1], q * stride[1] + argmax % kernel[1]
        assert (conv[n, k, row, column] >= y - slack).all()


@pytest.mark.parametrize("seed", range(40))
def test_gradients_equal_those_of_the_three_operations(seed):
    x, w, b, *geometry, pool = (
        a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in case(seed)
    )
    y, argmax = ops.conv2d_relu_max_pool2d(x, w, b, *geometry, pool)
    dy = np.random.default_rng(seed).standard_normal(y.shape).astype(np.float32)
    found = ops.conv2d_relu_max_pool2d_backward(dy, y, argmax, x, w, b, *geometry, pool)
    conv = ops.conv2d(x, w, b, *geometry, "relu")
    spread = ops.max_pool2d_backward(dy, argmax, conv.shape, *pool)
    masked = ops.relu_backward(spread, conv).astype(np.float64)
    wide = [a.astype(np.float64) for a in (x, w, b)]
    exact = ops.conv2d_backward.reference(masked, *wide, *geometry)
    bounds = ops.conv2d_backward.reference(abs(masked), *map(abs, wide), *geometry)
    terms = max(w[:, 0].size, conv[:, 0].size) + 4
    for gradient, value, bound in zip(found, exact, bounds, strict=True):
        assert gradient.dtype == np.float32
        assert (np.abs(gradient - value) <= terms * U32 / (1 - terms * U32) * bound + 1e-37).all()
    assert (
        ops.conv2d_relu_max_pool2d_backward(dy, y, argmax, x, w, b, *geometry, pool, need_dx=False)[
            0
        ]
        is None
    )


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_definition_equals_central_differences(seed):
    x, w, b, *geometry, pool = case(seed)
    x = x[:1]
    y, argmax = ops.conv2d_relu_max_pool2d.reference(x, w, b, *geometry, pool)
    dy = np.random.default_rng(seed).standard_normal(y.shape)

    def objective():
        return float((dy * ops.conv2d_relu_max_pool2d.reference(x, w, b, *geometry, pool)[0]).sum())

    found = ops.conv2d_relu_max_pool2d_backward.reference(dy, y, argmax, x, w, b, *geometry, pool)
    for gradient, array in zip(found, (x, w, b), strict=True):
        np.testing.assert_allclose(gradient, loops.central_difference(objective, array), 1e-5, 1e-6)


def test_lenet_layer_by_layer_gives_the_same_values():
    """What a model fuses is what its layers compute one by one."""
    rng = np.random.default_rng(0)
    x, labels = rng.random((9, 1, 32, 32), np.float32), rng.integers(0, 10, 9)
    fused, single = models.lenet(), models.lenet()
    single.fusing = False
    losses, gradients = [], []
    for model in (fused, single):
        inputs = Tensor(x, requires_grad=True)
        loss = nn.CrossEntropyLoss()(model(inputs), labels)
        loss.backward()
        losses.append(loss.item())
        gradients.append(inputs.grad)
    np.testing.assert_allclose(*losses, 1e-6)
    np.testing.assert_allclose(*gradients, 1e-4, 1e-7)
    for a, b in zip(fused.parameters(), single.parameters(), strict=True):
        np.testing.assert_allclose(a.grad, b.grad, 1e-4, 1e-6)


def test_nan_and_windows_without_a_positive_value():
    x = -np.ones((1, 1, 4, 4), np.float32)
    x[0, 0, 0, 0] = np.nan
    w = np.ones((1, 1, 1, 1), np.float32)
    y, argmax = ops.conv2d_relu_max_pool2d(x, w)
    np.testing.assert_array_equal(y[0, 0], [[np.nan, 0], [0, 0]])
    dy = np.full_like(y, 3)
    _, dw, db = ops.conv2d_relu_max_pool2d_backward(dy, y, argmax, np.ones_like(x), w, w[0, 0, 0])
    np.testing.assert_array_equal(dw.ravel(), [3])
    np.testing.assert_array_equal(db, [3])


def test_an_empty_batch_and_wrong_arguments():
    w = np.ones((4, 3, 3, 3), np.float32)
    y, argmax = ops.conv2d_relu_max_pool2d(np.ones((0, 3, 8, 8), np.float32), w)
    assert y.shape == argmax.shape == (0, 4, 3, 3)
    with pytest.raises(ValueError, match="does not fit an image of 2x2"):
        ops.conv2d_relu_max_pool2d(np.ones((1, 3, 4, 4), np.float32), w, pool=(3,))
    with pytest.raises(ValueError, match="x has 2 channels, w expects 3"):
        ops.conv2d_relu_max_pool2d(np.ones((1, 2, 8, 8), np.float32), w)
