"""Fully connected layers in a row on device sim: one kernel, and all else as layer by layer."""

import numpy as np
import pytest
from simulated import sim  # noqa: F401  skips where the simulator cannot run

from gpuconv import models, nn
from gpuconv.arrays import to_device, to_numpy
from gpuconv.autograd import Tensor, state
from gpuconv.cuda.runtime import runtime
from gpuconv.nn import functional as F

X = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)


def layers(*more):
    return nn.Sequential(
        nn.Linear(12, 9, rng=1), nn.ReLU(), nn.Linear(9, 8, bias=False, rng=2),
        nn.Linear(8, 7, rng=3), *more, nn.Linear(7, 4, rng=4),
    ).to("sim")  # fmt: skip


def results(model, x=None):
    """Scores and gradients, as bytes, and how often each kernel ran."""
    device = runtime("sim")
    device.ran.clear()
    x = Tensor(to_device(X, "sim"), requires_grad=True) if x is None else x
    y = model(x)
    y.backward(np.ones(y.shape, np.float32))
    arrays = [y.data, x.grad, *(p.grad for p in model.parameters())]
    return [to_numpy(a).tobytes() for a in arrays], dict(device.ran)


def test_one_launch_has_the_bits_of_one_each():
    chained, ran = results(layers())
    assert ran == {"linear_chain_forward": 1, "linear_small_backward": 4}
    apart = layers()
    apart.fusing = False
    separate, ran = results(apart)
    assert ran["linear_chain_forward"] == 4
    assert chained == separate
    names = [node.name for node in chain_of_nodes(layers()(to_device(X, "sim")))]
    assert names == ["linear", "linear", "linear", "linear_relu"]


def chain_of_nodes(y):
    node = y._node
    while node is not None and hasattr(node, "inputs"):
        yield node
        node = node.inputs[0]


@pytest.mark.parametrize("between", [nn.Tanh, lambda: nn.Dropout(0.5), nn.Sigmoid])
def test_another_function_ends_the_row(between):
    chained, ran = results(layers(between()))
    apart = layers(between())
    apart.fusing = False
    assert chained == results(apart)[0]
    assert ran["linear_chain_forward"] == 2


def test_a_module_with_a_hook_stands_alone():
    seen = []
    model = layers()
    list(model)[2].register_forward_hook(lambda module, x, y: seen.append(to_numpy(y.data)))
    hooked, ran = results(model)
    assert hooked == results(layers())[0]
    assert ran["linear_chain_forward"] == 3
    assert seen[0].shape == (5, 8)


class Watching(nn.Module):
    """Uses what lies between its layers, at once or later."""

    def __init__(self, watch):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(12, 12, rng=n) for n in range(3))
        self.watch, self.seen = watch, {}

    def forward(self, x):
        h = F.relu(self.a(x))
        if self.watch == "early":
            self.seen["h"] = to_numpy(h.data)
        k = self.b(h)
        if self.watch == "middle":
            self.seen["h"] = to_numpy(h.data)
        if self.watch == "gradient":
            k = F.relu(k)
            h.register_hook(lambda d: self.seen.update(d=to_numpy(d)))
        y = self.c(k)
        if self.watch == "twice":
            y = y + self.c(h)
        self.kept = h, k
        return y


@pytest.mark.parametrize("watch", ["early", "middle", "gradient", "twice", "late"])
def test_what_lies_between_can_be_used(watch):
    model, plain = (Watching(watch).to("sim") for _ in range(2))
    plain.fusing = False
    found, expected = results(model)[0], results(plain)[0]
    if watch == "twice":  # the two gradients of c are added in another order
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(*(np.frombuffer(a, np.float32) for a in (one, other)), 1e-4)
    else:
        assert found == expected
    assert all(to_numpy(t.data).shape == (5, 12) for t in model.kept)
    for name, array in model.seen.items():
        np.testing.assert_array_equal(array, plain.seen[name])


def test_layers_that_do_not_fit_are_refused_as_always():
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(8, 4)).to("sim")
    with pytest.raises(ValueError, match="linear: x has 9 features, w expects 8"):
        model(to_device(X, "sim"))
    assert state.pending is None
    assert results(layers())[1]["linear_chain_forward"] == 1


def test_what_a_flatten_follows_is_written_as_it_reads():
    """The last pool of LeNet, in C order; read otherwise, it has the same values."""
    device, x = runtime("sim"), to_device(np.ones((2, 1, 32, 32), np.float32), "sim")
    model = models.lenet(seed=0).to("sim")
    device.ran.clear()
    scores = to_numpy(model(x).data)
    assert set(device.ran) == {"conv2d_forward_small", "linear_chain_forward"}
    model.flat.register_forward_hook(lambda module, x, y: None)
    device.ran.clear()
    np.testing.assert_array_equal(to_numpy(model(x).data), scores)
    assert device.ran["transpose"] == 1
