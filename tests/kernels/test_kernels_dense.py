"""Element-by-element, softmax, loss and layout kernels, run by the simulator."""

import numpy as np
import pytest
from kernel_runs import F4, assert_within, gamma, run

from gpuconv import ops
from gpuconv.cuda import layout
from gpuconv.cuda.launch_config import config_elementwise
from gpuconv.ops import softmax_launch

SIZES = [1, 3, 4, 5, 1023, 1024, 1025, 16387]
SPECIAL = F4([0.0, -0.0, np.inf, -np.inf, np.nan, 1e38, -1e38, 1e-30, 2.0**-126])


def numbers(seed, count):
    x = np.random.default_rng([41, seed]).standard_normal(count).astype(F4) * 3
    x[: min(count, len(SPECIAL))] = SPECIAL[:count]
    return x


def elementwise(file, kernel, result, inputs, aligned=True, **scalars):
    count = next(iter(inputs.values())).size
    config = config_elementwise(file, kernel, count, aligned)
    return run(config, inputs, {result: ((count,), F4)}, scalars)[result]


def dropout(x, p, seed):
    scalars = {"seed": seed, "threshold": round(p * 2**32), "factor": 1 / (1 - p)}
    return elementwise("elementwise.cu", "dropout", "y", {"x": x}, **scalars)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("count", SIZES)
def test_relu_equals_the_definition(count, aligned):
    x = numbers(1, count)
    y = elementwise("relu.cu", "relu_forward", "y", {"x": x}, aligned)
    np.testing.assert_array_equal(y, ops.relu.definition(x))
    dy = np.random.default_rng(count).standard_normal(count).astype(F4)
    dx = elementwise("relu.cu", "relu_backward", "dx", {"dy": dy, "y": y}, aligned)
    np.testing.assert_array_equal(dx, ops.relu_backward.definition(dy, y))


def test_subnormal_numbers_become_zero():
    """-ftz=true, which CuPy sets: named here, for it is where device and definition part."""
    x = F4([1e-40, -1e-40])
    one, dy = np.ones(2, F4), F4([1e-40, 1e-40])
    for file, kernel, result, inputs in (
        ("relu.cu", "relu_forward", "y", {"x": x}),
        ("activations.cu", "tanh_forward", "y", {"x": x}),
        ("activations.cu", "scaled_tanh_forward", "y", {"x": x}),
        ("activations.cu", "tanh_backward", "dx", {"dy": dy, "y": one / 2}),
        ("activations.cu", "scaled_tanh_backward", "dx", {"dy": dy, "y": one / 2}),
        ("activations.cu", "sigmoid_backward", "dx", {"dy": dy, "y": one / 2}),
        ("elementwise.cu", "add", "to", {"a": x, "b": 0 * one}),
        ("elementwise.cu", "multiply", "to", {"a": x, "b": 1e30 * one}),
    ):
        assert (elementwise(file, kernel, result, inputs) == 0).all(), kernel
    assert (elementwise("elementwise.cu", "scale", "to", {"a": x}, factor=1e30) == 0).all()
    assert (elementwise("activations.cu", "sigmoid_forward", "y", {"x": x}) == 0.5).all()
    assert (dropout(x, 0.0, 0) == 0).all()
    # a gradient passes as it is where ReLU was open: it is selected, not computed
    passed = elementwise("relu.cu", "relu_backward", "dx", {"dy": dy, "y": one})
    np.testing.assert_array_equal(passed, dy)
    scores = F4([[0.0, -95.0, 1e-40]])  # exp(-95) is subnormal
    config = softmax_launch.config_rowwise("softmax_forward", 1, 3)
    shares = run(config, {"x": scores}, {"y": ((1, 3), F4)})["y"]
    np.testing.assert_array_equal(shares, [[0.5, 0.0, 0.5]])


