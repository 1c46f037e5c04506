"""The page in a real browser: its numbers are the `cpu` device's, served and as an offline file."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from browser import number
from explained import scores
from served import serving

import gpuconv
from gpuconv import checkpoint as checkpoints
from gpuconv import data, explain, nn, optim
from gpuconv.cli.main import main
from gpuconv.models import lenet
from gpuconv.page import of_model
from gpuconv.page.opening import open_session

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
        loss(model(x), labels).backward()
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
def served(checkpoint):
    with serving(open_session(str(checkpoint), None, "cpu")) as server:
        yield server.url


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
        outputs.append(scores(layer, outputs[-1]))
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
    shares = "return [...document.querySelectorAll('#bars li')].map(row => row.dataset.share)"
    shown = [float(share) for share in browser.js(shares)]
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


def test_drawing_and_walking_by_keyboard(browser, served):
    from selenium.webdriver.common.keys import Keys

    browser.open(served)
    browser.find("#pad-clear").click()
    browser.settle()
    pad = browser.find("#pad")
    pad.send_keys(*[Keys.ARROW_UP] * 8, Keys.SPACE, *[Keys.ARROW_DOWN] * 16, Keys.SPACE)
    browser.settle()
    pixels = browser.picture()[0]
    rows, columns = np.nonzero(pixels > 128)
    assert np.ptp(rows) > 3 * np.ptp(columns)  # an upright stroke
    assert browser.text("#best") == "1"
    canvas = browser.find("[data-layer='4'] canvas[tabindex]")
    browser.js("arguments[0].focus()", canvas)
    browser.open_node(4, (5, 3, 7))
    canvas.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "]")
    shown = "return document.getElementById('node').dataset.shown"
    browser.until(shown + " === '[4,[6,4,9]]'")
    browser.until("return /conv2 map 6, row 4, column 9: /.test(document.body.textContent)")
    spoken = browser.until("return document.getElementById('say').textContent")
    assert spoken.startswith("conv2 map 6, row 4, column 9: ")
    canvas.send_keys(Keys.PAGE_DOWN)
    focused = "return document.activeElement.closest('[data-layer]')?.dataset.layer"
    assert browser.js(focused) == "5"
    browser.find("[data-layer='5'] canvas[tabindex]").send_keys(Keys.ENTER)
    assert browser.js("return document.activeElement.id") == "node"
    assert_clean(browser, served)


def test_every_control_has_a_name_and_pictures_a_role(browser, served):
    browser.open(served)
    browser.open_node(1, (0, 0, 0))
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {}
    for node in nodes:
        if node.get("ignored"):
            continue
        role, name = node["role"]["value"], node.get("name", {}).get("value", "")
        roles.setdefault(role, []).append(name)
    for role in ("button", "combobox", "checkbox", "slider", "spinbutton", "application"):
        assert roles[role], role
        assert all(roles[role]), (role, roles[role])
    assert len(roles["application"]) == 15  # the pad, and each layer's maps
    assert {"status", "complementary", "main", "banner"} <= set(roles)
    unnamed = browser.js(
        "return [...document.querySelectorAll('canvas')].filter(c => c.getAttribute('aria-hidden')"
        " !== 'true' && !c.getAttribute('aria-label') && !c.getAttribute('aria-labelledby')).length"
    )
    assert unnamed == 0


def test_every_explanation_is_drawn(browser, served):
    browser.open(served)
    pixels = "const c = document.getElementById('explain-map'); return c.toDataURL()"
    drawn = set()
    for method in explain.METHODS:
        words = browser.js(
            "document.getElementById('explain-words').textContent = '';"
            "const m = document.getElementById('method'); m.value = arguments[0];"
            "m.dispatchEvent(new Event('change')); return m.selectedOptions[0].textContent",
            method,
        )
        assert words == explain.METHODS[method].title
        assert "Class 7" in browser.until(
            "return document.getElementById('explain-words').textContent"
        )
        low, _, high = browser.text("#explain-range").partition(" to ")
        assert number(high) > 0
        assert number(low) == (-number(high) if explain.METHODS[method].signed else 0)
        drawn.add(browser.js(pixels))
    assert len(drawn) == len(explain.METHODS)
    assert_clean(browser, served)


def test_the_strongest_parts_by_keyboard(browser, served, offline):
    from selenium.webdriver.common.keys import Keys

    ready = (
        "const l = document.querySelector('[data-layer=\"4\"] details.patches');"
        "return l.querySelectorAll('li').length === 9 && "
        "l.textContent.includes(`Filter ${arguments[0]}:`)"
    )
    fold = "[data-layer='4'] details.patches"
    shown = []
    for url in (served, offline):
        browser.open(url)
        browser.find(f"{fold} summary").send_keys(Keys.ENTER)
        browser.until(ready, 0)
        browser.find(f"{fold} input").send_keys(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_UP)
        browser.until(ready, 3)
        names = f'return [...document.querySelectorAll("{fold} .patch")].map('
        shown.append(browser.js(names + "p => p.getAttribute('aria-label').split(';')[0])"))
        assert "the first 2,000 of 10,000 test pictures" in browser.text(fold)
        canvases = browser.js(
            f'return [...document.querySelectorAll("{fold} .patch canvas")].map(c => c.width)'
        )
        assert canvases == [64] * 18
        if url == served:
            first = browser.find(f"{fold} button.patch")
            told = first.get_attribute("aria-label")
            image, label = re.match(r"test picture (\d+), labelled (\d)", told).groups()
            value = first.find_element("css selector", ".number").get_attribute("value")
            first.send_keys(Keys.ENTER)
            opened = "return document.getElementById('node').dataset.shown?.startsWith('[4,[3,')"
            browser.until(
                opened + " && document.getElementById('node-value').value === arguments[0]", value
            )
            assert browser.text("#picture-words") == f"test picture {image}, labelled {label}"
        assert_clean(browser, url)
    assert len(shown[0]) == 9
    assert shown[0] == shown[1]


def test_a_wide_network_in_colour_by_pages(browser):
    """Layers of many channels come by pages that say what is left out; colours stay colours."""
    rng = np.random.default_rng(0)
    colours = np.zeros((12, 3, 8, 8), np.uint8)
    colours[np.arange(12), np.arange(12) % 3] = rng.integers(100, 255, (12, 8, 8))
    wide = nn.Sequential(
        conv=nn.Conv2d(3, 100, 3, rng=0), relu=nn.ReLU(), flat=nn.Flatten(),
        fc=nn.Linear(3600, 3, rng=1),
    )  # fmt: skip
    dataset = data.Dataset(colours, np.arange(12) % 3, ["red", "green", "blue"])
    session = of_model(wide, (3, 8, 8), classes=dataset.classes, test=lambda: dataset)
    with serving(session) as server:
        browser.open(server.url)
        words = ".layer[data-layer='1'] .pager-words"
        assert browser.text(words) == "channels 0 to 63 of 100; 36 left out"
        browser.find("[data-layer='1'] [aria-label='conv: channels after']").click()
        browser.until("return gpuconv.page.maps.get(1)?.first === 64")
        assert browser.text(words) == "channels 64 to 99 of 100; 64 left out"
        outputs = session.graph.outputs(session.preprocessing.to_float(colours[0]))
        browser.open_node(1, (99, 5, 2))
        shown = float(browser.find("#node-value").get_attribute("value"))
        assert shown == outputs[1][99, 5, 2]
        browser.js("document.querySelector('[data-layer=\"1\"] details.patches').open = true")
        browser.until("return document.querySelectorAll('.patch').length === 9")
        parts = browser.js(
            "return [...document.querySelectorAll('.patch')].map(p => [p.title, "
            "[...p.querySelector('canvas').getContext('2d').getImageData(9, 9, 1, 1).data]])"
        )
        for title, (*rgb, _) in parts:
            label = re.search("labelled (red|green|blue)", title)[1]
            assert dataset.classes[int(np.argmax(rgb))] == label
            assert sorted(rgb)[:2] == [0, 0]
        browser.js(
            "const m = document.getElementById('method'); m.value = 'gradient'; m.onchange()"
        )
        browser.until("return document.getElementById('explain-words').textContent")
        pixel = browser.js(
            "return [...document.getElementById('explain-input').getContext('2d')"
            ".getImageData(9, 9, 1, 1).data]"
        )
        assert pixel[0] > 0
        assert pixel[1:3] == [0, 0]  # the first picture is red
        assert_clean(browser, server.url)


def many_layers():
    """LeNet's kind, of so many layers that the lower ones are far out of sight."""
    model = nn.Sequential(conv=nn.Conv2d(1, 6, 5, rng=0), relu=nn.ReLU())
    for k in range(12):
        model.add_module(f"conv{k}", nn.Conv2d(6, 6, 3, padding=1, rng=k))
        model.add_module(f"relu{k}", nn.ReLU())
    for name, layer in (("flat", nn.Flatten()), ("fc", nn.Linear(6 * 28 * 28, 10, rng=1))):
        model.add_module(name, layer)
    return model


