"""What was accepted once is accepted without a check, and nothing else is: errors stay errors."""

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.arrays import ShapeOnly
from gpuconv.ops import op as op_module
from gpuconv.ops.op import op

RNG = np.random.default_rng(9)
X, W = RNG.standard_normal((2, 3, 8, 8), np.float32), RNG.standard_normal((4, 3, 3, 3), np.float32)
POOLED = np.ones((2, 3, 4, 4), np.float32)
SCORES = RNG.standard_normal((3, 4), np.float32)


def error_of(function, *args, **kwargs):
    with pytest.raises((TypeError, ValueError)) as caught:
        function(*args, **kwargs)
    return type(caught.value), str(caught.value)


# A right call, and calls with equal-looking arguments that are wrong all the same.
LOOKALIKES = [
    (ops.conv2d, (X, W, None, 1), (X, W, None, 1.0)),
    (ops.conv2d, (X, W, None, 1), (X, W, None, True)),
    (ops.conv2d, (X, W, None, (1, 1)), (X, W, None, (1, 1.0))),
    (ops.conv2d, (X, W, None, (1, 1)), (X, W, None, (True, 1))),
    (ops.conv2d, (X, W, None, 1, ((1, 1), (0, 0))), (X, W, None, 1, ((1, 1.0), (0, 0)))),
    (ops.conv2d, (X, W, None, 1, ((1, 1), (0, 0))), (X, W, None, 1, ((1, 1), (False, 0)))),
    (ops.conv2d, (X, W, None, 1, 0, 1, 1), (X, W, None, 1, 0, 1, 1.0)),
    (ops.conv2d, (X, W, None, 1, 0, 1, 1), (X, W, None, 1, 0, 1, True)),
    (ops.conv2d, (X, W), (X.astype(np.float64), W)),
    (ops.conv2d, (X, W), (X.astype(np.int32), W)),
    (ops.conv2d, (X, W), (X.astype(">f4").view(">i4"), W)),
    (ops.conv2d, (X, W), (X.tolist(), W)),
    (ops.conv2d, (X, W), (X[0], W)),
    (ops.max_pool2d, (X, 2), (X, 2.0)),
    (ops.max_pool2d, (X, (2, 2)), (X, (2, 2.0))),
    (ops.max_pool2d, (X, (2, 2)), (X, [2, 2.0])),
    (ops.conv2d_relu_max_pool2d, (X, W, None, 1, 0, 1, 1, (2,)), (X, W, None, 1, 0, 1, 1, (2.0,))),
    (ops.sum_pool2d_backward, (POOLED, X.shape, 2), (POOLED, (2.0, 3, 8, 8), 2)),
    (ops.local_response_norm, (X, 1), (X, 1.0)),
    (ops.local_response_norm, (X, 1), (X, True)),
    (ops.scale, (X, 1), (X, True)),
    (ops.scale, (X, 1.0), (X, float("nan"))),
    (ops.dropout, (X, 0.5, 1), (X, 0.5, 1.0)),
    (ops.cross_entropy, (SCORES, np.array([0, 1, 2])), (SCORES, np.array([0.0, 1.0, 2.0]))),
    (ops.batch_norm2d, (X, None, None, None, None, 1), (X, None, None, None, None, True)),
    (ops.relu_backward, (X, X), (X, None)),
]


@pytest.mark.parametrize(("operation", "right", "wrong"), LOOKALIKES)
def test_a_wrong_call_after_a_right_one_that_looks_equal(operation, right, wrong):
    expected = error_of(operation, *wrong)
    for _ in range(3):
        operation(*right)
        assert error_of(operation, *wrong) == expected
    assert error_of(operation.reference, *wrong) == expected


@pytest.mark.parametrize("labels", [[0, 1, 4], [0, -1, 2]])
@pytest.mark.parametrize("loss", [ops.cross_entropy, ops.half_squared_error, ops.hinge])
def test_labels_are_looked_at_in_every_call(loss, labels):
    loss(SCORES, np.array([0, 1, 3]))
    errors = {error_of(loss, SCORES, np.array(labels)) for _ in range(3)}
    assert errors == {error_of(loss.reference, SCORES, np.array(labels))}
    assert "is out of range: 4 classes are numbered 0 to 3" in errors.pop()[1]


