"""Harley's network: his weights, his 103 errors."""

import numpy as np
import pytest
from passes import scores_of
from stored import stored

from gpuconv import data, models, nn, ops, optim
from gpuconv.autograd import Tensor
from gpuconv.models.harley import CONNECTIONS
from gpuconv.nn.summary import summary

COUNTS = [3] * 6 + [4] * 9 + [6]  # channels that each filter sees


@pytest.mark.parametrize("device", ["cpu", pytest.param("reference", marks=pytest.mark.slow)])
def test_103_errors_in_10000(device):
    weights = models.harley_weights(stored("golden", "harley-lenet-weights.json"))
    network = models.harley_lenet(seed=None).to(device)
    network.load_state_dict(weights)
    digits = data.load("mnist", "test")
    x = models.harley_pixels(digits.images[:, 0])
    scores = np.concatenate(
        [scores_of(network.eval(), x[i : i + 500]) for i in range(0, 10_000, 500)]
    )
    assert np.count_nonzero(scores.argmax(1) != digits.labels) == 103


def test_parameters_and_connections():
    found = summary(models.harley_lenet())
    assert found.parameters == 62_902
    assert np.sum(CONNECTIONS, axis=0).tolist() == COUNTS
    by_name = {row.name: row for row in found.rows}
    assert by_name["conv2"].module.weights_used == 60 * 25
    assert by_name["conv2"].multiply_adds == 60 * 25 * 100


def test_pixels_are_framed_and_scaled():
    images = np.zeros((2, 28, 28), np.uint8)
    images[0, 0, 0] = 255
    x = models.harley_pixels(images)
    assert x.shape == (2, 1, 32, 32)
    assert x[0, 0, 2, 2] == np.float32(1.175)
    assert (x[1] == np.float32(-0.1)).all()
    with pytest.raises(ValueError, match=r"must be uint8 \(N, 28, 28\)"):
        models.harley_pixels(images / 255)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "weights.json"
    for text in ("{}", "[1, 2]", "no json"):
        path.write_text(text)
        with pytest.raises(ValueError, match="not the weights of Harley's network"):
            models.harley_weights(path)


TABLE = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]])


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_what_is_not_linked_is_a_zero_without_a_gradient(device):
    rng = np.random.default_rng(0)
    layer = nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=1, connections=TABLE, rng=0)
    layer.to(device, np.float64)
    linked = TABLE.T.astype(bool)
    assert (layer.weight.data[linked] != 0).all()
    assert (layer.weight.data[~linked] == 0).all()
    x = Tensor(rng.standard_normal((2, 3, 6, 7)), True, device)
    y = layer(x)
    given = layer.weight.data, layer.bias.data, (1, 2), 1
    np.testing.assert_allclose(y.data, ops.conv2d.reference(x.data, *given), 1e-12, 1e-13)
    dy = rng.standard_normal(y.shape)
    y.backward(dy)
    dx, dw, db = ops.conv2d_backward.reference(dy, x.data, *given)
    np.testing.assert_allclose(x.grad, dx, 1e-11, 1e-12)
    np.testing.assert_allclose(layer.weight.grad[linked], dw[linked], 1e-11, 1e-12)
    np.testing.assert_allclose(layer.bias.grad, db, 1e-11, 1e-12)
    assert (layer.weight.grad[~linked] == 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: optim.Adam(p, 0.1, weight_decay=0.01),
        lambda p: optim.AdamW(p, 0.1, weight_decay=0.01),
    ],
)
def test_what_is_not_linked_stays_zero_in_training(make):
    layer = nn.Conv2d(3, 4, 3, connections=TABLE, rng=0)
    optimizer = make(layer.parameters())
    average = optim.EMA(layer, 0.9)
    before = layer.weight.data.copy()
    for _ in range(4):
        optimizer.zero_grad()
        y = layer(np.random.default_rng(1).standard_normal((2, 3, 5, 5)).astype(np.float32))
        (y * y).sum().backward()
        optim.clip_grad_norm(layer.parameters(), 1.0)
        optimizer.step()
        average.update()
    linked = TABLE.T.astype(bool)
    assert (layer.weight.data[linked] != before[linked]).all()
    assert (layer.weight.data[~linked] == 0).all()
    assert (average.state_dict()["weight"][~linked] == 0).all()


def test_states_of_version_0_1_and_whole_ones_are_loaded():
    layer = nn.Conv2d(3, 4, 3, connections=TABLE, rng=0)
    links = np.arange(7 * 9, dtype=np.float32).reshape(7, 3, 3) + 1
    layer.load_state_dict({"weight": links, "bias": np.zeros(4, np.float32)})
    np.testing.assert_array_equal(layer.weight.data[TABLE.T.astype(bool)], links)
    whole = np.ones((4, 3, 3, 3), np.float32)
    layer.load_state_dict({"weight": whole, "bias": np.zeros(4, np.float32)})
    expected = np.broadcast_to(TABLE.T[:, :, None, None], whole.shape)
    np.testing.assert_array_equal(layer.weight.data, expected)


def test_impossible_tables_are_refused():
    for table in (np.ones(3), np.array([[1, 0], [1, 0]])):
        with pytest.raises(ValueError, match="a link for every filter"):
            nn.Conv2d(2, 2, 3, connections=table)
