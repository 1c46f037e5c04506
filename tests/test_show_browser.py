"""The page in a real browser: its numbers are the `cpu` device's, served and as an offline file."""

import threading

import numpy as np
import pytest

import gpuconv
from gpuconv import data, nn, optim
from gpuconv.cli.main import main
from gpuconv.cli.show import open_session
from gpuconv.models import lenet
from gpuconv.show.server import PageServer
from browser import chromium, number

EPS = np.finfo(np.float32).eps
SEVEN = [(0.25, 0.22), (0.5, 0.21), (0.76, 0.22), (0.64, 0.45), (0.52, 0.65), (0.44, 0.86)]
NODES = 30


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """LeNet after 250 steps on MNIST, as `gpuconv train` keeps it."""
    path = tmp_path_factory.mktemp("show") / "lenet.safetensors"
    train = data.load("mnist", "train").subset(slice(0, 16000))
    how = {"size": 32, "mean": 0.1307, "std": 0.3081}
    model, loss = lenet(seed=0), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    for x, labels in data.Loader(train, batch_size=64, seed=0, **how):
        optimizer.zero_grad()
        loss.forward(model.forward(x), labels)
        model.backward(loss.backward(), need_dx=False)
        optimizer.step()
    metadata = {
        "input": {"size": 32, "mean": [0.1307], "std": [0.3081]},
        "image_shape": [1, 28, 28],
        "dark_border": True,
        "classes": list(train.classes),
        "settings": {"data": "mnist", "seed": 0},
    }
    gpuconv.save(model, path, **metadata)
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served(checkpoint):
    with PageServer(open_session(str(checkpoint), None, "cpu")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def offline(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "page.html"
    assert main(["show", str(checkpoint), "--export", str(path)]) == 0
    return path.as_uri()


def cpu_outputs(model, pixels):
    """Every layer's output on the cpu device, layer by layer, the input first."""
    x = data.to_float(pixels[None], 32, 0.1307, 0.3081)
    outputs = [x]
    for layer in model:
        outputs.append(layer.infer(outputs[-1]))
    outputs.append(gpuconv.ops.softmax(outputs[-1]))
    return [y[0] for y in outputs]


def terms_of(model, outputs, layer, index):
    """Inputs, weights and bias of one value of a convolution or a linear layer, by definition."""
    w, b = model[layer - 1].weight.data, model[layer - 1].bias.data
    if w.ndim == 2:
        return outputs[layer - 1], w[index[0]], b[index[0]]
    k, p, q = index
    return outputs[layer - 1][:, p : p + 5, q : q + 5].ravel(), w[k].ravel(), b[k]


def check_node(browser, model, outputs, layer, index, slack):
    """Open one value with the mouse and compare all that the page says of it.

    slack: by which relative error of a layer's largest value the values may differ from the cpu's.
    """
    browser.open_node(layer, index)
    value = number(browser.text("#node-value"))
    expected = outputs[layer]
    near = slack * np.abs(expected).max()
    assert abs(value - expected[index]) <= near, (layer, index)
    parts = browser.shown_parts()
    kind = type(model[layer - 1]).__name__ if 0 < layer <= len(model) else ""
    if kind in ("Conv2d", "Linear"):
        x, w, b = terms_of(model, outputs, layer, index)
        shown = browser.shown_terms()
        assert shown.shape == (x.size, 3)
        assert (np.abs(shown[:, 0] - x) <= slack * np.abs(outputs[layer - 1]).max()).all()
        assert (shown[:, 1] == w).all()
        assert (shown[:, 2] == shown[:, 0] * shown[:, 1]).all()
        assert np.float32(parts["bias"]) == b
        size = np.abs(x.astype(float) * w).sum() + abs(float(b))
        bound = (x.size + 2) * EPS / (1 - (x.size + 2) * EPS) * size
        assert abs(parts["sum"] - shown[:, 2].sum(dtype=float)) <= bound
        assert abs(parts["sum"] + parts["bias"] - value) <= bound
        assert parts["value"] == value
    elif kind == "MaxPool2d":
        c, p, q = index
        window = outputs[layer - 1][c, 2 * p : 2 * p + 2, 2 * q : 2 * q + 2].ravel()
        values, winner = browser.shown_window()
        assert (np.abs(values - window) <= slack * np.abs(outputs[layer - 1]).max()).all()
        assert winner == [int(values.argmax())]
        assert parts["winner"] == value == values.max()
    elif kind == "ReLU":
        assert abs(parts["x"] - outputs[layer - 1][index]) <= near
        assert value == max(parts["x"], 0)
    elif layer == len(model) + 1:
        scores = outputs[layer - 1].astype(float)
        less = scores - scores.max()
        exps = np.exp(less)
        bounds = (EPS * (4 + np.abs(less)) + 2 * slack * np.abs(scores).max()) * exps
        assert abs(parts["exp"] - exps[index[0]]) <= bounds[index[0]]
        assert abs(parts["sum"] - exps.sum()) <= bounds.sum() + 10 * EPS * exps.sum()
        assert abs(value - parts["exp"] / parts["sum"]) <= 4 * EPS


def check_page(browser, checkpoint, slack):
    """Draw a seven with the mouse, see it read, and open NODES values across all layers."""
    browser.js("document.getElementById('digits').click()")
    browser.find("#pad-clear").click()
    browser.settle()
    browser.draw(SEVEN)
    model = gpuconv.load(checkpoint)
    pixels = browser.picture()
    assert pixels.max() > 200
    outputs = cpu_outputs(model, pixels)
    assert browser.text("#best") == "7" == str(outputs[-1].argmax())
    shown = [float(share) for share in browser.js(
        "return [...document.querySelectorAll('#bars li')].map(row => row.dataset.share)")]  # fmt: skip
    assert np.abs(np.array(shown) - outputs[-1]).max() <= 2 * slack * np.abs(outputs[-2]).max()
    rng = np.random.default_rng(5)
    for number_ in range(NODES):
        layer = number_ % len(outputs)  # every layer at least twice
        index = tuple(int(rng.integers(size)) for size in outputs[layer].shape)
        check_node(browser, model, outputs, layer, index, slack)


def assert_clean(browser, allowed):
    """Nothing in the console, and nothing asked for but from `allowed`."""
    browser.logs()
    assert browser.complaints == []
    strange = [url for url in browser.requested if not url.startswith((allowed, "data:", "blob:"))]
    assert strange == []
    browser.requested.clear()


def test_the_served_page(browser, checkpoint, served):
    browser.open(served)
    check_page(browser, checkpoint, slack=0)
    assert_clean(browser, served)


def test_the_exported_file_with_the_network_cut(browser, checkpoint, offline):
    cut = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", cut)
    try:
        browser.open(offline)
        check_page(browser, checkpoint, slack=64 * EPS)
        assert_clean(browser, offline)
    finally:
        browser.driver.execute_cdp_cmd("Network.emulateNetworkConditions", cut | {"offline": False})
