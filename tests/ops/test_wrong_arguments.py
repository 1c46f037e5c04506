"""Wrong arguments of operations: one line that names the operation and the argument, the same on
every device, and no kernel has been launched.
"""

import numpy as np
import pytest
from simulated import on, sim

from gpuconv import ops
from gpuconv.cuda.runtime import runtime
from gpuconv.ops.op import Op

F4 = np.float32
X, W, B = np.ones((2, 4, 6, 7), F4), np.ones((8, 2, 3, 3), F4), np.ones(8, F4)
DY = np.ones((2, 8, 4, 5), F4)
ROWS, LABELS = np.ones((3, 5), F4), np.array([0, 4, 2])
POOLED = np.ones((2, 4, 3, 3), F4)
WINNERS = np.zeros((2, 4, 3, 3), np.uint8)
DENSE, DENSE_DY = np.ones((2, 5), F4), np.ones((3, 2), F4)
CHANNELS = np.ones(4, F4)
NAN, INF = float("nan"), float("inf")


def conv(x=X, w=W, b=B, stride=1, padding=0, dilation=1, groups=2, activation=None):
    return ops.conv2d, (x, w, b, stride, padding, dilation, groups, activation)


def conv_back(dy=DY, x=X, w=W, b=B, groups=2, activation=None, y=None):
    return ops.conv2d_backward, (dy, x, w, b, 1, 0, 1, groups, activation, y)


def linear(x=ROWS, w=DENSE, b=None, activation=None):
    return ops.linear, (x, w, b, activation)


def linear_back(dy=DENSE_DY, x=ROWS, w=DENSE):
    return ops.linear_backward, (dy, x, w)


def max_back(dy=POOLED, argmax=WINNERS, x_shape=(2, 4, 6, 7), size=2):
    return ops.max_pool2d_backward, (dy, argmax, x_shape, size)


def norm(x=X, w=None, b=None, mean=None, var=None, eps=1e-5, activation=None):
    return ops.batch_norm2d, (x, w, b, mean, var, eps, activation)


def norm_back(dy=X, mean=None):
    mean = CHANNELS if mean is None else mean
    return ops.batch_norm2d_backward, (dy, X, CHANNELS, CHANNELS, mean, CHANNELS)


def track(mean=None, count=48, momentum=0.1):
    mean = CHANNELS if mean is None else mean
    return ops.batch_norm2d_track, (CHANNELS, CHANNELS, mean, CHANNELS, count, momentum)


def lrn(x=X, size=5, alpha=1e-4, beta=0.75, k=1.0, convention="torch"):
    return ops.local_response_norm, (x, size, alpha, beta, k, convention)


def call(function, *args):
    return function, args


