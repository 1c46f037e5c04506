"""Batch norm: the definition against loops, PyTorch and differences; `cpu` against it."""

import cases
import loops
import numpy as np
import pytest

from gpuconv import nn, ops
from gpuconv.autograd import Tensor

SWEEP = 40
U32, U64 = 2.0**-24, 2.0**-53


def case(seed):
    """x, w, b, statistics or None, eps, activation: odd sizes, large means, no weights."""
    rng = np.random.default_rng([21, seed])
    shape = (int(rng.integers(1, 5)), int(rng.integers(1, 6)), *rng.integers(1, 10, 2))
    if shape[0] * shape[2] * shape[3] < 2:
        shape = (2, *shape[1:])
    x = rng.standard_normal(shape) * rng.choice([0.1, 1, 5]) + rng.choice([0, 3, -20])
    C = shape[1]
    w, b = (rng.standard_normal(C), rng.standard_normal(C)) if rng.random() < 0.8 else (None, None)
    statistics = (
        (rng.standard_normal(C), rng.random(C) + 0.1) if rng.random() < 0.4 else (None,) * 2
    )
    return x, w, b, *statistics, float(rng.choice([1e-5, 1e-3])), [None, "relu"][seed % 2]


def cast(arguments, dtype):
    return [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in arguments]


def by_loops(x, w, b, mean, var, eps, activation):
    """y, mean, var, channel by channel, in Python floats."""
    y, means, variances = np.empty(x.shape), [], []
    for c in range(x.shape[1]):
        values = [float(v) for v in x[:, c].ravel()]
        m = sum(values) / len(values) if mean is None else mean[c]
        v = sum((a - m) ** 2 for a in values) / len(values) if var is None else var[c]
        out = (x[:, c] - m) / (v + eps) ** 0.5 * (1 if w is None else w[c])
        out = out + (0 if b is None else b[c])
        y[:, c] = np.where(out > 0, out, 0) if activation else out
        means.append(m)
        variances.append(v)
    return y, np.array(means), np.array(variances)