def test_softmax_and_losses_with_nan_and_infinity():
    """NaN, or infinity among the scores, gives NaN, never a plausible number; -inf is a share 0."""
    for bad in (np.nan, np.inf):
        x = F4([[1, 2, 3], [1, bad, 3]])
        config = softmax_launch.config_rowwise("softmax_forward", 2, 3)
        y = run(config, {"x": x}, {"y": (x.shape, F4)})["y"]
        assert np.isfinite(y[0]).all()
        assert np.isnan(y[1]).any()
        for name, options, saved in LOSSES:
            if name == "hinge" and bad == np.inf:
                continue  # max(0, margin - right + inf) is inf
            scalars = {} if name == "half_squared_error" else loss_scalars(options, 3)
            config = softmax_launch.config_loss(name + "_forward", 2, 3, "int32")
            inputs = loss_inputs(name, scores=x, labels=np.int32([0, 0]))
            outputs = {saved: (x.shape, F4), "loss": ((1,), F4)}
            loss = run(config, inputs, outputs, scalars)["loss"]
            assert np.isnan(loss), name
    x = F4([[0, -np.inf, 0]])
    config = softmax_launch.config_rowwise("softmax_forward", 1, 3)
    np.testing.assert_array_equal(run(config, {"x": x}, {"y": (x.shape, F4)})["y"], [[0.5, 0, 0.5]])


@pytest.mark.parametrize("count", [5, 4100])
@pytest.mark.parametrize("name", ["tanh", "scaled_tanh", "sigmoid"])
def test_activations_are_within_their_rounding(name, count):
    x = numbers(2, count)
    y = elementwise("activations.cu", name + "_forward", "y", {"x": x})
    with np.errstate(over="ignore"):
        exact = getattr(ops, name).definition(x.astype(np.float64))
    known = ~np.isnan(exact)
    np.testing.assert_array_equal(np.isnan(y), ~known)
    assert_within(y[known], exact[known], 6 * 2.0**-24 * abs(exact[known]) + 1e-37)
    y = np.nan_to_num(y)
    dy = np.random.default_rng(count).standard_normal(count).astype(F4)
    dx = elementwise("activations.cu", name + "_backward", "dx", {"dy": dy, "y": y})
    exact = getattr(ops, name + "_backward").definition(*(a.astype(np.float64) for a in (dy, y)))
    assert_within(dx, exact, gamma(6) * 2 * abs(dy.astype(np.float64)) + 1e-37)


@pytest.mark.parametrize("count", SIZES)
def test_sums_products_and_dropout_equal_the_definitions(count):
    a, b = numbers(3, count), numbers(4, count)[::-1].copy()
    with np.errstate(invalid="ignore"):
        total = a + b
    np.testing.assert_array_equal(
        elementwise("elementwise.cu", "add", "to", {"a": a, "b": b}), total
    )
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        product = a * b
    normal = ~((abs(product) < 2.0**-126) & (product != 0))
    computed = elementwise("elementwise.cu", "multiply", "to", {"a": a, "b": b})
    np.testing.assert_array_equal(computed[normal], product[normal])
    half = elementwise("elementwise.cu", "scale", "to", {"a": a}, factor=0.5)
    np.testing.assert_array_equal(half[:8], (a * F4(0.5))[:8])
    b = np.clip(b, F4(-9), F4(9))
    for p, seed in ((0.0, 0), (0.3, 12345), (0.75, 2**64 - 1)):
        y = dropout(b, p, seed)
        expected = ops.dropout.definition(b, p, seed)
        normal = (abs(expected) >= 2.0**-126) | (expected == 0) | np.isnan(expected)
        np.testing.assert_array_equal(y[normal], expected[normal])


ROWS = [(1, 1), (1, 10), (9, 31), (17, 32), (8, 33), (3, 1000)]


def scored(rows, classes, dtype=np.int32):
    rng = np.random.default_rng([42, rows, classes])
    scores = 4 * rng.standard_normal((rows, classes)).astype(F4)
    return scores, rng.integers(0, classes, rows).astype(dtype)