WRONG = [
    # dtype
    (conv(x=X.astype(np.int32)), TypeError, "conv2d: x must be float32 or float64, got int32"),
    (conv(w=W.astype(np.complex64)), TypeError, "conv2d: w must be float32 .* got complex64"),
    (conv_back(dy=DY.astype(np.uint8)), TypeError, "conv2d_backward: dy must be float32"),
    (linear(b=np.ones(2, bool)), TypeError, "linear: b must be float32 .* got bool"),
    (call(ops.relu, X.astype(np.int8)), TypeError, "relu: x must be float32 .* got int8"),
    (call(ops.tanh, X.astype(complex)), TypeError, "tanh: x must be float32 .* got complex128"),
    (call(ops.sigmoid_backward, X, X.astype("i4")), TypeError, "sigmoid_backward: y must be float"),
    (call(ops.accumulate, X, X.astype(int)), TypeError, "accumulate: b must be float32"),
    (call(ops.assign, X, X.astype(int)), TypeError, "assign: x must be float32"),
    (call(ops.scale, X.astype(int), 2.0), TypeError, "scale: x must be float32"),
    (call(ops.add, X, X.astype(np.int64)), TypeError, "add: b must be float32 .* got int64"),
    (call(ops.softmax, ROWS.astype(int)), TypeError, "softmax: x must be float32 .* got int64"),
    (call(ops.dropout, X.astype(int), 0.5, 1), TypeError, "dropout: x must be float32"),
    (call(ops.cross_entropy, ROWS, ROWS[:, 0]), TypeError, "cross_entropy: labels must be an arr"),
    (call(ops.hinge, ROWS, LABELS > 1), TypeError, "hinge: labels must be an array of integers"),
    (max_back(argmax=WINNERS.astype("i4")), TypeError, "max_pool2d_backward: argmax must be uint8"),
    # no array at all
    (conv(w=None), TypeError, "conv2d: w must be an array, got None"),
    (
        call(ops.relu_backward, X, [1.0]),
        TypeError,
        "relu_backward: y must be a NumPy array, got li",
    ),
    (call(ops.cross_entropy, ROWS, [0, 1, 2]), TypeError, "cross_entropy: labels must be .* list"),
    # rank and shape
    (conv(x=X[0]), ValueError, r"conv2d: x must have 4 axes \(N, C, H, W\), got shape"),
    (conv(w=W[0]), ValueError, "conv2d: w must have 4 axes"),
    (conv(w=W[:, :1]), ValueError, "conv2d: x has 4 channels, w expects 1 per group"),
    (conv(b=B[:3]), ValueError, r"conv2d: b must have shape \(8,\), got \(3,\)"),
    (conv(x=X[:, :, :2]), ValueError, "conv2d: a window of 3x3 pixels .* does not fit an image"),
    (conv_back(dy=DY[:, :, 1:]), ValueError, r"conv2d_backward: dy must have shape \(2, 8, 4, 5\)"),
    (conv_back(activation="relu"), ValueError, "conv2d_backward: activation='relu' needs y"),
    (conv_back(activation="relu", y=DY[1:]), ValueError, "conv2d_backward: y must have shape"),
    (linear(x=X), ValueError, "linear: x must have 2 axes"),
    (linear(x=ROWS[:, 1:]), ValueError, "linear: x has 4 features, w expects 5"),
    (linear(b=B), ValueError, r"linear: b must have shape \(2,\)"),
    (linear_back(dy=ROWS), ValueError, r"linear_backward: dy must have shape \(3, 2\)"),
    (call(ops.max_pool2d, ROWS, 2), ValueError, "max_pool2d: x must have 4 axes"),
    (call(ops.avg_pool2d, X, 9), ValueError, "avg_pool2d: a window of 9x9 pixels .* does not fit"),
    (call(ops.sum_pool2d, X[0], 2), ValueError, "sum_pool2d: x must have 4 axes"),
    (max_back(dy=POOLED[:1]), ValueError, "max_pool2d_backward: dy must have shape"),
    (max_back(argmax=WINNERS[..., :2]), ValueError, "max_pool2d_backward: argmax must have shape"),
    (max_back(x_shape=(2, 4)), ValueError, r"max_pool2d_backward: x_shape must be \(N, C, H, W\)"),
    (max_back(x_shape=(2, 4, 6.0, 7)), ValueError, "max_pool2d_backward: x_shape must be"),
    (max_back(x_shape=7), ValueError, "max_pool2d_backward: x_shape must be"),
    (call(ops.avg_pool2d_backward, POOLED, (2, 4, 9, 9), 2), ValueError, "_backward: dy must have"),
    (call(ops.sum_pool2d_backward, POOLED, (2, 4), 2), ValueError, "_backward: x_shape must be"),
    (call(ops.relu_backward, X, X[:1]), ValueError, "relu_backward: dy must have shape"),
    (call(ops.tanh_backward, X, X[:, :, 1:]), ValueError, "tanh_backward: dy must have shape"),
    (call(ops.add, X, X[:1]), ValueError, "add: b must have shape"),
    (call(ops.multiply, X, X[:1]), ValueError, "multiply: b must have shape"),
    (call(ops.multiply, X, X.astype(np.int64)), TypeError, "multiply: b must be float32 .* int64"),
    (call(ops.accumulate, X, X[:1]), ValueError, "accumulate: b must have shape"),
    (call(ops.assign, X, X[:1]), ValueError, "assign: x must have shape"),
    (call(ops.adaptive_avg_pool2d, X[0], 1), ValueError, "adaptive_avg_pool2d: x must have 4 axes"),
    (call(ops.adaptive_avg_pool2d_backward, X, (2, 4)), ValueError, "x_shape must be"),
    (call(ops.adaptive_avg_pool2d_backward, X, (2, 5, 6, 7)), ValueError, "dy must have shape"),
    (norm(w=B), ValueError, r"batch_norm2d: w must have shape \(4,\), got \(8,\)"),
    (norm(mean=CHANNELS), ValueError, "batch_norm2d: give both mean and var, or neither"),
    (norm_back(dy=X[:1]), ValueError, "batch_norm2d_backward: dy must have shape"),
    (norm_back(mean=B), ValueError, "batch_norm2d_backward: mean must have shape"),
    (track(mean=B), ValueError, "batch_norm2d_track: mean must have shape"),
    (call(ops.local_response_norm_backward, X[:1], X, 5), ValueError, "dy must have shape"),
    (call(ops.softmax, B), ValueError, "softmax: x must have axes"),
    (
        call(ops.softmax_backward, ROWS, ROWS[:2]),
        ValueError,
        "softmax_backward: dy must have shape",
    ),
    (call(ops.cross_entropy, X, LABELS), ValueError, "cross_entropy: scores must have 2 axes"),
    (call(ops.hinge, ROWS, LABELS[:2]), ValueError, r"hinge: labels must have shape \(3,\)"),
    (call(ops.half_squared_error_backward, ROWS, LABELS[1:]), ValueError, "labels must have shape"),
    (call(ops.conv2d_relu_max_pool2d, X, W), ValueError, "x has 4 channels, w expects 2 per group"),
    (call(ops.conv2d_relu_max_pool2d_backward, DY, DY, WINNERS, X, W), ValueError, "w expects 2"),
    # numbers
    (conv(stride=0), ValueError, "conv2d: stride must be at least 1, got 0"),
    (conv(stride=1.5), TypeError, "conv2d: stride must be an int or a pair of ints, got 1.5"),
    (conv(stride=1.0), TypeError, r"conv2d: stride must be an int or a pair of ints, got 1\.0"),
    (conv(stride=(1, 2, 3)), TypeError, "conv2d: stride must be an int or a pair of ints"),
    (conv(padding=-1), ValueError, "conv2d: padding must be at least 0, got -1"),
    (conv(padding="big"), ValueError, "conv2d: padding must be a number or one of"),
    (conv(dilation=(1, 0)), ValueError, "conv2d: dilation must be at least 1"),
    (conv(groups=0), ValueError, "conv2d: groups must be at least 1, got 0"),
    (conv(groups=3), ValueError, "conv2d: groups=3 must divide the 4 channels"),
    (conv(groups=2.0), TypeError, r"conv2d: groups must be an int, got 2\.0"),
    (conv(groups="2"), TypeError, "conv2d: groups must be an int, got '2'"),
    (conv(activation="swish"), ValueError, "conv2d: unknown activation 'swish'"),
    (linear(activation=1), ValueError, "linear: unknown activation 1"),
    (call(ops.max_pool2d, X, 0), ValueError, "max_pool2d: kernel_size must be at least 1, got 0"),
    (call(ops.max_pool2d, X, 2, 2, 2), ValueError, "max_pool2d: padding 2 is more than half"),
    (call(ops.dropout, X, NAN, 1), ValueError, "dropout: p must be a finite number .* got nan"),
    (call(ops.dropout, X, 1.5, 1), ValueError, r"dropout: p .* >= 0 and <= 1, got 1\.5"),
    (call(ops.dropout, X, "half", 1), TypeError, "dropout: p must be a number, got 'half'"),
    (call(ops.dropout, X, 0.5, -1), ValueError, "dropout: seed must be at least 0, got -1"),
    (call(ops.dropout, X, 0.5, 0.5), TypeError, r"dropout: seed must be an int, got 0\.5"),
    (call(ops.cross_entropy, ROWS, LABELS, NAN), ValueError, "label_smoothing must be a .* nan"),
    (call(ops.cross_entropy, ROWS, LABELS, "x"), TypeError, "label_smoothing must be a number"),
    (
        call(ops.loss_and_gradient, ROWS, LABELS, NAN),
        ValueError,
        "smoothing must be a fin",
    ),
    (call(ops.cross_entropy_backward, ROWS, LABELS, NAN), ValueError, "smoothing must be a finite"),
    (call(ops.cross_entropy_backward, ROWS, LABELS, INF), ValueError, "smoothing must be a finite"),
    (call(ops.hinge, ROWS, LABELS, INF), ValueError, "hinge: margin must be a finite number > 0"),
    (call(ops.hinge, ROWS, LABELS, NAN), ValueError, "hinge: margin must be a finite number > 0"),
    (call(ops.scale, X, NAN), ValueError, "scale: factor must be a finite number, got nan"),
    (call(ops.scale, X, "2"), TypeError, "scale: factor must be a number, got '2'"),
    (call(ops.adaptive_avg_pool2d, X, 0), ValueError, "output_size must be at least 1, got 0"),
    (call(ops.adaptive_avg_pool2d, X, 1.5), TypeError, "output_size must be an int or a pair"),
    (norm(eps=NAN), ValueError, "batch_norm2d: eps must be a finite number >= 0"),
    (norm(eps=-1.0), ValueError, "batch_norm2d: eps must be a finite number >= 0"),
    (norm(eps="x"), TypeError, "batch_norm2d: eps must be a number, got 'x'"),
    (norm(activation="tanh"), ValueError, "batch_norm2d: activation must be None or"),
    (
        track(momentum=NAN),
        ValueError,
        "batch_norm2d_track: momentum must be a finite",
    ),
    (track(count=1.5), TypeError, r"batch_norm2d_track: count must be an int, got 1\.5"),
    (track(count=1), ValueError, "batch_norm2d_track: one value a channel has no unbiased varian"),
    (lrn(size=0), ValueError, "local_response_norm: size must be at least 1, got 0"),
    (lrn(size=2.5), TypeError, r"local_response_norm: size must be an int, got 2\.5"),
    (lrn(alpha=NAN), ValueError, "local_response_norm: alpha must be a finite number, got nan"),
    (lrn(beta=INF), ValueError, "local_response_norm: beta must be a finite number, got inf"),
    (lrn(k=0.0), ValueError, "local_response_norm: k must be a finite number > 0"),
    (lrn(convention="x"), ValueError, 'local_response_norm: convention must be "torch" or "paper"'),
    (call(ops.hinge, ROWS, LABELS, None), TypeError, "hinge: margin must be a number, got None"),
]