def test_layers_out_of_sight_have_their_room_and_their_values(browser, monkeypatch):
    monkeypatch.setattr("gpuconv.page.session.FIRST_VALUES", 8000)  # few are sent with a run
    session = of_model(many_layers(), (1, 32, 32))
    with serving(session) as server:
        browser.open(server.url)
        heights = "return [...document.querySelectorAll('.layer')].map(l => l.offsetHeight)"
        before = browser.js(heights)
        last = len(session.graph) - 4
        relu, index = session.graph[last], (3, 14, 9)
        assert relu.kind == "relu"
        browser.js("gpuconv.select({layer: arguments[0], index: arguments[1]}, false)",
                   last - 1, list(index))  # fmt: skip
        browser.until("return document.querySelector('[data-part=then]')?.getAttribute('value')"
                      " > -Infinity")  # fmt: skip
        shown = browser.js("return document.querySelector('[data-part=then]').textContent")
        assert "not a number" not in shown
        outputs = session._run(browser.js("return gpuconv.page.run"))
        value = browser.js("return document.querySelector('[data-part=then]').value")
        assert float(value) == outputs[last][index]
        for k in range(len(session.graph)):
            browser.js("document.querySelectorAll('.layer')[arguments[0]].scrollIntoView()", k)
            browser.until("return gpuconv.page.maps.has(arguments[0])", k)
        browser.driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"  # drawn
        )
        assert browser.js(heights) == before