@pytest.mark.parametrize(("rows", "classes"), ROWS)
def test_softmax(rows, classes):
    x, _ = scored(rows, classes)
    config = softmax_launch.config_rowwise("softmax_forward", rows, classes)
    y = run(config, {"x": x}, {"y": (x.shape, F4)})["y"]
    exact = ops.softmax.definition(x.astype(np.float64))
    spread = np.ptp(x.astype(np.float64), axis=1, keepdims=True)
    assert_within(y, exact, (gamma(classes + 8) + spread * 2.0**-23) * exact + 1e-37)
    dy = np.random.default_rng(rows).standard_normal(x.shape).astype(F4)
    config = softmax_launch.config_rowwise("softmax_backward", rows, classes)
    dx = run(config, {"dy": dy, "y": y}, {"dx": (x.shape, F4)})["dx"]
    d, p = dy.astype(np.float64), y.astype(np.float64)
    bound = gamma(classes + 4) * p * (abs(d) + (abs(d) * p).sum(1, keepdims=True))
    assert_within(dx, ops.softmax_backward.definition(d, p), bound + 1e-37)


LOSSES = [
    ("cross_entropy", {}, "probabilities"),
    ("cross_entropy", {"label_smoothing": 0.1}, "probabilities"),
    ("half_squared_error", {}, "probabilities"),
    ("hinge", {"margin": 1.5}, "excess"),
]


def loss_scalars(options, classes):
    if "margin" in options:
        return options
    smoothing = options.get("label_smoothing", 0.0)
    return {"right": 1 - smoothing, "even": smoothing / classes, "ignore": -100}


def loss_inputs(name, **arrays):
    """The arrays, and for cross-entropy one that stands in for the classes' weights."""
    if name == "cross_entropy":
        arrays["weight"] = next(iter(arrays.values()))
    return arrays


def loss_and_gradient(scores, labels, weight, smoothing, ignore=-100, **how):
    """By the one kernel for both."""
    rows, classes = scores.shape
    kind = labels.dtype.name
    config = softmax_launch.config_loss_and_gradient(rows, classes, kind, weight is not None)
    scalars = {**loss_scalars({"label_smoothing": smoothing}, classes), "ignore": ignore}
    inputs = {"scores": scores, "labels": labels, "weight": scores if weight is None else weight}
    outputs = {"loss": ((1,), F4), "dscores": (scores.shape, F4)}
    return run(config, inputs, outputs, scalars, **how)


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (9, 10), (257, 10), (300, 33)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_with_its_gradient(rows, classes, smoothing):
    scores, labels = scored(rows, classes)
    rng = np.random.default_rng(rows)
    for weight in (None, rng.uniform(0.5, 2, classes).astype(F4)):
        ignore = int(labels[0]) if rows > 1 else -100
        check = rows == 9
        found = loss_and_gradient(scores, labels, weight, smoothing, ignore, check=check)
        wide = None if weight is None else weight.astype(np.float64)
        options = smoothing, wide, ignore
        exact = ops.cross_entropy.definition(scores.astype(np.float64), labels, *options)
        size = 8 * (abs(scores).max() + 5)
        bound = gamma(rows + classes + 20) * size
        assert_within(found["loss"], np.array([exact[0]]), bound)
        dx = ops.cross_entropy_backward.definition(exact[1], labels, *options)
        counted = (labels != ignore).sum()
        assert_within(found["dscores"], dx, gamma(rows + classes + 100) * 16 / counted)