OPERATIONS = [name for name in ops.__all__ if isinstance(getattr(ops, name), Op)]
# Those of one array that have no lines above: element-by-element functions, mostly.
WRONG += [
    (call(getattr(ops, name), X.astype(np.int64)), TypeError, f"{name}: x must be float32 .* int64")
    for name in OPERATIONS
    if name not in {given[0].__name__ for given, *_ in WRONG}
    and [p for p, value in getattr(ops, name).parameters.items() if value.default is value.empty]
    == ["x"]
]


@pytest.mark.parametrize(("given", "error", "text"), WRONG)
def test_the_same_line_on_every_device(given, error, text):
    function, args = given
    launched, said = dict(runtime("sim").ran), []
    for device in ("cpu", "sim"):
        with pytest.raises(error, match=text) as caught:
            function(*on(device, *args))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    assert said[0].startswith(function.__name__ + ": ")
    assert runtime("sim").ran == launched


def test_every_operation_with_a_kernel_is_among_them():
    tested = {given[0].__name__ for given, *_ in WRONG}
    kernels = {name for name in OPERATIONS if getattr(ops, name).has_kernels}
    families = {_family(name) for name in tested}
    assert {name for name in kernels if _family(name) not in families} == set()


def _family(name):
    return name.removesuffix("_backward").removeprefix("scaled_")