@pytest.mark.parametrize("width", [1400, 375])
def test_all_digits_have_room(browser, served, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(served)
        browser.js("document.getElementById('digits').click()")
        for layer, index in ((4, (9, 5, 5)), (8, (3,)), (3, (2, 4, 4)), (13, (2,))):
            browser.open_node(layer, index)
            browser.js(
                "document.querySelectorAll('#node details').forEach(d => { d.open = true; })"
            )
            broken = browser.js(
                "return [...document.querySelectorAll('#node .number')].filter(n => "
                "n.offsetParent && n.tagName !== 'TD' && n.getClientRects().length > 1)"
                ".map(n => n.textContent)"
            )
            assert broken == []
            cut = browser.js(
                "const node = document.getElementById('node'); "
                "const right = node.getBoundingClientRect().right;"
                "return [...node.querySelectorAll('.number, table')].filter(n => n.offsetParent && "
                "!n.closest('.scrolls') && n.getBoundingClientRect().right > right)"
                ".map(n => n.textContent)"
            )
            assert cut == []
            scrolls = browser.js(
                "return [...document.querySelectorAll('#node .scrolls')].every(s => "
                "s.getBoundingClientRect().right <= "
                "document.getElementById('node').getBoundingClientRect().right)"
            )
            assert scrolls
            assert browser.js("const n = document.getElementById('node'); "
                              "return n.scrollWidth <= n.clientWidth")  # fmt: skip
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_phones_width_needs_no_scrolling_sideways(browser, served):
    size = {"width": 375, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(served)
        browser.open_node(4, (9, 5, 5))
        assert browser.js("return document.documentElement.scrollWidth") <= 375
        box = browser.find("#node").rect
        assert box["height"] > 200
        assert box["height"] < 400  # the maps stay in sight above it
        sums = "return [...document.querySelectorAll('.terms-row .number')]"
        sums += ".map(sum => sum.getBoundingClientRect().right)"
        assert max(browser.js(sums)) <= 375 - 18  # within the panel's padding
        browser.js("document.querySelector('[data-layer=\"4\"] details.patches').open = true")
        browser.until("return document.querySelectorAll('.patch').length === 9")
        assert browser.js("return document.documentElement.scrollWidth") <= 375
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_upload_and_a_wrong_one(browser, served, tmp_path):
    from PIL import Image, ImageDraw

    picture = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(picture).line([(100, 40), (100, 160)], fill=0, width=22)
    picture.save(tmp_path / "one.png")
    (tmp_path / "wrong.png").write_bytes(b"no picture")
    browser.open(served)
    browser.find("#upload").send_keys(str(tmp_path / "one.png"))
    browser.until("return /inverted/.test(document.getElementById('picture-words').textContent)")
    browser.settle()
    assert browser.text("#best") == "1"
    browser.find("#upload").send_keys(str(tmp_path / "wrong.png"))
    words = "return document.getElementById('problem').textContent"
    assert "not a picture" in browser.until(words)
    browser.logs()
    assert all("400" in entry for entry in browser.complaints)  # the refused upload, and no more
    browser.complaints.clear()


def test_a_live_run_is_started_paused_and_stopped(browser, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "gpuconv", "train", "--show", "--port", "0", "--limit", "3000"]
    command += ["--epochs", "200", "--out", str(out), "--schedule", "none"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            url = ""
            while not url:
                line = run.stdout.readline()
                assert line, run.stderr.read()
                url = (re.findall(r"http://[0-9.:]+/", line) or [""])[0]
            steer(browser, url)
            run.send_signal(signal.SIGINT)
            _, errors = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 130, errors
    assert f"to go on: gpuconv train --resume {out}" in errors
    kept = checkpoints.read(out / "last.safetensors").metadata["optimizer"]
    assert kept["param_groups"][0]["lr"] == 0.00125  # as it was set in the page


def steer(browser, url):
    """Start, pause, change the rate, resume, stop and go on, all in the page."""
    browser.open(url)
    first = browser.js("return [...gpuconv.page.maps.get(4).values]")
    browser.js("document.querySelector('[data-layer=\"1\"] details.filters').open = true")
    assert browser.text("#run-state") == "Not started"
    state = "return document.getElementById('run-state').textContent === arguments[0]"
    step = "return gpuconv.training.step()"
    browser.find("#run-start").click()
    browser.until(state, "Running")
    browser.until(step + " > 20")
    browser.until(
        "return JSON.stringify([...gpuconv.page.maps.get(4).values]) !== arguments[0]",
        json.dumps(first),
    )
    browser.find("#run-pause").click()
    browser.until(state, "Paused")
    time.sleep(0.2)
    steps = browser.js(step)
    time.sleep(0.4)
    assert browser.js(step) == steps
    assert browser.text("#mistakes")
    assert "right; rows are the truth" in browser.text("#confusion-words")
    counts = browser.js(
        "return [...document.querySelectorAll('#confusion td')].map((td) => +td.textContent)"
    )
    assert len(counts) == 100
    assert f"{sum(counts[::11]):,} of {sum(counts):,} " in browser.text("#confusion-words")
    browser.js("const r = document.getElementById('rate'); r.value = '0.00125'")
    browser.find("#rate-set").click()
    browser.find("#run-resume").click()
    browser.until(step + " > arguments[0]", steps)
    browser.until("return document.getElementById('run-facts').textContent.includes('0.001250')")
    browser.find("#run-stop").click()
    browser.until(state, "Stopped and saved")
    browser.find("#run-start").click()
    browser.until(state, "Running")
    browser.find("#run-stop").click()
    browser.until(state, "Stopped and saved")
    assert_clean(browser, url)
