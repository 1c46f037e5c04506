"""In-place variants of gradients: the same bits, in the first argument's memory."""

import numpy as np
import pytest

from gpuconv import ops
from gpuconv.arrays import ShapeOnly
from gpuconv.ops import in_place

RNG = np.random.default_rng(8)


def floats(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7, 2), (2, 3, 190, 211), (1, 1, 1, 1)])
def test_relu_backward(shape, dtype):
    dy, x = floats(*shape, dtype=dtype), floats(*shape, dtype=dtype)
    dy.flat[0] = np.nan
    y = ops.relu.reference(x)
    y.flat[-1] = np.nan
    into = dy.copy()
    assert in_place.relu_backward_into(into, y) is into
    assert into.tobytes() == ops.relu_backward(dy, y).tobytes()
    np.testing.assert_array_equal(into, ops.relu_backward.reference(dy, y))


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("of_batch", [True, False])
def test_batch_norm_backward(activation, of_batch):
    x, dy, w, b = floats(4, 5, 9, 7), floats(4, 5, 9, 7), floats(5), floats(5)
    _, mean, var = ops.batch_norm2d(x, w, b)
    given = (x, w, b, mean, var, 1e-5, activation, of_batch)
    into = dy.copy()
    found = in_place.batch_norm2d_backward_into(into, *given)
    assert found[0] is into
    for mine, expected in zip(found, ops.batch_norm2d_backward(dy, *given), strict=True):
        assert mine.tobytes() == expected.tobytes()


def test_what_can_be_overwritten():
    a = floats(2, 3, 4)
    assert in_place.can_overwrite(a)
    assert in_place.can_overwrite(a[:1])
    assert not in_place.can_overwrite(a[:, :1])
    assert not in_place.can_overwrite(ShapeOnly(a.shape))
    a.flags.writeable = False
    assert not in_place.can_overwrite(a)
