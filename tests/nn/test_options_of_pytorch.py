"""Options that users of PyTorch expect: batch norm's averages, dropout of everything, float16."""

import numpy as np
import pytest

from gpuconv import nn, ops
from gpuconv.arrays import to_device, to_numpy
from gpuconv.autograd import Tensor
from gpuconv.ops.op import Op

F4 = np.float32
DEVICES = ["reference", "cpu", "sim"]


def batches(count=3):
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(4, 3, 5, 2)) * (i + 1) + i).astype(F4) for i in range(count)]


@pytest.mark.parametrize("device", DEVICES)
def test_without_momentum_the_running_statistics_are_the_mean_of_all_batches(device):
    layer = nn.BatchNorm2d(3, momentum=None).to(device)
    for x in batches():
        layer(to_device(x, device))
    means = [x.mean((0, 2, 3), dtype=float) for x in batches()]
    variances = [x.var((0, 2, 3), dtype=float, ddof=1) for x in batches()]
    state = layer.state_dict()
    assert state["num_batches_tracked"] == 3
    np.testing.assert_allclose(state["running_mean"], np.mean(means, 0), 1e-5, 1e-6)
    np.testing.assert_allclose(state["running_var"], np.mean(variances, 0), 1e-5)
    assert str(layer) == "BatchNorm2d(3, momentum=None)"


@pytest.mark.parametrize("device", DEVICES)
def test_without_running_statistics_evaluation_uses_the_batchs(device):
    layer = nn.BatchNorm2d(3, track_running_stats=False).to(device)
    assert set(layer.state_dict()) == {"weight", "bias"}
    (x,) = batches(1)
    mean, var = x.mean((0, 2, 3), dtype=float), x.var((0, 2, 3), dtype=float)
    expected = (x - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
    for mode in (True, False):
        y = layer.train(mode)(to_device(x, device))
        np.testing.assert_allclose(to_numpy(y.data), expected, 1e-4, 1e-5)
    assert str(layer) == "BatchNorm2d(3, track_running_stats=False)"


@pytest.mark.torch
@pytest.mark.parametrize("options", [{"momentum": None}, {"track_running_stats": False}], ids=str)
def test_batch_norm_gives_pytorchs_result_and_gradient(options):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    ours, theirs = nn.BatchNorm2d(3, **options), torch.nn.BatchNorm2d(3, **options)
    for x in batches():
        dy = np.random.default_rng(1).normal(size=x.shape).astype(F4)
        for training in (True, False):
            given = torch.tensor(x, requires_grad=True)
            expected = theirs.train(training)(given)
            expected.backward(torch.tensor(dy))
            x_tensor = Tensor(x, requires_grad=True)
            y = ours.train(training)(x_tensor)
            y.backward(dy)
            np.testing.assert_allclose(y.data, expected.detach(), 1e-4, 1e-5)
            np.testing.assert_allclose(x_tensor.grad, given.grad, 1e-3, 1e-4)
    state = theirs.state_dict()
    assert set(ours.state_dict()) == set(state)
    for name, array in ours.state_dict().items():
        np.testing.assert_allclose(array, state[name], 1e-5, 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [1, 1.0, 1 - 1e-13])
def test_dropout_of_everything_is_0_and_so_is_its_gradient(p, device):
    x = np.array([[1, -2, np.nan, 3e38, np.inf]], F4)
    layer, given = nn.Dropout(p).to(device), Tensor(to_device(x, device), requires_grad=True)
    y = layer(given)
    y.backward(to_device(np.ones_like(x), device))
    assert (to_numpy(y.data) == 0).all()
    assert (to_numpy(given.grad) == 0).all()
    np.testing.assert_array_equal(to_numpy(layer.eval()(given).data), x)


@pytest.mark.parametrize("device", DEVICES)
def test_float16_images_give_what_their_float32_values_give(device):
    x = np.random.default_rng(2).normal(size=(2, 1, 12, 12)).astype(np.float16)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(50, 3),
    ).to(device)  # fmt: skip
    y = model.eval()(to_device(x, device))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(
        to_numpy(y.data), to_numpy(model(to_device(x.astype(F4), device)).data)
    )
    assert Tensor(x, requires_grad=True).dtype == np.float32


ONE_ARRAY = [
    name
    for name in ops.__all__
    if isinstance(getattr(ops, name), Op)
    and [p for p, q in getattr(ops, name).parameters.items() if q.default is q.empty] == ["x"]
]


@pytest.mark.parametrize("device", DEVICES)
def test_operations_compute_float16_in_float32(device):
    x = np.random.default_rng(3).normal(size=(2, 3, 6, 5)).astype(np.float16)
    assert len(ONE_ARRAY) > 6
    for name in ONE_ARRAY:
        function = getattr(ops, name)
        run = function.reference if device == "reference" else function
        for _ in range(2):  # also when the call is known
            found, expected = run(to_device(x, device)), run(to_device(x.astype(F4), device))
            for a, b in zip(
                *(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True
            ):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    with pytest.raises(TypeError, match="accumulate: total must be float32 or float64"):
        ops.accumulate(x.copy(), x)
