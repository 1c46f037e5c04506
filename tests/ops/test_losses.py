"""The losses: the article's numbers, PyTorch's, central differences, and scores of any size."""

import itertools
import math

import loops
import numpy as np
import pytest

from gpuconv import nn, ops
from gpuconv.arrays import to_device, to_numpy
from gpuconv.autograd import Tensor

PAIRS = {
    "cross_entropy": (ops.cross_entropy, ops.cross_entropy_backward),
    "article": (ops.half_squared_error, ops.half_squared_error_backward),
    "hinge": (ops.hinge, ops.hinge_backward),
}


def scores_for(probabilities):
    return np.log(np.array([probabilities]))


def test_golden_of_the_article():
    labels = np.array([2])
    loss, p = ops.half_squared_error(scores_for([0.2, 0.4, 0.1, 0.3]), labels)
    assert loss == pytest.approx(0.55, abs=1e-12)
    np.testing.assert_allclose(
        ops.half_squared_error_backward(p, labels), [[0, 0.08, -0.11, 0.03]], atol=1e-12
    )
    np.testing.assert_allclose(
        ops.cross_entropy_backward(p, labels), [[0.2, 0.4, -0.9, 0.3]], atol=1e-12
    )
    loss, _ = ops.half_squared_error(scores_for([0.1, 0.1, 0.7, 0.1]), labels)
    assert loss == pytest.approx(0.06, abs=1e-12)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradient_equals_central_difference(name, dtype):
    forward, backward = PAIRS[name]
    rng = np.random.default_rng(6)
    scores, labels = rng.standard_normal((5, 4)), rng.integers(0, 4, 5)
    difference = loops.central_difference(lambda: forward.reference(scores, labels)[0], scores)
    given = scores.astype(dtype)
    dscores = backward(forward(given, labels)[1], labels)
    assert dscores.dtype == dtype
    np.testing.assert_allclose(dscores, difference, 1e-5, 1e-6)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(8))
def test_cpu_agrees_with_the_definition(name, dtype, seed):
    forward, backward = PAIRS[name]
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 40)), int(rng.integers(1, 30))
    scores = (rng.standard_normal((n, classes)) * 10.0 ** rng.integers(-2, 3)).astype(dtype)
    labels = rng.integers(0, classes, n).astype([np.int64, np.uint8, np.int32][seed % 3])
    options = [0.1] if name == "cross_entropy" and seed % 2 else []
    tolerance = 2e-5 if dtype == np.float32 else 1e-11
    loss, saved = forward(scores, labels, *options)
    expected_loss, expected = forward.reference(scores, labels, *options)
    assert loss == pytest.approx(expected_loss, rel=tolerance, abs=tolerance)
    assert saved.dtype == dtype
    np.testing.assert_allclose(saved, expected, tolerance, tolerance)
    options = options if name == "cross_entropy" else []
    found = backward(saved, labels, *options)
    assert found.dtype == dtype
    exact = backward.reference(expected.astype(np.float64), labels, *options)
    np.testing.assert_allclose(found, exact, tolerance, tolerance)


