"""The losses: the article's numbers, PyTorch's, central differences, and scores of any size."""

import loops
import numpy as np
import pytest

from gpuconv import nn, ops
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


@pytest.mark.torch
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
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