def test_a_loss_with_its_gradient_where_nothing_counts_and_for_wrong_labels():
    scores = F4([[1, 2, 3], [3, 1, 2]])
    found = loss_and_gradient(scores, np.int32([1, 1]), None, 0.0, ignore=1)
    assert np.isnan(found["loss"])
    assert not found["dscores"].any()
    for wrong in (-1, 3, 2**31 - 1):
        found = loss_and_gradient(scores, np.int32([wrong, 0]), None, 0.0, check=True)
        assert np.isnan(found["loss"])
        assert np.isnan(found["dscores"]).any()
    large = F4([[1e38, -1e38, 0], [-1e38, 1e38, 1e38]])
    found = loss_and_gradient(large, np.int32([0, 1]), None, 0.0)
    np.testing.assert_allclose(found["loss"], np.log(2) / 2, 1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize(("rows", "classes"), ROWS)
@pytest.mark.parametrize(("name", "options", "saved"), LOSSES)
def test_losses(name, options, saved, rows, classes, dtype):
    scores, labels = scored(rows, classes, dtype)
    scalars = {} if name == "half_squared_error" else loss_scalars(options, classes)
    config = softmax_launch.config_loss(name + "_forward", rows, classes, np.dtype(dtype).name)
    inputs = loss_inputs(name, scores=scores, labels=labels)
    found = run(config, inputs, {saved: (scores.shape, F4), "loss": ((1,), F4)}, scalars)
    exact, kept = getattr(ops, name).definition(scores.astype(np.float64), labels, **options)
    size = abs(scores).max() + 5 if name != "half_squared_error" else 1
    assert_within(found["loss"], np.array([exact]), gamma(rows + classes + 20) * size * 4)
    assert_within(found[saved], kept, gamma(classes + 100) * (abs(kept) + size * (name == "hinge")))
    scalars = scalars if name == "cross_entropy" else {}
    kind = np.dtype(dtype).name
    config = softmax_launch.config_loss_backward(name + "_backward", rows, classes, kind)
    inputs = loss_inputs(name, **{saved: found[saved]}, labels=labels)
    dscores = run(config, inputs, {"dscores": (scores.shape, F4)}, scalars)["dscores"]
    options = options if name == "cross_entropy" else {}
    backward = getattr(ops, name + "_backward").definition
    exact = backward(found[saved].astype(np.float64), labels, **options)
    assert_within(dscores, exact, gamma(classes + 8) * 3 / rows)


def test_scores_of_1e38_do_not_overflow():
    scores = F4([[1e38, -1e38, 0], [-1e38, 1e38, 1e38]])
    labels = np.int32([0, 1])
    config = softmax_launch.config_loss("cross_entropy_forward", 2, 3, "int32")
    scalars = loss_scalars({}, 3)
    inputs = loss_inputs("cross_entropy", scores=scores, labels=labels)
    outputs = {"probabilities": ((2, 3), F4), "loss": ((1,), F4)}
    found = run(config, inputs, outputs, scalars)
    np.testing.assert_array_equal(found["probabilities"], [[1, 0, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(found["loss"], np.log(2) / 2, 1e-6)
    found = run(config, {**inputs, "labels": np.int32([1, 0])}, outputs, scalars)
    np.testing.assert_allclose(found["loss"], 2e38, 1e-6)


def test_a_label_out_of_range_gives_nan_and_reads_nothing():
    scores = np.zeros((2, 3), F4)
    for wrong in (-1, 3, 2**31 - 1):
        config = softmax_launch.config_loss("cross_entropy_forward", 2, 3, "int32")
        inputs = loss_inputs("cross_entropy", scores=scores, labels=np.int32([wrong, 0]))
        outputs = {"probabilities": ((2, 3), F4), "loss": ((1,), F4)}
        scalars = loss_scalars({}, 3)
        assert np.isnan(run(config, inputs, outputs, scalars, check=True)["loss"])


SHAPES = [(1, 2, 2), (2, 3, 1024), (3, 31, 33), (2, 32, 32), (1, 64, 68), (2, 60, 128), (40, 6, 25)]


@pytest.mark.parametrize(("batch", "rows", "columns"), SHAPES)
def test_transposes_equal_numpy(batch, rows, columns):
    x = np.arange(batch * rows * columns, dtype=np.uint32).view(F4)  # any bits: it is a copy
    x = x.reshape(batch, rows, columns)
    config = layout.config_transpose(batch, rows, columns)
    for order in ("forward", "shuffled"):
        y = run(config, {"x": x}, {"y": ((batch, columns, rows), F4)}, order=order)["y"]
        assert y.tobytes() == np.ascontiguousarray(x.transpose(0, 2, 1)).tobytes()


def test_one_row_needs_no_copy():
    assert not layout.config_transpose(8, 1, 32 * 32).launches
    assert not layout.config_transpose(8, 16, 1).launches