@pytest.mark.parametrize("name", ["cross_entropy", "article"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_makes_the_loss_nan(name, bad):
    forward, _ = PAIRS[name]
    scores = np.zeros((3, 4), np.float32)
    scores[1, 2] = bad
    with np.errstate(invalid="ignore"):
        for run in (forward, forward.reference):
            loss, p = run(scores, np.array([0, 1, 2]))
            assert np.isnan(loss)
            assert np.isnan(p[1]).all()
            assert not np.isnan(p[[0, 2]]).any()


def test_label_smoothing_gradient():
    rng = np.random.default_rng(7)
    scores, labels = rng.standard_normal((5, 4)), rng.integers(0, 4, 5)
    difference = loops.central_difference(
        lambda: ops.cross_entropy.reference(scores, labels, 0.2)[0], scores
    )
    _, p = ops.cross_entropy(scores, labels, 0.2)
    np.testing.assert_allclose(ops.cross_entropy_backward(p, labels, 0.2), difference, 1e-6, 1e-8)


@pytest.mark.parametrize("name", PAIRS)
def test_huge_scores_do_not_overflow(name):
    forward, backward = PAIRS[name]
    scores = np.float32([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [3e38, -3e38, 0]])[:, :3]
    labels = np.array([1, 1, 0])
    with np.errstate(over="raise", invalid="raise"):
        loss, saved = forward(scores[:2], labels[:2])
        assert np.isfinite(loss)
        assert np.isfinite(backward(saved, labels[:2])).all()


def test_cross_entropy_of_a_hopeless_score_is_its_distance():
    loss, _ = ops.cross_entropy(np.float32([[1e4, -1e4]]), np.array([1]))
    assert loss == pytest.approx(2e4)


@pytest.mark.parametrize("name", PAIRS)
def test_an_empty_batch_costs_nothing(name):
    forward, backward = PAIRS[name]
    labels = np.zeros(0, np.int64)
    loss, saved = forward(np.zeros((0, 10), np.float32), labels)
    assert loss == 0
    assert backward(saved, labels).shape == (0, 10)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("scores", "labels", "error", "text"),
    [
        (np.ones((2, 3)), np.array([0, 3]), ValueError, "label 3 is out of range: 3 classes"),
        (np.ones((2, 3)), np.array([-1, 0]), ValueError, "label -1 is out of range"),
        (np.ones((2, 3)), np.array([0, 1, 2]), ValueError, r"labels must have shape \(2,\)"),
        (np.ones((2, 3)), np.array([0.0, 1.0]), TypeError, "labels must be an array of integers"),
        (np.ones((2, 3, 1)), np.array([0, 1]), ValueError, r"2 axes \(N, classes\)"),
    ],
)
def test_wrong_arguments(name, scores, labels, error, text):
    with pytest.raises(error, match=text):
        PAIRS[name][0](scores, labels)


LABELS = {"all": [0, 4, 2, 2, 1, 3], "some ignored": [0, -100, 2, 2, -100, 3]}
WEIGHTS = {
    "none": None,
    "all": [0.5, 2.0, 0.1, 1.0, 3.0],
    "a class of 0": [1.0, 2.0, 0.0, 1, 1],
}
SMOOTHING = (0.0, 0.3, 1.0)


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def weighted_cross_entropy(scores, labels, smoothing, weight, ignore=-100):
    """PyTorch's formula, in Python floats."""
    total = divisor = 0.0
    for row, label in zip(scores.tolist(), labels, strict=True):
        if label == ignore:
            continue
        log_p = [s - math.log(sum(map(math.exp, row))) for s in row]
        weights = [1.0] * len(row) if weight is None else weight
        spread = sum(w * p for w, p in zip(weights, log_p, strict=True)) / len(row)
        total -= (1 - smoothing) * weights[label] * log_p[label] + smoothing * spread
        divisor += weights[label]
    return total / divisor


@pytest.mark.parametrize("device", ["reference", "cpu", "sim"])
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_weights_and_ignored_labels(labels, weight, device):
    scores = np.random.default_rng(9).standard_normal((6, 5)) * 3
    dtype = np.float32 if device == "sim" else np.float64
    close = {"rel": 1e-5, "abs": 1e-6} if device == "sim" else {"rel": 1e-11, "abs": 1e-12}
    for smoothing in SMOOTHING:

        def exact(smoothing=smoothing):
            return weighted_cross_entropy(scores, labels, smoothing, weight)

        given = Tensor(to_device(scores.astype(dtype), device), requires_grad=True,
                       device="reference" if device == "reference" else None)  # fmt: skip
        criterion = nn.CrossEntropyLoss(smoothing, weight)
        loss = criterion(given, to_device(np.array(labels), device))
        assert loss.item() == pytest.approx(exact(), **close)
        loss.backward()
        difference = loops.central_difference(exact, scores)
        np.testing.assert_allclose(to_numpy(given.grad), difference, 1e-4, 1e-6)
        ignored = np.array(labels) == -100
        assert not to_numpy(given.grad)[ignored].any()


@pytest.mark.parametrize("device", ["cpu", "sim"])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_any_integer_type(dtype, device):
    """The same numbers for every type, one of which is ignored."""
    scores = np.random.default_rng(10).standard_normal((6, 5)).astype(np.float32)
    labels = np.array([0, 4, 2, 2, 1, 3])
    given = to_device(scores, device)
    for (forward, backward), options in [
        (PAIRS["cross_entropy"], (0.0, None, 2)), (PAIRS["article"], ()), (PAIRS["hinge"], ()),
    ]:  # fmt: skip
        expected, kept = forward.reference(scores, labels, *options)
        placed = to_device(labels.astype(dtype), device)
        loss, found = forward(given, placed, *options)
        assert loss == pytest.approx(expected, rel=1e-5)
        dscores = to_numpy(backward(found, placed, *options))
        exact = backward.reference(kept, labels, *options)
        np.testing.assert_allclose(dscores, exact, 1e-4, 1e-6)


@pytest.mark.parametrize("device", ["reference", "cpu", "sim"])
def test_where_no_label_counts_the_loss_is_nan_and_the_gradient_0(device):
    scores, labels = np.ones((3, 4), np.float32), np.full(3, 255, np.uint8)
    forward, backward = PAIRS["cross_entropy"]
    if device == "reference":
        forward, backward = forward.reference, backward.reference
    labels = to_device(labels, device)
    loss, p = forward(to_device(scores, device), labels, ignore_index=255)
    assert math.isnan(loss)
    assert not to_numpy(backward(p, labels, ignore_index=255)).any()


@pytest.mark.parametrize("device", ["reference", "cpu", "sim"])
def test_where_all_labels_weigh_nothing_loss_and_gradient_are_nan(device):
    """As PyTorch's."""
    given = Tensor(to_device(np.ones((2, 3), np.float32), device), requires_grad=True,
                   device="reference" if device == "reference" else None)  # fmt: skip
    loss = nn.CrossEntropyLoss(weight=[0.0, 1.0, 1.0])(given, to_device(np.array([0, 0]), device))
    with np.errstate(invalid="ignore"):
        loss.backward()
    assert math.isnan(loss.item())
    assert np.isnan(to_numpy(given.grad)).all()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"weight": np.ones(3)}, ValueError, r"cross_entropy: weight must have shape \(4,\)"),
        ({"weight": np.ones(4, np.float32)}, TypeError, "cross_entropy: arrays of different types"),
        (
            {"weight": np.ones(4, int)},
            TypeError,
            "cross_entropy: weight must be float32 or",
        ),
        ({"ignore_index": 1.5}, TypeError, "cross_entropy: ignore_index must be an int, got 1.5"),
        ({"label_smoothing": 1.5}, ValueError, "cross_entropy: label_smoothing must be a finite"),
        ({"ignore_index": -1}, ValueError, "cross_entropy: label -100 is out of range: 4 classes"),
    ],
)
def test_wrong_options_of_cross_entropy(options, error, text):
    with pytest.raises(error, match=f"^{text}"):
        ops.cross_entropy(np.ones((2, 4)), np.array([1, -100]), **options)


