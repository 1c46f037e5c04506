"""`mpiexec gpuconv train`: one run, of which rank 0 writes and says everything."""

import json

import numpy as np
import pytest
import ranks

from gpuconv import checkpoint, data
from gpuconv.cli import main

SETTINGS = "--epochs 2 --batch 8 --device cpu --validation 0.2 --model lenet"


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 50), ("test", 20)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 10
    np.savez(tmp_path / "digits.npz", **arrays)
    return tmp_path / "digits.npz"


def train(count, *arguments):
    return ranks.run_ranks(count, "-m", "gpuconv", "train", *arguments)


def state_of(folder):
    found = checkpoint.read(folder / "last.safetensors")
    return {**found.weights, **found.optimizer}


@pytest.mark.slow
def test_train_and_resume_with_other_numbers_of_ranks(pictures, tmp_path, capsys):
    """4 -> 2 -> 1 ranks, and one process all the way, end with the same weights."""
    settings = ["--data", pictures, *SETTINGS.split()]
    several, alone = tmp_path / "several", tmp_path / "alone"
    said = train(4, *settings, "--out", several)
    assert "4 ranks of 1 threads" in said
    for text in ("test accuracy", "epoch 2/2", "curves.png"):
        assert said.count(text) == 1  # rank 0 alone says it
    said = train(2, "--resume", several, "--epochs", 3)
    assert "the run had 4 ranks, now there are 2" in said
    assert main(["train", "--resume", str(several), "--epochs", "4"]) == 0
    assert "the run had 2 ranks, now there are 1" in capsys.readouterr().out
    assert main(["train", *map(str, settings), "--out", str(alone)]) == 0
    for epochs in ("3", "4"):
        assert main(["train", "--resume", str(alone), "--epochs", epochs]) == 0
    found, expected = state_of(several), state_of(alone)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (np.abs(found[name] - array) <= 1e-4 * np.abs(array).max()).all(), name
    lines = (several / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_batches_smaller_than_the_ranks():
    dataset = data.Dataset(np.zeros((9, 1, 4, 4), np.uint8), np.zeros(9, np.int64), ("a",))
    loader = data.Loader(dataset, 3)
    with pytest.raises(ValueError, match="batches of 3 images on 4 ranks: each needs an image"):
        loader.scattered(0, 4)
    parts = [loader.scattered(rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    order = loader.order(0)
    together = np.stack([part.indices(order, 1) for part in parts]).ravel()
    np.testing.assert_array_equal(together, order[3:6])