@pytest.mark.parametrize("seed", range(SWEEP))
def test_definition_equals_loops(seed):
    arguments = case(seed)
    for found, expected in zip(
        ops.batch_norm2d.reference(*arguments), by_loops(*arguments), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


def output_bound(x, w, b, mean, var, eps, unit):
    """The proved bound of (x - mean) * scale + b with rounded mean, var and scale, to first order.

    The sum over n terms is in double precision: its own error counts once more, in `unit` at most.
    """
    mean, var, w, b = (a[:, None, None] for a in (mean, var, w, b))
    scale = np.abs(w) / np.sqrt(var + eps)
    away = np.abs(x - mean)
    return unit * (scale * (3 * np.abs(mean) + 8 * away) + 3 * np.abs(b)) + 1e-37


@pytest.mark.parametrize("seed", range(SWEEP))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cpu_agrees_with_the_definition(seed, dtype):
    x, w, b, mean, var, eps, activation = cast(case(seed), dtype)
    y, mean_found, var_found = ops.batch_norm2d(x, w, b, mean, var, eps, activation)
    exact = ops.batch_norm2d.reference(*cast((x, w, b, mean, var, eps, activation), np.float64))
    C = x.shape[1]
    ones = [np.ones(C) if w is None else w, np.zeros(C) if b is None else b]
    unit = U32 if dtype == np.float32 else 64 * U64
    bound = output_bound(x.astype(np.float64), *ones, *exact[1:], eps, unit)
    assert y.dtype == mean_found.dtype == var_found.dtype == dtype
    assert (np.abs(y - exact[0]) <= bound).all()
    np.testing.assert_allclose(mean_found, exact[1], 4 * unit, 4 * unit * np.abs(x).max())
    np.testing.assert_allclose(var_found, exact[2], 8 * unit, 1e-37)


@pytest.mark.parametrize("seed", range(SWEEP))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cpu_gradients_agree_with_the_definition(seed, dtype):
    x, w, b, mean, var, eps, activation = cast(case(seed), dtype)
    of_batch = mean is None
    _, mean, var = ops.batch_norm2d(x, w, b, mean, var, eps, activation)
    # a value near the ReLU's edge may fall on either side of it: such elements get no gradient
    edge = ops.batch_norm2d.reference(x, w, b, mean, var, eps)[0]
    dy = np.random.default_rng(seed).standard_normal(x.shape).astype(dtype)
    dy[np.abs(edge) < 1e-4] = 0
    tail = eps, activation, of_batch
    found = ops.batch_norm2d_backward(dy, x, w, b, mean, var, *tail)
    exact = ops.batch_norm2d_backward.reference(*cast((dy, x, w, b, mean, var), np.float64), *tail)
    deviation = np.sqrt(var.astype(np.float64) + eps)[:, None, None]
    z = np.abs((x - mean.astype(np.float64)[:, None, None]) / deviation)
    unit = U32 if dtype == np.float32 else 64 * U64
    scale = np.abs(1 if w is None else w.astype(np.float64)[:, None, None]) / deviation
    sums = [np.abs(dy).sum((0, 2, 3)), (np.abs(dy) * (z + 1)).sum((0, 2, 3))]
    means = [a[:, None, None] * x.shape[1] / x.size for a in sums]
    bounds = (16 * unit * scale * (np.abs(dy) + means[0] + (z + 1) * means[1]), sums[1], sums[0])
    for gradient, expected, bound, times in zip(found, exact, bounds, (1, 8, 4), strict=True):
        if expected is None:
            assert gradient is None
            continue
        assert gradient.dtype == dtype
        limit = bound if times == 1 else times * unit * bound
        assert (np.abs(gradient - expected) <= limit + 1e-37).all()
    without = ops.batch_norm2d_backward(dy, x, w, b, mean, var, *tail, False)
    assert without[0] is None
    for a, c in zip(without[1:], found[1:], strict=True):
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("seed", range(12))
def test_gradients_equal_central_differences(seed):
    x, w, b, mean, var, eps, activation = case(seed)
    C = x.shape[1]
    w, b = (np.ones(C), np.zeros(C) + 0.1) if w is None else (w, b)
    dy = np.random.default_rng(seed).standard_normal(x.shape)

    def objective():
        return float(
            (dy * ops.batch_norm2d.reference(x, w, b, mean, var, eps, activation)[0]).sum()
        )

    used = ops.batch_norm2d.reference(x, w, b, mean, var, eps, activation)[1:]
    gradients = ops.batch_norm2d_backward.reference(
        dy, x, w, b, *used, eps, activation, mean is None
    )
    for gradient, array in zip(gradients, (x, w, b), strict=True):
        difference = loops.central_difference(objective, array)
        np.testing.assert_allclose(gradient, difference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["reversed", "strided", "fortran", "read-only", "channels"])
def test_layouts_do_not_matter(layout):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 3, 4, 5, 6)).astype(np.float32)
    w, b = rng.standard_normal((2, 4)).astype(np.float32)
    y, mean, var = ops.batch_norm2d(x, w, b, activation="relu")
    plain = ops.batch_norm2d_backward(dy, x, w, b, mean, var, activation="relu")
    if layout == "channels":  # cut from a wider array, as a dense block's are
        wide = rng.standard_normal((2, 3, 9, 5, 6)).astype(np.float32)
        wide[:, :, 2:6] = x, dy
        x2, dy2 = wide[:, :, 2:6]
    else:
        x2, dy2 = (cases.disguises(a)[layout] for a in (x, dy))
    for found, expected in zip(
        ops.batch_norm2d(x2, w, b, activation="relu"), (y, mean, var), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    again = ops.batch_norm2d_backward(dy2, x2, w, b, mean, var, activation="relu")
    for found, expected in zip(again, plain, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(x2, x)


def test_calls_repeat_bit_for_bit_whatever_the_number_of_threads():
    from gpuconv import set_thread_count, thread_count

    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, 8, 16, 40, 40), np.float32)
    w = np.ones(16, np.float32)
    results, before = [], thread_count()
    try:
        for threads in (1, 2, 3, 3):
            set_thread_count(threads)
            y, mean, var = ops.batch_norm2d(x, w, w, activation="relu")
            results.append(
                [y, mean, var, *ops.batch_norm2d_backward(dy, x, w, w, mean, var, 1e-5, "relu")]
            )
    finally:
        set_thread_count(before)
    for other in results[1:]:
        for a, c in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, c)


