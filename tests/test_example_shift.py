"""examples/shift.py: what is moved where, what is measured, and that seeds decide it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpuconv import data, nn

SCRIPT = Path(__file__).parent.parent / "examples" / "shift.py"
DIGITS = data.load("mnist", "test").subset(slice(0, 40))


@pytest.fixture(scope="module")
def shift():
    spec = importlib.util.spec_from_file_location("shift", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["shift"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["shift"]


@pytest.mark.parametrize("move", [(0, 0), (3, 0), (-2, 1), (1, -3), (-20, 5)])
def test_translated_by_loops(shift, move):
    images = np.random.default_rng(0).integers(1, 256, (2, 2, 5, 28)).astype(np.uint8)
    expected = np.zeros((2, 2, 32, 32), np.uint8)
    for n, c, h, v in np.ndindex(images.shape):
        row, column = (32 - 5) // 2 + h + move[0], (32 - 28) // 2 + v + move[1]
        if 0 <= row < 32 and 0 <= column < 32:
            expected[n, c, row, column] = images[n, c, h, v]
    np.testing.assert_array_equal(shift.translated(images, *move), expected)


def test_digits_hardly_leave_the_field(shift):
    images = data.load("mnist", "test").images
    ink = images.sum(dtype=np.int64)
    for distance, share in ((1, 1), (2, 1), (3, 0.9998)):
        for move in shift.directions(distance):
            assert shift.translated(images, *move).sum(dtype=np.int64) >= share * ink


def test_eight_directions(shift):
    assert shift.directions(0) == [(0, 0)]
    assert len(set(shift.directions(2))) == 8
    assert all(max(abs(a), abs(b)) == 2 for a, b in shift.directions(2))


def test_only_the_pools_differ(shift):
    """10*10+10 of fc3 and so on, by hand."""
    convolutions, rest = 6 * 26 + 16 * 151, 120 + 121 * 100 + 101 * 10
    for pooling, side in (("max-pool", 5), ("average pool", 5), ("every second pixel", 5)):
        network = shift.LeNet(pooling, 1, 10, 0)
        count = sum(parameter.data.size for parameter in network.parameters())
        assert count == convolutions + 16 * side * side * 120 + rest == 63802
    without = shift.LeNet("no pooling", 1, 10, 0)
    count = sum(parameter.data.size for parameter in without.parameters())
    assert count == convolutions + 16 * 24 * 24 * 120 + rest == 1_121_722
    x = np.random.default_rng(0).random((1, 1, 32, 32), np.float32)
    subsampled = shift.LeNet("every second pixel", 1, 10, 0).features
    with nn.no_grad():
        maps = subsampled.relu1(subsampled.conv1(x)).numpy()
        np.testing.assert_array_equal(subsampled.pool1(maps).numpy(), maps[:, :, ::2, ::2])


def test_what_is_measured_by_loops(shift):
    network = shift.LeNet("max-pool", 1, 10, 3)
    result = shift.measure(network, DIGITS, "max-pool", 3, farthest=2)

    def features_and_class(i, down, right):
        x = data.to_float(shift.translated(DIGITS.images[i : i + 1], down, right))
        with nn.no_grad():
            features, scores = network.features(x).data[0], network(x).data[0]
        return features.astype(np.float64), scores.argmax()

    correct, same, change = [], [], []
    for i in range(len(DIGITS)):
        before, first = features_and_class(i, 0, 0)
        for down in (-2, 0, 2):
            for right in (-2, 0, 2):
                if down or right:
                    after, predicted = features_and_class(i, down, right)
                    correct.append(predicted == DIGITS.labels[i])
                    same.append(predicted == first)
                    change.append(np.linalg.norm(after - before) / np.linalg.norm(before))
    assert result.accuracy[2] == pytest.approx(np.mean(correct), abs=1e-12)
    assert (result.same[0], result.change[0]) == (1.0, 0.0)
    assert result.same[2] == pytest.approx(np.mean(same), abs=1e-12)
    assert result.change[2] == pytest.approx(np.mean(change), rel=1e-4)
    assert (result.pooling, result.seed, result.parameters) == ("max-pool", 3, 63802)


def output(seed):
    options = ["--train", "64", "--test", "20", "--epochs", "1", "--seeds", seed]
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_seeds_decide_the_tables():
    first = output("2")
    assert first == output("2")
    assert first != output("3")


@pytest.mark.slow  # .ci/run runs it by name
def test_the_script_prints_tables(shift):
    first = output("2")
    lines = first.splitlines()
    assert "seeds 2" in lines[0]
    assert "1,121,722 parameters" in first
    for pooling in shift.POOLS:
        assert sum(line.startswith(pooling) for line in lines) == 3
    row = next(line for line in lines if line.startswith("no pooling"))
    assert row.count("%") == 4
