"""Pooling: the definitions against loops, PyTorch and differences; `cpu` against the definitions,
exactly.
"""

import cases
import loops
import numpy as np
import pytest

from gpuconv import ops
from gpuconv.arrays import to_device, to_numpy

GOLDEN = np.array([[1, 1, 2, 4], [5, 6, 7, 8], [3, 2, 1, 0], [1, 2, 3, 4]], np.float32)[None, None]
SWEEP = 60


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_goldens_of_the_article(device):
    run = (lambda op, *a: op.reference(*a)) if device == "reference" else (lambda op, *a: op(*a))
    np.testing.assert_array_equal(run(ops.max_pool2d, GOLDEN, 2)[0][0, 0], [[6, 8], [3, 4]])
    np.testing.assert_array_equal(run(ops.avg_pool2d, GOLDEN, 2)[0, 0], [[3.25, 5.25], [2, 2]])
    np.testing.assert_array_equal(run(ops.sum_pool2d, GOLDEN, 2)[0, 0], [[13, 21], [8, 8]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(SWEEP))
def test_max_pool_equals_loops(seed, dtype):
    x, *geometry = cases.pool_case(seed)
    x = x.astype(dtype)
    expected = loops.max_pool2d(x, *geometry)
    for run in (ops.max_pool2d, ops.max_pool2d.reference):
        y, argmax = run(x, *geometry)
        assert y.dtype == dtype
        assert argmax.dtype == np.uint8
        np.testing.assert_array_equal(y, expected[0])
        np.testing.assert_array_equal(argmax, expected[1])


@pytest.mark.parametrize("seed", range(SWEEP))
def test_sum_and_average_equal_loops(seed):
    x, *geometry = cases.pool_case(seed)
    expected = loops.avg_pool2d(x, *geometry, include_pad=True, average=False)
    np.testing.assert_allclose(ops.sum_pool2d.reference(x, *geometry), expected, 1e-12, 1e-12)
    np.testing.assert_allclose(ops.sum_pool2d(x, *geometry), expected, 1e-12, 1e-12)
    for include_pad in (True, False):
        expected = loops.avg_pool2d(x, *geometry, include_pad)
        for run in (ops.avg_pool2d, ops.avg_pool2d.reference):
            np.testing.assert_allclose(run(x, *geometry, include_pad), expected, 1e-12, 1e-12)
        single = ops.avg_pool2d(x.astype(np.float32), *geometry, include_pad)
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, expected, 1e-5, 1e-5)


def upstream(seed, y):
    return np.random.default_rng([seed, 1]).standard_normal(y.shape)


@pytest.mark.parametrize("seed", range(SWEEP))
def test_gradients_on_cpu_equal_the_definitions(seed):
    x, *geometry = cases.pool_case(seed)
    y, argmax = ops.max_pool2d.reference(x, *geometry)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        dy = upstream(seed, y).astype(dtype)
        pairs = [
            (ops.max_pool2d_backward, (dy, argmax, x.shape, *geometry)),
            (ops.sum_pool2d_backward, (dy, x.shape, *geometry)),
            (ops.avg_pool2d_backward, (dy, x.shape, *geometry, True)),
            (ops.avg_pool2d_backward, (dy, x.shape, *geometry, False)),
        ]
        for operation, arguments in pairs:
            found, expected = operation(*arguments), operation.reference(*arguments)
            assert found.dtype == dtype
            np.testing.assert_allclose(found, expected, tolerance, tolerance)
            np.testing.assert_array_equal(found, operation(*arguments))


@pytest.mark.parametrize("seed", range(10))
def test_gradients_equal_central_differences(seed):
    x, *geometry = cases.pool_case(seed)
    x = np.random.default_rng(seed).permutation(x.size).reshape(x.shape).astype(np.float64)[:1]
    y, argmax = ops.max_pool2d.reference(x, *geometry)
    dy = upstream(seed, y)
    difference = loops.central_difference(
        lambda: float((dy * np.maximum(ops.max_pool2d.reference(x, *geometry)[0], -1e9)).sum()),
        x,
        1e-3,
    )
    found = ops.max_pool2d_backward.reference(dy, argmax, x.shape, *geometry)
    np.testing.assert_allclose(found, difference, 1e-6, 1e-6)
    for include_pad in (True, False):
        difference = loops.central_difference(
            lambda p=include_pad: float((dy * ops.avg_pool2d.reference(x, *geometry, p)).sum()),
            x,
            1e-3,
        )
        found = ops.avg_pool2d_backward.reference(dy, x.shape, *geometry, include_pad)
        np.testing.assert_allclose(found, difference, 1e-6, 1e-6)


@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_nan_wins_padding_never_and_ties_go_to_the_first(device):
    def pool(x, *geometry):
        x = np.array(x, np.float32)[None, None]
        run = ops.max_pool2d.reference if device == "reference" else ops.max_pool2d
        y, argmax = run(x, *geometry)
        return y[0, 0].tolist(), argmax[0, 0].tolist()

    assert pool([[7, 7], [7, 7]], 2) == ([[7]], [[0]])
    assert pool([[-3, -np.inf], [-5, -9]], 2, 2, 1) == ([[-3, -np.inf], [-5, -9]], [[3, 2], [1, 0]])
    y, argmax = pool([[1, np.nan], [9, np.inf]], 2)
    assert np.isnan(y[0][0])
    assert argmax == [[1]]
    assert pool([[-np.inf, -np.inf]], (1, 2)) == ([[-np.inf]], [[0]])


