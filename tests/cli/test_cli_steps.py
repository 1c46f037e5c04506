"""`gpuconv steps`: every number it prints, computed again without gpuconv's operations."""

import re

import numpy as np
import pytest
from PIL import Image
from scipy.signal import correlate2d

from gpuconv import data, models
from gpuconv.cli import main

SEED, INDEX, LR = 3, 7, 0.002


def conv(x, w, b):
    return np.stack(
        [
            sum(correlate2d(plane, tap, mode="valid") for plane, tap in zip(x, one, strict=True))
            + c
            for one, c in zip(w, b, strict=True)
        ]
    )


def pool(x):
    channels, height, width = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2).max(axis=(2, 4))


def forward(state, x):
    """Every layer's output, by name, for one image (1, 32, 32); float64 throughout."""
    s, y = {name: array.astype(np.float64) for name, array in state.items()}, {"image": x}
    for n, before in ((1, "image"), (2, "pool1")):
        y[f"conv{n}"] = conv(y[before], s[f"conv{n}.weight"], s[f"conv{n}.bias"])
        y[f"relu{n}"] = np.maximum(y[f"conv{n}"], 0)
        y[f"pool{n}"] = pool(y[f"relu{n}"])
    y["flat"] = y["pool2"].ravel()
    for n, relu, before in ((1, "relu3", "flat"), (2, "relu4", "relu3"), (3, None, "relu4")):
        y[f"fc{n}"] = s[f"fc{n}.weight"] @ y[before] + s[f"fc{n}.bias"]
        if relu:
            y[relu] = np.maximum(y[f"fc{n}"], 0)
    return y


def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def error(state, x, target):
    return ((target - softmax(forward(state, x)["fc3"])) ** 2).sum() / 2


def central_difference_norm(state, name, x, target, h=1e-5):
    gradient = []
    for index in np.ndindex(state[name].shape):
        sides = []
        for step in (h, -h):
            moved = {key: array.astype(np.float64) for key, array in state.items()}
            moved[name][index] += step
            sides.append(error(moved, x, target))
        gradient.append((sides[0] - sides[1]) / (2 * h))
    return np.linalg.norm(gradient)


@pytest.fixture(scope="module")
def text():
    import contextlib
    import io

    out = io.StringIO()
    options = ["--seed", SEED, "--index", INDEX, "--lr", LR, "--repeat", "2"]
    with contextlib.redirect_stdout(out):
        assert main(["steps", *map(str, options)]) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def known():
    """The weights, the image padded by hand, its one-hot target, and every layer's output."""
    state = models.lenet(seed=SEED).state_dict()
    mnist = data.load("mnist")
    x = np.pad(mnist.images[INDEX].astype(np.float64) / 255, ((0, 0), (2, 2), (2, 2)))
    target = np.eye(10)[mnist.labels[INDEX]]
    return state, x, target, forward(state, x)


def rows(text, step):
    part = text.partition(f"Step {step}.")[2].partition(f"Step {step + 1}.")[0]
    return [line.split() for line in part.splitlines()]


def test_the_image_is_printed_pixel_by_pixel(text):
    image = data.load("mnist").images[INDEX, 0]
    top, bottom, left, right = map(
        int, re.search(r"rows (\d+) to (\d+), columns (\d+) to (\d+)", text).groups()
    )
    lines = text.partition(":\n\n")[2].partition("\n\n")[0].splitlines()
    printed = np.array([[0 if v == "." else int(v) for v in line.split()] for line in lines])
    assert np.array_equal(printed, image[top : bottom + 1, left : right + 1])
    assert printed.sum() == image.sum()  # nothing is left out but black


def test_step_1_weights(text, known):
    for name, array in known[0].items():
        (row,) = [row for row in rows(text, 1) if row[:1] == [name]]
        assert row[1] == "x".join(map(str, array.shape))
        low, high = float(row[-3]), float(row[-1])
        assert (low, high) == pytest.approx((array.min(), array.max()), abs=5e-5)


def test_step_2_outputs_of_every_layer(text, known):
    for name, y in known[3].items():
        (row,) = [row for row in rows(text, 2) if row[:1] == [name]]
        assert row[-4] == "x".join(map(str, y.shape))
        wanted = [y.min(), y.mean(), y.max()]
        assert [float(value) for value in row[-3:]] == pytest.approx(wanted, abs=6e-5), name


def test_step_2_one_number_by_hand(text, known):
    part = text.partition("row 14, column 14, pixels x filter:\n")[2]
    products, own = part.partition("    = ")[::2]
    pairs = re.findall(r"(-?[\d.]+)\*(-?[\d.]+)", products)
    assert len(pairs) == 25
    summed = sum(float(a) * float(b) for a, b in pairs)
    state, _, _, y = known
    without_bias = y["conv1"][0, 14, 14] - state["conv1.bias"][0]
    assert summed == pytest.approx(without_bias, abs=25 * 1e-3)  # three digits each
    printed = [float(found) for found in re.findall(r"-?\d\.\d{5}", own.splitlines()[0])]
    wanted = [without_bias, state["conv1.bias"][0], *[y["conv1"][0, 14, 14]] * 2]
    assert printed == pytest.approx(wanted, abs=1e-5)


