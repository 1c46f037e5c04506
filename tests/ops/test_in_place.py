"""What training overwrites instead of taking fresh memory: the same bits, nobody else's data."""

import numpy as np
import pytest

from gpuconv import nn, ops
from gpuconv.ops import in_place

RNG = np.random.default_rng(8)


def floats(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7, 2), (2, 3, 190, 211), (1, 1, 1, 1)])
def test_each_equals_its_operation_and_takes_the_memory(shape, dtype):
    a, b = floats(*shape, dtype=dtype), floats(*shape, dtype=dtype)
    a.flat[0] = np.nan
    y = ops.relu.reference(b)
    cases = [
        (in_place.relu_into, ops.relu, a, ()),
        (in_place.relu_backward_into, ops.relu_backward, a, (y,)),
        (in_place.add_into, ops.add, a, (b, None)),
        (in_place.add_into, ops.add, a, (b, "relu")),
        (in_place.dropout_into, ops.dropout, a, (0.3, 7)),
    ]
    for function, operation, first, others in cases:
        into = first.copy()
        found = function(into, *others)
        assert np.shares_memory(found, into)
        assert found.tobytes() == operation(first, *others).tobytes(), function.__name__
        np.testing.assert_array_equal(found, operation.reference(first, *others))


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


class Apart(nn.Sequential):
    """Takes fresh memory for everything."""

    _overwrites = False


class ResidualApart(nn.Residual):
    def _may_overwrite(self, *_):
        return False

    def _backward(self, dy, need_dx, ours):
        self.body.backward_over = self.body.backward
        return super()._backward(dy, need_dx, False)


def network(row, residual):
    """Layers whose neighbours read, alias and overwrite each other's arrays in every way."""
    norm = lambda: row(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())  # noqa: E731
    made = row(
        nn.ReLU(),  # of the caller's own x
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        residual(row(norm(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))),
        nn.ReLU(),
        residual(norm(), row(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))),
        residual(nn.Identity()),
        residual(row(nn.Conv2d(4, 4, 1), nn.ReLU())),  # whose body reads its own output again
        residual(row(nn.BatchNorm2d(4)), row(nn.Dropout(0.4))),
        nn.Dropout(0.2),
        nn.Concat(nn.Identity(), norm(), row(nn.MaxPool2d(3, 1, 1), nn.ReLU(), nn.Dropout(0.1))),
        nn.LocalResponseNorm(3),
        nn.ReLU(),
        nn.DenseBlock(row(nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 2, 1))),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(56, 5),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(5, 3),
    )
    nn.init.initialize(made, 2)
    return made


@pytest.mark.parametrize("mode", [True, False])
def test_a_network_gives_the_same_bits_and_leaves_its_arguments(mode):
    x, dy = floats(4, 3, 9, 8), floats(4, 3)
    kept = x.tobytes(), dy.tobytes()
    left = []
    for made in (network(nn.Sequential, nn.Residual), network(Apart, ResidualApart)):
        made.train(mode)
        for _ in range(2):
            y = made.forward(x)
            shown = y.copy()
            dx = made.backward(dy)
        assert y.tobytes() == shown.tobytes()  # what forward gave stays the caller's
        assert (x.tobytes(), dy.tobytes()) == kept
        left.append([y.tobytes(), dx.tobytes(), *(p.grad.tobytes() for p in made.parameters())])
    assert left[0] == left[1]


def test_read_only_gradients_are_left_alone():
    x, dy = floats(2, 3, 4, 4), floats(2, 3, 4, 4)
    dy.flags.writeable = False
    layer = nn.BatchNorm2d(3)
    layer.forward(x)
    assert not np.shares_memory(layer.backward_over(dy), dy)
