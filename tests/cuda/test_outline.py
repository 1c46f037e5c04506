"""Outlines follow NumPy's layouts; networks run on them are left as they were."""

import gc

import numpy as np
import pytest

from gpuconv import models, nn
from gpuconv.arrays import device_of, empty_images
from gpuconv.cuda.outline import Meter, Outline
from gpuconv.nn.summary import summary
from gpuconv.nn.training_memory import training_memory


def test_views_share_memory_and_copies_take_it():
    meter = Meter()
    x = Outline(meter, (4, 6, 5, 3))
    assert meter.used == 4 * 4 * 6 * 5 * 3
    real = np.empty((4, 6, 5, 3), np.float32)
    for cut in (np.s_[:, 1:3], np.s_[2:], np.s_[..., 1], np.s_[:, ::2]):
        assert (x[cut].shape, x[cut].strides) == (real[cut].shape, real[cut].strides)
        assert x[cut].flags.c_contiguous == real[cut].flags.c_contiguous
        assert np.may_share_memory(x[cut], x)
    assert x[:, 1:3].reshape(4, -1).strides == real[:, 1:3].reshape(4, -1).strides
    before = meter.used
    view, flat = x[:, 1:3].reshape(4, 30), x.reshape(-1)
    assert meter.used == before
    assert np.may_share_memory(view, flat)
    copy = x[..., :2].reshape(-1)
    assert (copy.shape, meter.used - before) == ((240,), 960)
    assert not np.may_share_memory(copy, x)
    del x, view, flat, copy
    assert meter.used == 0


def test_numpy_functions_that_layers_use():
    meter = Meter()
    a, b = Outline(meter, (2, 3, 4, 4)), Outline(meter, (2, 5, 4, 4))
    joined = np.concatenate([a, b], axis=1)
    assert joined.shape == (2, 8, 4, 4)
    assert empty_images((1, 2, 3, 4), a).shape == (1, 2, 3, 4)
    assert (a * 2 + a).shape == a.shape
    used = meter.used
    a += a
    assert meter.used == used
    assert device_of(a) == "cpu"
    for compute in (np.asarray, np.sum, np.sort, np.array):
        with pytest.raises(NotImplementedError, match="needs values"):
            compute(a)


def test_the_network_is_left_as_it_was():
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(3, 2, 3)
    ).eval()
    x = np.random.default_rng(0).standard_normal((2, 1, 9, 9)).astype(np.float32)
    y = network.forward(x)
    before = {name: array.tobytes() for name, array in network.state_dict().items()}
    found = training_memory(network, (1, 9, 9), 7)
    assert {name: array.tobytes() for name, array in network.state_dict().items()} == before
    assert not any(layer.training for _, layer in network.layers())
    assert [layer.masks for layer in network if isinstance(layer, nn.Dropout)] == [0]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert network.backward(y).shape == x.shape  # what forward kept is still there
    assert training_memory(network, (1, 9, 9), 7) == found


@pytest.mark.parametrize("device", ["reference", "sim"])
def test_it_is_the_cpu_paths_wherever_the_network_is(device):
    network = models.lenet()
    here = training_memory(network, (1, 32, 32), 8)
    try:
        network.to(device)
    except RuntimeError as missing:
        pytest.skip(str(missing))
    assert training_memory(network, (1, 32, 32), 8) == here


def test_states_batches_and_shared_parameters():
    network = models.lenet()
    one, two = (training_memory(network, (1, 32, 32), 64, states) for states in (1, 2))
    assert two.state - one.state == 4 * 63_802
    assert two.activations == one.activations
    assert summary(network).training_bytes(64, 2) == two.total
    assert training_memory(network, (1, 32, 32), 128).activations > 1.7 * one.activations
    shared = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    shared[1].weight = shared[0].weight
    assert training_memory(shared, (9,), 2).state == 3 * 4 * (81 + 9 + 9)


def test_nothing_large_is_made():
    """A batch that no machine could hold."""
    found = training_memory(models.vgg16(seed=None), (3, 224, 224), 1_000_000)
    assert found.activations > 1e13
    gc.collect()


class Doubled(nn.Layer):
    """A user's layer, of NumPy's own operators."""

    def forward(self, x):
        return x * 2

    def backward(self, dy, need_dx=True):
        return dy * 2


class Sorted(nn.Layer):
    """One that needs values."""

    def forward(self, x):
        return np.sort(x)


def test_layers_that_are_not_ours():
    line = str(summary(nn.Sequential(Doubled(), nn.Flatten(), nn.Linear(8, 2)), (2, 2, 2)))
    assert "at batch 64 (SGD with momentum): parameters and state 216 B, activations" in line
    line = str(summary(nn.Sequential(nn.ReLU(), Sorted()), (2, 2, 2)))
    assert "to train        unknown: np.sort needs values" in line