def test_a_nan_stays_in_its_channel():
    x = np.random.default_rng(2).standard_normal((2, 3, 4, 4)).astype(np.float32)
    x[1, 1, 2, 3] = np.nan
    for run in (ops.batch_norm2d, ops.batch_norm2d.reference):
        y, mean, var = run(x, activation="relu")
        assert np.isnan(y[:, 1]).all()
        assert not np.isnan(y[:, [0, 2]]).any()
        assert np.isnan(mean[1])
        assert np.isnan(var[1])


def test_far_from_zero_the_variance_keeps_its_digits():
    x = np.random.default_rng(3).standard_normal((4, 1, 50, 50)).astype(np.float32) + 4096
    _, _, var = ops.batch_norm2d(x)
    assert var[0] == pytest.approx(x.astype(np.float64).var(), rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((np.ones((2, 3, 4)),), r"x must have 4 axes \(N, C, H, W\), got shape \(2, 3, 4\)"),
        ((np.ones((2, 3, 4, 4)), np.ones(4)), r"w must have shape \(3,\), got \(4,\)"),
        ((np.ones((0, 3, 4, 4)),), "an empty batch has no mean"),
        ((np.ones((2, 3, 4, 4)), None, None, np.ones(3)), "both mean and var, or neither"),
        ((np.ones((2, 3, 4, 4)), None, None, None, None, -1.0), "eps must be a finite number >= 0"),
        (
            (np.ones((2, 3, 4, 4)), None, None, None, None, 1e-5, "tanh"),
            'activation must be None or "relu"',
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, text):
    for run in (ops.batch_norm2d, ops.batch_norm2d.reference):
        with pytest.raises(ValueError, match=text):
            run(*arguments)


def test_an_empty_batch_in_evaluation_is_empty():
    y, _, _ = ops.batch_norm2d(np.ones((0, 3, 4, 4)), None, None, np.zeros(3), np.ones(3))
    assert y.shape == (0, 3, 4, 4)


def test_layer_tracks_the_running_statistics():
    layer = nn.BatchNorm2d(2)
    x = np.random.default_rng(4).standard_normal((3, 2, 4, 5)).astype(np.float32) + 1
    layer.forward(x)
    layer.forward(x)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), ddof=1)
    np.testing.assert_allclose(layer.running_mean.data, 0.19 * mean, 1e-5)
    np.testing.assert_allclose(layer.running_var.data, 0.81 + 0.19 * var, 1e-5)
    assert layer.num_batches_tracked.data == 2
    before = {key: value.copy() for key, value in layer.state_dict().items()}
    y = layer.eval().forward(x)
    for key, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    shift = before["running_mean"][:, None, None]
    scale = np.sqrt(before["running_var"] + 1e-5)[:, None, None]
    np.testing.assert_allclose(y, (x - shift) / scale, 1e-4, 1e-6)
    assert list(before) == [
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="more than one value a channel"):
        layer.train().forward(np.ones((1, 2, 1, 1), np.float32))


@pytest.mark.torch
@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_equals_pytorch(device, training, affine):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(5)
    ours = nn.BatchNorm2d(6, 1e-3, 0.3, affine).to(device, np.float64)
    theirs = torch.nn.BatchNorm2d(6, 1e-3, 0.3, affine).double()
    for key, value in ours.state_dict().items():
        if key != "num_batches_tracked":
            value[...] = rng.random(6) + 0.5
    theirs.load_state_dict({k: torch.tensor(v) for k, v in ours.state_dict().items()})
    ours.train(training)
    theirs.train(training)
    x, dy = rng.standard_normal((2, 4, 6, 5, 7))
    t = torch.tensor(x, requires_grad=True)
    y = theirs(t)
    y.backward(torch.tensor(dy))
    inputs = Tensor(x, requires_grad=True, device=device)
    result = ours(inputs)
    result.backward(dy)
    np.testing.assert_allclose(result.data, y.detach(), 1e-10, 1e-12)
    np.testing.assert_allclose(inputs.grad, t.grad, 1e-8, 1e-11)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(mine.grad, other.grad, 1e-9, 1e-11)
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key], value, 1e-12)