@pytest.mark.parametrize("weight", ["abc", [[1.0]], [1.0, math.nan], [True, False]])
def test_weights_that_are_none(weight):
    with pytest.raises(ValueError, match="CrossEntropyLoss: weight must be finite numbers"):
        nn.CrossEntropyLoss(weight=weight)


@pytest.mark.torch
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_and_ignored_labels_give_pytorchs_result(weight, labels):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    scores = np.random.default_rng(11).standard_normal((6, 5)) * 3
    for smoothing, ignore in itertools.product(SMOOTHING, (-100, 2)):
        numbers = np.where(np.array(labels) == -100, ignore, labels)
        theirs = torch.nn.CrossEntropyLoss(
            None if weight is None else torch.tensor(weight, dtype=torch.float64),
            ignore_index=ignore, label_smoothing=smoothing,
        )  # fmt: skip
        t = torch.tensor(scores, requires_grad=True)
        value = theirs(t, torch.tensor(numbers))
        value.backward()
        given = Tensor(scores, requires_grad=True)
        loss = nn.CrossEntropyLoss(smoothing, weight, ignore)(given, numbers)
        loss.backward()
        assert loss.item() == pytest.approx(value.item(), rel=1e-11)
        np.testing.assert_allclose(given.grad, t.grad, 1e-9, 1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_equal_to_pytorch(smoothing):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(8)
    scores, labels = rng.standard_normal((6, 5)) * 3, rng.integers(0, 5, 6)
    for ours, theirs in [
        (nn.CrossEntropyLoss(smoothing), torch.nn.CrossEntropyLoss(label_smoothing=smoothing)),
        (nn.HingeLoss(), torch.nn.MultiMarginLoss()),
    ]:
        t = torch.tensor(scores, requires_grad=True)
        value = theirs(t, torch.tensor(labels))
        value.backward()
        inputs = Tensor(scores, requires_grad=True)
        loss = ours(inputs, labels)
        loss.backward()
        assert loss.item() == pytest.approx(value.item(), rel=1e-12)
        np.testing.assert_allclose(inputs.grad, t.grad, 1e-10, 1e-12)
