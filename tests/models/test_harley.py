"""Harley's network: his weights, his 103 errors."""

import numpy as np
import pytest
from stored import stored

from gpuconv import data, models, nn, ops
from gpuconv.models.harley import CONNECTIONS
from gpuconv.nn.summary import summary

COUNTS = [3] * 6 + [4] * 9 + [6]  # channels that each filter sees


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_103_errors_in_10000(device):
    weights = models.harley_weights(stored("golden", "harley-lenet-weights.json"))
    network = models.harley_lenet(seed=None).to(device)
    network.load_state_dict(weights)
    digits = data.load("mnist", "test")
    x = models.harley_pixels(digits.images[:, 0])
    scores = np.concatenate([network.eval().infer(x[i : i + 500]) for i in range(0, 10_000, 500)])
    assert np.count_nonzero(scores.argmax(1) != digits.labels) == 103


def test_parameters_and_connections():
    found = summary(models.harley_lenet())
    assert found.parameters == 62_902
    assert np.sum(CONNECTIONS, axis=0).tolist() == COUNTS
    by_name = {row.name: row for row in found.rows}
    assert by_name["conv2"].layer.weight.shape == (60, 5, 5)
    assert by_name["conv2"].layer.multiply_adds((6, 14, 14)) == 60 * 25 * 100


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


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_partial_connections_are_a_convolution_with_zeros(device):
    rng = np.random.default_rng(0)
    table = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]])
    layer = nn.PartialConv2d(table, (3, 2), stride=(1, 2), padding=1, rng=0)
    layer.to(device, np.float64)
    dense = np.zeros((4, 3, 3, 2))
    place = 0
    for k in range(4):
        for c in range(3):
            if table[c, k]:
                dense[k, c] = layer.weight.data[place]
                place += 1
    assert place == len(layer.weight.data) == 7
    x = rng.standard_normal((2, 3, 6, 7))
    y = layer.forward(x)
    expected = ops.conv2d.reference(x, dense, layer.bias.data, (1, 2), 1)
    np.testing.assert_allclose(y, expected, 1e-12, 1e-13)
    dy = rng.standard_normal(y.shape)
    dx = layer.backward(dy)
    exact = ops.conv2d_backward.reference(dy, x, dense, layer.bias.data, (1, 2), 1)
    np.testing.assert_allclose(dx, exact[0], 1e-11, 1e-12)
    links = [(k, c) for k in range(4) for c in range(3) if table[c, k]]
    for gradient, (k, c) in zip(layer.weight.grad, links, strict=True):
        np.testing.assert_allclose(gradient, exact[1][k, c], 1e-11, 1e-12)


def test_impossible_tables_are_refused():
    for table in (np.ones(3), np.array([[1, 0], [1, 0]])):
        with pytest.raises(ValueError, match="a link for every filter"):
            nn.PartialConv2d(table, 3)
