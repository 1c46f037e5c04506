"""The example scripts, run as a user runs them on a little data, and what the photographs' set
promises: no test image shares a pixel with a training image.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpuconv import checkpoint, data

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script, *options):
    """The script's output; it must end well."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def accuracy(text):
    """The number in the line that every recipe ends with."""
    (found,) = re.findall(r"^test accuracy (\d+\.\d\d)% \(.*\)$", text, re.MULTILINE)
    return float(found)


@pytest.fixture(scope="module")
def photographs():
    spec = importlib.util.spec_from_file_location("photographs", EXAMPLES / "photographs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Noise in two colours, in folders as colour_images.py wants them."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 48), ("test", 12)):
        for plane, name in ((0, "red"), (2, "blue")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (3, 32, 32)).astype(np.uint8)
                pixels[plane] += 100
                data.save_image(folder / part / name / f"{number}.png", pixels)
    return folder


@pytest.mark.slow  # .ci/run runs it by name
def test_lenet(tmp_path):
    out = tmp_path / "run"
    options = ["--limit", 1000, "--epochs", 3, "--out", out]
    text = run("lenet.py", *options)
    assert "(mnist, seed 0)" in text
    assert accuracy(text) > 50
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    kept = checkpoint.read(out / "last.safetensors").metadata
    assert kept["recipe"]["schedule"]["name"] == "OneCycleLR"
    assert accuracy(run("lenet.py", *options)) == accuracy(text)  # done: nothing to train


@pytest.mark.parametrize("model", [pytest.param("resnet", marks=pytest.mark.slow), "vgg"])
def test_colour_images(tmp_path, pictures, model):
    out = tmp_path / "run"
    text = run("colour_images.py", pictures, "--model", model, "--epochs", 1, "--out", out)
    assert f"({model}, seed 0)" in text
    assert 0 <= accuracy(text) <= 100  # two steps: too few to ask for more
    recipe = checkpoint.read(out / "last.safetensors").metadata["recipe"]
    assert recipe["loss"]["label_smoothing"] == 0.1
    assert recipe["average"] == 0.99
    assert len((out / "history.jsonl").read_text().splitlines()) == 1


def test_linear_baseline(pictures):
    text = run("linear_baseline.py", pictures, "--epochs", 10)
    found = re.findall(r"^weight decay [\d.]+: (\d+\.\d\d)%$", text, re.MULTILINE)
    assert len(found) == 4
    assert accuracy(text) == max(map(float, found)) == 100  # red from blue


def test_training_and_test_tiles_share_no_pixel(photographs):
    """Every pixel a number of its own, so that a tile says where it was cut."""
    numbers = np.arange(3 * 330 * 460).reshape(3, 330, 460)
    places = {"train": set(), "test": set()}
    for part, tile in photographs.tiles(numbers, np.random.default_rng(0)):
        assert tile.shape == (3, 32, 32)
        places[part].update(tile.ravel().tolist())
    assert len(places["train"]) > len(places["test"]) > 0
    assert not places["train"] & places["test"]


def test_the_photographs_are_cut_into_ten_classes(photographs, tmp_path):
    for package in ("sklearn", "skimage"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, which brings photographs along, is not installed")
    text = run("photographs.py", tmp_path / "tiles")
    assert text == "{'train': 3041, 'test': 955}\n"
    for part in ("train", "test"):
        assert len(list((tmp_path / "tiles" / part).iterdir())) == 10
