"""Infinity, NaN, zero, huge and subnormal numbers: every device answers as the definition does.

Each operation's arrays get such numbers in turn: one element, or all. Where the definition gives a
NaN or an infinity, so must the others, with its sign; elsewhere they are within rounding.
"""

import itertools

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.arrays import to_device, to_numpy
from gpuconv.ops.op import Op

F4 = np.float32
SPECIAL = {
    "nan": F4(np.nan), "inf": F4(np.inf), "-inf": F4(-np.inf), "zero": F4(0), "huge": F4(3e38),
    "-huge": F4(-3e38), "subnormal": F4(1e-40),
}  # fmt: skip


def required(operation):
    """The number of parameters without a default."""
    return sum(p.default is p.empty for p in operation.parameters.values())


def is_elementwise(operation):
    """Whether it takes arrays of one shape, and beside them only numbers with a default."""
    kinds = [p.annotation for p in operation.parameters.values()]
    arrays = kinds.count("Array")
    others = kinds[arrays:]
    return required(operation) == arrays and set(others) <= {"float"} and not operation.in_place


ELEMENTWISE = [
    op
    for op in map(vars(ops).get, ops.__all__)
    if isinstance(op, Op)
    and is_elementwise(op)
    and not {"labels", "running_mean"} & {*op.parameters}
]


def cases():
    """name: (operation, arguments); arguments that are float32 arrays get the special values."""
    rng = np.random.default_rng(0)

    def floats(*shape):
        return rng.uniform(0.5, 1.5, shape).astype(F4)

    x, rows, labels = floats(2, 3, 6, 5), floats(3, 4), np.array([0, 3, 1])
    pooled, w, b, c = floats(2, 3, 3, 2), floats(4, 3, 3, 3), floats(4), floats(3)
    argmax = np.zeros(pooled.shape, np.uint8)
    dy = floats(2, 4, 4, 3)
    one, many = floats(4, 3, 1, 1), floats(2, 4, 6, 5)
    found = [
        *((op, *[x] * required(op)) for op in ELEMENTWISE),
        (ops.add, x, x[::-1]), (ops.add, x, x, "relu"), (ops.scale, x, 0.5),
        (ops.dropout, x, 0.3, 5), (ops.softmax, rows), (ops.softmax_backward, rows, rows),
        (ops.max_pool2d, x, 2), (ops.max_pool2d, x, 3, 2, 1),
        (ops.max_pool2d_backward, pooled, argmax, x.shape, 2), (ops.sum_pool2d, x, 2),
        (ops.sum_pool2d_backward, pooled, x.shape, 2), (ops.avg_pool2d, x, 2),
        (ops.avg_pool2d_backward, pooled, x.shape, 2), (ops.adaptive_avg_pool2d, x, 2),
        (ops.adaptive_avg_pool2d, x, 1), (ops.adaptive_avg_pool2d_backward, pooled, x.shape),
        (ops.cross_entropy, rows, labels), (ops.cross_entropy, rows, labels, 0.1),
        (ops.cross_entropy, rows, labels, 1.0),
        (ops.cross_entropy, rows, labels, 0.1, floats(4), 3),
        (ops.cross_entropy_backward, rows, labels, 0.1), (ops.half_squared_error, rows, labels),
        (ops.half_squared_error_backward, rows, labels), (ops.hinge, rows, labels),
        (ops.hinge_backward, rows, labels),
        (ops.batch_norm2d, x, c, c), (ops.batch_norm2d, x, c, c, c, c),
        (ops.batch_norm2d, x, c, c, None, None, 1e-5, "relu"),
        (ops.batch_norm2d_backward, x, x, c, c, c, c),
        (ops.local_response_norm, x, 3), (ops.local_response_norm_backward, x, x, 3),
        (ops.linear, rows, floats(2, 4), floats(2)), (ops.linear, rows, floats(2, 4), None, "relu"),
        (ops.linear_backward, floats(3, 2), rows, floats(2, 4), floats(2)),
        (ops.conv2d, x, w, b), (ops.conv2d, x, one, b, 1, 0, 1, 1, "relu"),
        (ops.conv2d_backward, dy, x, w, b), (ops.conv2d_backward, many, x, one, b),
        (ops.conv2d_relu_max_pool2d, x, w, b),
    ]  # fmt: skip
    names = [f"{n} {op.__name__}" for n, (op, *_) in enumerate(found)]
    return dict(zip(names, found, strict=True))


