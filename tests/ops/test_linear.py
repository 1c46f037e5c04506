"""The fully connected layer: against NumPy's own product in float64, differences, and wrong
shapes.
"""

import cases
import loops
import numpy as np
import pytest

from gpuconv import ops

SHAPES = [(1, 1, 1), (3, 7, 5), (64, 400, 120), (2, 1, 9), (33, 17, 1)]


@pytest.mark.parametrize(("n", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_cpu_agrees_with_the_definition_in_float64(n, inputs, outputs, activation):
    rng = np.random.default_rng([n, inputs])
    arrays = [rng.standard_normal(s) for s in ((n, inputs), (outputs, inputs), (outputs,))]
    single = [a.astype(np.float32) for a in arrays]
    y = ops.linear.reference(*arrays, activation)
    found = ops.linear(*single, activation)
    np.testing.assert_allclose(found, y, 1e-4, 1e-4)
    dy = rng.standard_normal(y.shape)
    expected = ops.linear_backward.reference(dy, *arrays, activation, y)
    gradients = ops.linear_backward(
        dy.astype(np.float32), *single, activation, y.astype(np.float32)
    )
    for gradient, value in zip(gradients, expected, strict=True):
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, value, 1e-3, 2e-4)
    for layout, x in cases.disguises(single[0]).items():
        np.testing.assert_allclose(
            ops.linear(x, *single[1:], activation), found, 1e-6, 1e-6, err_msg=layout
        )


def test_definition_by_loops_and_differences():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 3)), rng.standard_normal((4, 3)), rng.standard_normal(4)
    expected = [
        [sum(x[n, i] * w[o, i] for i in range(3)) + b[o] for o in range(4)] for n in range(2)
    ]
    y = ops.linear.reference(x, w, b)
    np.testing.assert_allclose(y, expected, 1e-12)
    dy = rng.standard_normal((2, 4))
    found = ops.linear_backward.reference(dy, x, w, b)
    for gradient, array in zip(found, (x, w, b), strict=True):
        difference = loops.central_difference(
            lambda: float((dy * ops.linear.reference(x, w, b)).sum()), array
        )
        np.testing.assert_allclose(gradient, difference, 1e-6, 1e-8)


def test_an_empty_batch():
    x, w = np.ones((0, 3), np.float32), np.ones((4, 3), np.float32)
    y = ops.linear(x, w)
    assert y.shape == (0, 4)
    dx, dw, db = ops.linear_backward(y, x, w)
    assert dx.shape == (0, 3)
    assert not dw.any()
    assert db is None


@pytest.mark.parametrize(
    ("x", "w", "text"),
    [
        (np.ones((2, 3)), np.ones((4, 5)), "x has 3 features, w expects 5"),
        (np.ones((2, 3, 1)), np.ones((4, 3)), r"x must have 2 axes \(N, features in\)"),
    ],
)
def test_wrong_shapes(x, w, text):
    with pytest.raises(ValueError, match=text):
        ops.linear(x, w)
