"""The pooling experiment: what is moved where, what is measured, and that seeds decide it."""

import numpy as np
import pytest

from gpuconv import data, explain
from gpuconv.cli import main
from gpuconv.explain import shift

DIGITS = data.load("mnist", "test").subset(slice(0, 40))


@pytest.mark.parametrize("move", [(0, 0), (3, 0), (-2, 1), (1, -3), (-20, 5)])
def test_moved_by_loops(move):
    images = np.random.default_rng(0).integers(1, 256, (2, 2, 5, 28)).astype(np.uint8)
    expected = np.zeros((2, 2, 32, 32), np.uint8)
    for n, c, h, v in np.ndindex(images.shape):
        row, column = (32 - 5) // 2 + h + move[0], (32 - 28) // 2 + v + move[1]
        if 0 <= row < 32 and 0 <= column < 32:
            expected[n, c, row, column] = images[n, c, h, v]
    np.testing.assert_array_equal(shift.moved(images, *move), expected)


def test_digits_hardly_leave_the_field():
    images = data.load("mnist", "test").images
    ink = images.sum(dtype=np.int64)
    for distance, share in ((1, 1), (2, 1), (3, 0.9998)):
        for move in shift.directions(distance):
            assert shift.moved(images, *move).sum(dtype=np.int64) >= share * ink


def test_eight_directions():
    assert shift.directions(0) == [(0, 0)]
    assert len(set(shift.directions(2))) == 8
    assert all(max(abs(a), abs(b)) == 2 for a, b in shift.directions(2))


def test_only_the_pools_differ():
    """10*10+10 of fc3 and so on, by hand."""
    convolutions, rest = 6 * 26 + 16 * 151, 120 + 121 * 100 + 101 * 10
    for pooling, side in (("max-pool", 5), ("average pool", 5), ("every second pixel", 5)):
        network = shift.lenet_with(pooling, 1, 10, 0)
        count = sum(parameter.data.size for parameter in network.parameters())
        assert count == convolutions + 16 * side * side * 120 + rest == 63802
    without = shift.lenet_with("no pooling", 1, 10, 0)
    count = sum(parameter.data.size for parameter in without.parameters())
    assert count == convolutions + 16 * 24 * 24 * 120 + rest
    x = np.random.default_rng(0).random((1, 1, 32, 32), np.float32)
    subsampled = shift.lenet_with("every second pixel", 1, 10, 0)["features"]
    maps = explain.activations(subsampled, x, ["relu1", "pool1"])
    np.testing.assert_array_equal(maps["pool1"], maps["relu1"][:, :, ::2, ::2])


def test_what_is_measured_by_loops():
    network = shift.lenet_with("max-pool", 1, 10, 3)
    found = shift._measured(network, DIGITS, "max-pool", 3, (0, 2))
    right, same, change = [], [], []
    for i in range(len(DIGITS)):
        still = data.to_float(shift.moved(DIGITS.images[i : i + 1], 0, 0))
        before = network["features"].infer(still)[0].astype(np.float64)
        answer = network.infer(still)[0].argmax()
        for down in (-2, 0, 2):
            for along in (-2, 0, 2):
                if down or along:
                    x = data.to_float(shift.moved(DIGITS.images[i : i + 1], down, along))
                    after = network["features"].infer(x)[0].astype(np.float64)
                    read = network.infer(x)[0].argmax()
                    right.append(read == DIGITS.labels[i])
                    same.append(read == answer)
                    change.append(np.linalg.norm(after - before) / np.linalg.norm(before))
    assert found.accuracy[1] == pytest.approx(np.mean(right), abs=1e-12)
    assert found.same == (1.0, pytest.approx(np.mean(same), abs=1e-12))
    assert found.change == (0.0, pytest.approx(np.mean(change), rel=1e-4))
    assert (found.pooling, found.seed, found.parameters) == ("max-pool", 3, 63802)


def test_the_command_prints_a_table_that_its_seeds_decide(capsys):
    def table(seeds):
        argv = ["shift", "--train", "64", "--test", "20", "--epochs", "1", "--seeds", seeds]
        assert main(argv) == 0
        told = capsys.readouterr()
        assert told.err == ""
        return told.out

    first = table("2")
    assert first == table("2")
    assert first != table("3")
    lines = first.splitlines()
    assert "seeds 2" in lines[0]
    assert sum(line.startswith("no pooling") for line in lines) == 3
    for pooling in shift.POOLS:
        assert sum(line.startswith(pooling) for line in lines) == 3
    row = next(line for line in lines if line.startswith("no pooling"))
    assert "1,121,722" in row
    assert row.count("%") == 4
    for argv in (
        ["shift", "--seeds", "x"],
        ["shift", "--train", "0"],
        ["shift", "--data", "mnits"],
    ):
        assert main(argv) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_unknown_pooling_and_too_large_images():
    with pytest.raises(ValueError, match="unknown pooling 'maxpool'; did you mean 'max-pool'"):
        next(shift.shift_experiment(DIGITS, DIGITS, poolings=["maxpool"]))
    with pytest.raises(ValueError, match="33x30 do not fit a field of 32"):
        shift.moved(np.zeros((1, 1, 33, 30), np.uint8), 1, 1)