def test_the_hundredth_error_is_the_first():
    calls = [
        lambda: ops.conv2d(X, W[:, :2]),
        lambda: ops.conv2d(X, W, groups=2),
        lambda: ops.conv2d(X),
        lambda: ops.conv2d(X, W, width=3),
        lambda: ops.linear(X, W),
        lambda: ops.max_pool2d(X, 9),
        lambda: ops.max_pool2d(X, [9, 9]),
    ]
    for call in calls:
        assert len({error_of(call) for _ in range(100)}) == 1


def test_arguments_are_bound_as_python_binds_them():
    expected = ops.conv2d(X, W, None, 2, 1, 1, 1, "relu")
    for y in (
        ops.conv2d(X, W, stride=2, padding=1, activation="relu"),
        ops.conv2d(X, w=W, activation="relu", padding=1, stride=2),
        ops.conv2d(x=X, w=W, b=None, stride=2, padding=1, dilation=1, groups=1, activation="relu"),
        ops.conv2d(X, W, None, np.int64(2), (1, 1), activation="relu"),
        ops.conv2d(X, W, None, [2, 2], [1, 1], activation="relu"),
    ):
        assert y.tobytes() == expected.tobytes()
    for args, kwargs, text in (
        ((), {}, "missing a required argument: 'x'"),
        ((X,), {"b": None}, "missing a required argument: 'w'"),
        ((X, W), {"x": X}, "multiple values for argument 'x'"),
        ((X, W), {"strides": 1}, "unexpected keyword argument 'strides'"),
        ((X, W, None, 1, 0, 1, 1, None, "ieee", 0), {}, "too many positional arguments"),
    ):
        with pytest.raises(TypeError, match=text):
            ops.conv2d(*args, **kwargs)


def counted():
    """An operation that counts its checks."""
    checks = []

    @op
    def twice(x, factor=2):
        return x * factor

    @twice.check
    def twice_check(x, factor):
        checks.append((type(x), factor))
        if factor == 13:
            raise ValueError("no thirteen")

    return twice, checks


def test_a_repeated_call_is_not_checked_again():
    twice, checks = counted()
    for _ in range(5):
        np.testing.assert_array_equal(twice(X), 2 * X)
        np.testing.assert_array_equal(twice(X + 1), 2 * (X + 1))  # other values, one signature
    assert len(checks) == 1
    twice(X[:, :, ::2])
    twice(X.astype(np.float64))
    twice(X, np.int64(2))
    twice(X, 2.0)
    assert len(checks) == 5
    for _ in range(3):
        assert error_of(twice, X, 13) == (ValueError, "twice: no thirteen")
    assert len(checks) == 8


def test_what_may_change_without_notice_is_checked_every_time():
    class Changing:
        value = 2

        def __rmul__(self, x):
            return x * self.value

        def __eq__(self, other):
            return self.value == other

        __hash__ = None

    twice, checks = counted()
    changing = Changing()
    twice(X, changing)
    changing.value = 13
    assert error_of(twice, X, changing)[1] == "twice: no thirteen"
    assert len(checks) == 2
    twice(X, [1])
    twice(X, [1])
    assert len(checks) == 4


def test_signatures_kept_are_bounded(monkeypatch):
    monkeypatch.setattr(op_module, "SIGNATURES_KEPT", 8)
    twice, checks = counted()
    for factor in range(14, 100):
        twice(X, factor)
        assert len(twice._accepted) <= 8
    twice(X, 99)
    assert len(checks) == 86


def test_empty_and_shape_only_arguments_have_signatures_of_their_own():
    for _ in range(2):
        assert ops.conv2d(X, W).shape == (2, 4, 6, 6)
        assert ops.conv2d(X[:0], W).shape == (0, 4, 6, 6)
        assert isinstance(ops.conv2d(ShapeOnly(X.shape), W), ShapeOnly)


def test_devices_are_compared_in_every_call():
    from simulated import DEVICE  # skips this test alone where there is no device

    from gpuconv.arrays import to_device, to_numpy

    there = to_device(X, DEVICE)
    for _ in range(3):
        np.testing.assert_array_equal(ops.relu(X), np.maximum(X, 0))
        np.testing.assert_array_equal(to_numpy(ops.relu(there)), np.maximum(X, 0))
        for a, b in ((X, there), (there, X)):
            assert "move one of them" in error_of(ops.add, a, b)[1]
        assert to_numpy(ops.relu(to_device(X[:0], DEVICE))).shape == (0, 3, 8, 8)
    for _ in range(2):
        with pytest.raises(TypeError, match=f"the reference takes NumPy arrays, not {DEVICE}'s"):
            ops.relu.reference(there)