CASES = cases()


# Here float32 multiplies two of the same size, or one with a gradient's sum, and 3e38 overflows.
MULTIPLIED = {
    (ops.local_response_norm, "x"),
    (ops.local_response_norm_backward, "dy"),
    *((ops.batch_norm2d, p) for p in ("w", "b")),
    *((ops.batch_norm2d_backward, p) for p in ("dy", "x", "w")),
}


def spoiled(operation, arguments):
    """(label, arguments) with each special value in each array: in one element, and in all."""
    for i, (parameter, a) in enumerate(zip(operation.parameters, arguments, strict=False)):
        if not isinstance(a, np.ndarray) or a.dtype != F4:
            continue
        for (name, value), whole in itertools.product(SPECIAL.items(), (False, True)):
            if parameter == "weight" and "huge" in name:
                continue  # whose sum is no float32
            if "huge" in name and (operation, parameter) == (ops.local_response_norm_backward, "x"):
                continue  # the difference of two equal numbers
            if "huge" in name and (operation, parameter) in MULTIPLIED:
                value = np.copysign(F4(1e18), value)
            if operation is ops.conv2d_backward and parameter == "w" and not np.isfinite(value):
                continue  # the loops multiply it by padding too, so that more pixels become NaN
            other = np.full_like(a, value) if whole else a.copy()
            other.reshape(-1)[a.size // 2] = value
            label = f"{name} in {'all' if whole else 'one'} of {parameter}"
            yield label, [*arguments[:i], other, *arguments[i + 1 :]]


def compare(found, expected, label):
    found, expected = (a if isinstance(a, tuple) else (a,) for a in (found, expected))
    for got, exact in zip(found, expected, strict=True):
        if exact is None:
            assert got is None, label
            continue
        got, exact = np.asarray(to_numpy(got)), np.asarray(exact)
        special = ~np.isfinite(exact)
        np.testing.assert_array_equal(got[special], exact[special], label)
        rest, value = got[~special].astype(float), exact[~special].astype(float)
        scale = abs(value).max(initial=0)
        bound = 1e-4 * (abs(value) + 1e-2 * scale) + 1e-37
        assert (abs(rest - value) <= bound).all(), (label, got, exact)


def flushed(a):
    """As the kernels read it: subnormal numbers are 0."""
    if not isinstance(a, np.ndarray) or a.dtype != F4:
        return a
    return np.where(abs(a) < np.finfo(F4).tiny, np.copysign(F4(0), a), a)


@pytest.mark.parametrize("device", ["cpu", "sim"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_devices_answer_as_the_definition(name, device):
    operation, *arguments = CASES[name]
    for label, given in spoiled(operation, arguments):
        if device == "sim" and (" all " in label or "-huge" in label):
            continue  # slow, and of little use beside the others
        read = list(map(flushed, given)) if device == "sim" else given
        expected = operation.reference(*read)
        found = operation(
            *(to_device(a, device) if isinstance(a, np.ndarray) else a for a in given)
        )
        if operation is ops.batch_norm2d and "inf" in label:
            # the kernels' mean of a channel with an infinity is NaN; y and var are NaN on all
            found, expected = (found[0], found[2]), (expected[0], expected[2])
        compare(found, expected, label)


def test_an_impossible_class_costs_nothing():
    scores, labels = np.array([[1, -np.inf, 2], [0, 3, -np.inf]], F4), np.array([0, 1])
    # the mean of log(1 + e) and log(1 + exp(-3))
    expected = (np.log1p(np.e) + np.log1p(np.exp(-3.0))) / 2
    for run in (ops.cross_entropy.reference, ops.cross_entropy):
        loss, p = run(scores, labels)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert p[0, 1] == p[1, 2] == 0
    assert expected == pytest.approx(0.6809245)


def test_the_mean_of_the_largest_numbers_is_theirs():
    x = np.full((4, 2, 5, 5), 3e38, F4)
    for run in (ops.batch_norm2d.reference, ops.batch_norm2d):
        y, mean, var = run(x, np.ones(2, F4), np.full(2, 7, F4))
        assert (mean == F4(3e38)).all()
        assert (var == 0).all()
        assert (y == 7).all()