def test_step_3_probabilities_and_the_total_error(text, known):
    _, _, target, y = known
    p = softmax(y["fc3"])
    table = [row for row in rows(text, 3) if len(row) == 5 and row[0].isdigit()]
    wanted = np.stack([np.arange(10), y["fc3"], p, target, (target - p) ** 2 / 2], axis=1)
    np.testing.assert_allclose(np.array(table, float), wanted, rtol=0, atol=6e-6)
    total = float(re.search(r"total error (\d\.\d+)", text)[1])
    assert total == pytest.approx(((target - p) ** 2).sum() / 2, abs=1e-6)


def test_step_4_gradients_and_the_update(text, known):
    state, x, target, y = known
    lines = [
        row for row in rows(text, 4) if len(row) == 4 and re.match(r"\w+\.(weight|bias)", row[0])
    ]
    table = {row[0]: [float(value) for value in row[1:]] for row in lines}
    assert list(table) == list(state)
    p = softmax(y["fc3"])
    d = p - target
    on_scores = p * (d - (p * d).sum())  # article.md, golden C
    assert table["fc3.bias"][0] == pytest.approx(np.linalg.norm(on_scores), abs=1e-6)
    assert table["fc3.bias"][1] == pytest.approx(np.abs(on_scores).max(), abs=1e-6)
    outer = np.linalg.norm(on_scores) * np.linalg.norm(y["relu4"])
    assert table["fc3.weight"][0] == pytest.approx(outer, abs=1e-6)
    # not conv1.bias: where the image is black, a bias of 0 is the very kink of the ReLU
    for name in ("conv1.weight", "conv2.bias", "fc1.bias"):
        wanted = central_difference_norm(state, name, x, target)
        assert table[name][0] == pytest.approx(wanted, abs=2e-6), name
    for norm, largest, moved in table.values():
        assert moved == pytest.approx(LR * largest, abs=2e-6)
        assert largest <= norm + 1e-6
    (together,) = [float(row[1]) for row in rows(text, 4) if row[:1] == ["together"]]
    squares = sum(norm**2 for norm, _, _ in table.values())
    assert together == pytest.approx(squares**0.5, abs=1e-5)
    before, after, first_order = map(
        float,
        re.search(r"(\d\.\d+) -> (\d\.\d+), .*\n.* = (-\d\.\d+)", text).groups(),
    )
    assert after < before
    assert first_order == pytest.approx(-LR * squares, abs=1e-6)
    assert after - before == pytest.approx(first_order, rel=0.05)


def test_step_5_the_error_goes_on_falling(text):
    errors = [float(value) for value in text.splitlines()[-1].split()]
    assert len(errors) == 3
    assert errors == sorted(errors, reverse=True)
    assert f"-> {errors[0]:.6f}" in text


@pytest.mark.torch
def test_all_gradients_and_the_error_after_the_step_are_torchs(text, known):
    torch = pytest.importorskip("torch")
    state, x, target, _ = known
    t = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in state.items()}

    def error_of(t):
        f, y = torch.nn.functional, torch.tensor(x)[None]
        for n in (1, 2):
            y = f.max_pool2d(f.conv2d(y, t[f"conv{n}.weight"], t[f"conv{n}.bias"]).relu(), 2)
        y = y.flatten(1)
        for n in (1, 2, 3):
            y = f.linear(y, t[f"fc{n}.weight"], t[f"fc{n}.bias"])
            y = y.relu() if n < 3 else y
        return ((torch.tensor(target) - y.softmax(1)) ** 2).sum() / 2

    error_of(t).backward()
    for name, parameter in t.items():
        norm = float(re.search(rf"{name} +(\d\.\d{{6}})", text)[1])
        assert norm == pytest.approx(float(parameter.grad.norm()), abs=1e-6), name
    with torch.no_grad():
        moved = {name: parameter - LR * parameter.grad for name, parameter in t.items()}
        after = float(error_of(moved))
    assert float(re.search(r"-> (\d\.\d+)", text)[1]) == pytest.approx(after, abs=1e-6)


def test_reference_device_prints_the_same_story(capsys, text):
    options = ["--seed", SEED, "--index", INDEX, "--lr", LR, "--repeat", "0"]
    assert main(["steps", *map(str, options), "--device", "reference"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"total error (\d\.\d{5})", out)[1] in text
    assert out.splitlines()[-1].startswith("Step 5.")


def test_steps_reads_pictures_of_any_size(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(2):
            picture = Image.new("L", (20 + 9 * k, 31), 100)
            picture.save(tmp_path / name / f"{k}.png")
    assert main(["steps", "--data", str(tmp_path), "--repeat", "0"]) == 0
    assert "class a: 32x32 pixels" in capsys.readouterr().out