@pytest.mark.parametrize("layout", ["reversed", "strided", "fortran", "read-only"])
def test_layouts_do_not_matter(layout):
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 8)).astype(np.float32)
    other = cases.disguises(x)[layout]
    y, argmax = ops.max_pool2d(x, 3, 2, 1)
    for found, expected in zip(ops.max_pool2d(other, 3, 2, 1), (y, argmax), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ops.avg_pool2d(other, 3, 2, 1), ops.avg_pool2d(x, 3, 2, 1))
    dy = cases.disguises(y)[layout]
    found = ops.max_pool2d_backward(dy, argmax, x.shape, 3, 2, 1)
    np.testing.assert_array_equal(found, ops.max_pool2d_backward(y, argmax, x.shape, 3, 2, 1))


@pytest.mark.parametrize("operation", [ops.max_pool2d, ops.sum_pool2d, ops.avg_pool2d])
def test_an_empty_batch_gives_empty_outputs(operation):
    y = operation(np.ones((0, 3, 8, 8), np.float32), 3, 2)
    y, argmax = y if isinstance(y, tuple) else (y, None)
    assert y.shape == (0, 3, 3, 3)
    if argmax is not None:
        assert ops.max_pool2d_backward(y, argmax, (0, 3, 8, 8), 3, 2).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((np.ones((2, 3, 4), np.float32), 2), ValueError, "4 axes"),
        ((np.ones((1, 1, 4, 4), np.float32), 5), ValueError, "5x5.*does not fit"),
        ((np.ones((1, 1, 4, 4), np.float32), 2, 2, 2), ValueError, "padding 2 is more than half"),
        ((np.ones((1, 1, 4, 4), np.int64), 2), TypeError, "float32 or float64"),
    ],
)
def test_wrong_arguments_get_one_line(arguments, error, text):
    for run in (ops.max_pool2d, ops.max_pool2d.reference):
        with pytest.raises(error, match=text) as raised:
            run(*arguments)
        assert "\n" not in str(raised.value)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(40))
def test_definitions_equal_pytorch(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x, kernel, stride, _, dilation, ceil_mode = cases.pool_case(seed + 500)
    rng = np.random.default_rng(seed)
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
    t = torch.tensor(x, requires_grad=True)
    F = torch.nn.functional
    try:
        y = F.max_pool2d(t, kernel, stride, padding, dilation, ceil_mode)
    except RuntimeError:  # no window fits, then neither for us
        with pytest.raises(ValueError, match="does not fit"):
            ops.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
        return
    dy = upstream(seed, y)
    y.backward(torch.tensor(dy))
    found, argmax = ops.max_pool2d.reference(x, kernel, stride, padding, dilation, ceil_mode)
    np.testing.assert_array_equal(found, y.detach())
    dx = ops.max_pool2d_backward.reference(
        dy, argmax, x.shape, kernel, stride, padding, dilation, ceil_mode
    )
    np.testing.assert_allclose(dx, t.grad, 1e-12, 1e-12)
    for include in (True, False):
        t.grad = None
        y = F.avg_pool2d(t, kernel, stride, padding, ceil_mode, include)
        dy = upstream(seed, y)
        y.backward(torch.tensor(dy))
        geometry = (kernel, stride, padding, 1, ceil_mode, include)
        np.testing.assert_allclose(ops.avg_pool2d.reference(x, *geometry), y.detach(), 1e-12, 1e-12)
        dx = ops.avg_pool2d_backward.reference(dy, x.shape, *geometry)
        np.testing.assert_allclose(dx, t.grad, 1e-12, 1e-12)


BIG_WINDOWS = [  # kernel, stride, padding, dilation, ceil_mode
    ((16, 17), (1, 2), ((0, 0), (0, 0)), (1, 1), False),
    ((17, 18), (2, 3), ((8, 7), (9, 8)), (1, 1), True),
    ((20, 23), (1, 1), ((9, 0), (0, 0)), (1, 1), False),
]


@pytest.mark.parametrize("device", ["reference", "cpu", "sim"])
@pytest.mark.parametrize("channels", [1, 4])
def test_windows_of_more_than_255_taps_equal_loops(device, channels):
    """argmax is then int32."""
    x = np.random.default_rng(5).standard_normal((2, channels, 20, 23)).astype(np.float32)
    x[0, 0, 3, 4] = np.nan
    run, back = ops.max_pool2d, ops.max_pool2d_backward
    if device == "reference":
        run, back = run.reference, back.reference
    for geometry in BIG_WINDOWS:
        y, argmax = loops.max_pool2d(x, *geometry)
        assert argmax.max() > 255 or argmax.size < 20
        found = run(to_device(x, device), *geometry)
        assert found[1].dtype == np.int32
        np.testing.assert_array_equal(to_numpy(found[0]), y)
        np.testing.assert_array_equal(to_numpy(found[1]), argmax)
        _, stride, pads, _, _ = geometry
        expected = np.zeros(x.shape)
        for n, c, p, q in np.ndindex(y.shape):
            r, s = divmod(argmax[n, c, p, q], geometry[0][1])
            h, v = p * stride[0] - pads[0][0] + r, q * stride[1] - pads[1][0] + s
            expected[n, c, h, v] += n + c + p + q
        dy = np.float32(np.indices(y.shape).sum(0))
        dx = back(to_device(dy, device), found[1], x.shape, *geometry)
        np.testing.assert_array_equal(to_numpy(dx), expected)


@pytest.mark.torch
def test_a_large_window_gives_torchs_result():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    x = np.random.default_rng(6).standard_normal((2, 3, 33, 31)).astype(np.float32)
    given = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.max_pool2d(given, (19, 17), 3, (9, 8))
    y, argmax = ops.max_pool2d(x, (19, 17), 3, (9, 8))
    np.testing.assert_array_equal(y, expected.detach())
    expected.sum().backward()
    dx = ops.max_pool2d_backward(np.ones_like(y), argmax, x.shape, (19, 17), 3, (9, 8))
    np.testing.assert_array_equal(dx, given.grad)