def test_lists_are_pairs_too():
    np.testing.assert_array_equal(
        ops.max_pool2d(X, [2, 3], [1, 2])[0], ops.max_pool2d(X, (2, 3), (1, 2))[0]
    )


def test_a_batch_past_the_kernels_counters_is_refused_before_anything_is_allocated():
    """Where the array is only claimed to be so large: the plan looks at shapes."""
    from gpuconv.ops import conv2d_launch, pool2d_launch
    from gpuconv.shapes import window

    huge = (2**20, 64, 64, 64)
    with pytest.raises(ValueError, match=r"max_pool2d: .* 2\*\*31 - 1: use a smaller batch"):
        pool2d_launch.config_max_pool2d(huge, window(2))
    conv = conv2d_launch.Conv2dShape.of(huge, (64, 64, 3, 3), window(3), 1)
    for plan in (
        lambda: conv2d_launch.config_forward(conv, True, False),
        lambda: conv2d_launch.config_backward_data(conv, False),
        lambda: conv2d_launch.config_backward_weight(conv),
    ):
        with pytest.raises(ValueError, match="use a smaller batch or image"):
            plan()


def test_arrays_whose_memory_was_given_back_are_not_reached_by_address():
    """A launch takes arrays, never addresses: there is no way to name freed memory."""
    with pytest.raises(TypeError, match="relu: x must be a NumPy array, got int"):
        ops.relu(sim.zeros(4).ptr)
