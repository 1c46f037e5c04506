"""How the page explains each value: by the definition of its layer, served and as a file."""

import json
import math

import numpy as np
import pytest
from served import serving
from test_show_export import every_kind, session_of

from gpuconv import nn
from gpuconv.page import of_model
from gpuconv.page.description import Part, part_of
from gpuconv.page.export import export

EPS = np.finfo(np.float32).eps
ASK = """
const [shape, pixels, asked, done] = arguments;
(async () => {
  const { run, maps } = await gpuconv.source.run({ shape, pixels: Uint8Array.from(pixels) });
  const explain = ([layer, index]) => gpuconv.explain(run, layer, index);
  const found = await Promise.all(asked.map(explain));
  const plain = (key, value) => (ArrayBuffer.isView(value) ? [...value] : value);
  return JSON.stringify([maps.map((each) => each.values), found], plain);
})().then(done)
"""


def explained(browser, session, pixels, asked):
    """Every layer's values as the page has them, and its explanations of [(node, index)]."""
    given = list(pixels.shape), pixels.ravel().tolist(), [[n, list(i)] for n, i in asked]
    values, found = json.loads(browser.driver.execute_async_script(ASK, *given))
    outputs = [
        np.array(flat, np.float32).reshape(node.shape)
        for flat, node in zip(values, session.graph, strict=True)
    ]
    return outputs, found


def indices(shape, count=8):
    """The corners, and some more."""
    rng = np.random.default_rng(1)
    yield tuple(0 for _ in shape)
    yield tuple(size - 1 for size in shape)
    for _ in range(count):
        yield tuple(int(rng.integers(size)) for size in shape)


def rounding(n, terms):
    """The bound on a float32 sum of n products, whatever its order."""
    gamma = n * EPS / (1 - n * EPS)
    return gamma * float(np.abs(terms).sum())


def check_terms(node, x, index, found):
    """A convolution or linear layer: the definition, by loops."""
    w, bias = node.layer.weight.data, node.layer.bias
    k, *place = index
    terms = {}
    if node.kind == "linear":
        terms = {i: (x[i], w[k, i]) for i in range(len(x))}
    else:
        (top, _), (left, _) = node.window.pads(*x.shape[1:])
        for c in range(w.shape[1]):
            channel = c + k // (w.shape[0] // node.layer.groups) * w.shape[1]
            if node.layer.connections is not None and not node.layer.connections[k][c]:
                continue
            for r in range(w.shape[2]):
                for s in range(w.shape[3]):
                    i = place[0] * node.window.stride[0] - top + r * node.window.dilation[0]
                    j = place[1] * node.window.stride[1] - left + s * node.window.dilation[1]
                    inside = 0 <= i < x.shape[1] and 0 <= j < x.shape[2]
                    terms[channel, r, s] = (x[channel, i, j] if inside else 0.0, w[k, c, r, s])
    pairs = np.array(list(terms.values()), np.float32)
    assert (np.float32(found["x"]) == pairs[:, 0]).all()
    assert (np.float32(found["w"]) == pairs[:, 1]).all()
    assert (np.float32(found["products"]) == pairs[:, 0] * pairs[:, 1]).all()
    assert found["bias"] == (None if bias is None else bias.data[k])
    exact = pairs.astype(float).prod(axis=1)
    bound = rounding(len(pairs) + 2, [*exact, found["bias"] or 0])
    assert abs(found["sum"] - exact.sum()) <= bound
    assert abs(found["value"] - (exact.sum() + (found["bias"] or 0))) <= bound


def check_pool(node, image, index, found):
    window = found["window"]
    x = np.array(found["x"]).reshape(window["rows"], window["columns"])
    inside = np.array(found["inside"]).reshape(x.shape)
    for r in range(window["rows"]):
        for s in range(window["columns"]):
            i = window["top"] + r * window["dilation"][0]
            j = window["left"] + s * window["dilation"][1]
            assert inside[r, s] == (0 <= i < image.shape[1] and 0 <= j < image.shape[2])
            assert x[r, s] == (image[index[0], i, j] if inside[r, s] else 0)
    if node.kind == "max_pool":
        assert inside.ravel()[found["winner"]]
        assert found["x"][found["winner"]] == found["value"] == x[inside].max()
    else:
        bound = rounding(x.size + 1, x) / found["divisor"]
        assert abs(found["value"] - x.sum() / found["divisor"]) <= bound


def check_other(kind, outputs, index, found):
    value, close = found["value"], 8 * EPS
    read = found.get("read", ())
    for each in read:
        assert each["value"] == outputs[each["layer"]][tuple(each["index"])]
    if kind == "batch_norm":
        made = (read[0]["value"] - found["mean"]) / math.sqrt(found["var"] + found["eps"])
        made = made * found["weight"] + found["bias"]
        assert abs(value - made) <= close * (abs(made) + 10)
    elif kind == "response_norm":
        squares = sum(x * x for x in found["x"])
        made = found["x"][found["center"]]
        made /= (found["k"] + found["a"] * squares) ** found["beta"]
        assert abs(value - made) <= close * (abs(made) + 1)
    elif kind == "softmax":
        exps = [math.exp(x - max(found["x"])) for x in found["x"]]
        assert abs(value - exps[index[0]] / sum(exps)) <= close
        assert np.abs(np.array(found["exps"]) - exps).max() <= close
        assert abs(found["sum"] - sum(exps)) <= close * sum(exps)
    elif kind in ("add", "multiply"):
        a, b = (np.float32(each["value"]) for each in read)
        assert value == (a + b if kind == "add" else a * b)
    elif kind != "input":
        x = read[0]["value"]
        made = {
            "relu": lambda: max(x, 0),
            "tanh": lambda: math.tanh(x),
            "scaled_tanh": lambda: 1.7159 * math.tanh(2 * x / 3),
            "sigmoid": lambda: 1 / (1 + math.exp(-x)),
        }.get(kind, lambda: x)()
        assert abs(value - made) <= (2 * close if kind in ("tanh", "scaled_tanh", "sigmoid") else 0)


def more_pools():
    """Windows that `every_kind` lacks."""
    return nn.Sequential(
        ceil=nn.MaxPool2d(3, 2, ceil_mode=True),
        deep=nn.AvgPool2d(4, 2, padding=2, ceil_mode=True),
        lone=nn.AdaptiveAvgPool2d((2, 3)),
        sum=nn.SumPool2d((2, 3)),
        flat=nn.Flatten(),
        fc=nn.Linear(2, 3, rng=0),
    )


@pytest.mark.parametrize("build", [every_kind, more_pools])
@pytest.mark.parametrize("way", ["served", "file"])
def test_every_layers_explanation_is_its_definition(browser, tmp_path, build, way):
    session = session_of(build(), (2, 11, 12), (13, 12))
    pixels = np.random.default_rng(2).integers(0, 256, (2, 11, 12), np.uint8)
    asked = [(node.number, index) for node in session.graph for index in indices(node.shape)]
    with serving(session) as server:
        url = server.url
        if way == "file":
            export(session, tmp_path / "page.html")
            url = (tmp_path / "page.html").as_uri()
        browser.open(url)
        outputs, answers = explained(browser, session, pixels, asked)
    for (number, index), found in zip(asked, answers, strict=True):
        node = session.graph[number]
        assert (found["layer"], found["kind"], tuple(found["index"])) == (number, node.kind, index)
        assert found["value"] == outputs[number][index]
        if node.kind in ("conv", "linear"):
            check_terms(node, outputs[node.sources[0]], index, found)
        elif node.kind.endswith("_pool"):
            check_pool(node, outputs[node.sources[0]], index, found)
        else:
            check_other(node.kind, outputs, index, found)


@pytest.mark.parametrize("way", ["served", "file"])
def test_numbers_that_are_not_finite(browser, tmp_path, way):
    conv = nn.Conv2d(1, 3, 1, bias=False, rng=0)
    conv.weight.data[...] = np.float32([np.nan, np.inf, -1]).reshape(3, 1, 1, 1)
    model = nn.Sequential(
        conv=conv, pool=nn.MaxPool2d(2), flat=nn.Flatten(), fc=nn.Linear(12, 2, rng=1)
    )
    session = of_model(model, (1, 4, 4))
    pixels = np.full((1, 4, 4), 255, np.uint8)
    pixels[0, 0, 0] = 0
    with serving(session) as server:
        url = server.url
        if way == "file":
            export(session, tmp_path / "page.html")
            url = (tmp_path / "page.html").as_uri()
        browser.open(url)
        browser.js(
            "gpuconv.pad.load({shape: [1, 4, 4], pixels: Uint8Array.from(arguments[0])})",
            pixels.ravel().tolist(),
        )
        browser.settle()
        shown = {}
        for number, index in ((1, (1, 1, 1)), (1, (1, 0, 0)), (1, (2, 0, 0)), (2, (0, 0, 0)),
                              (2, (1, 1, 1)), (2, (2, 0, 0)), (5, (1,))):  # fmt: skip
            browser.open_node(number, index)
            shown[number, index] = browser.text("#node-value")
        answer = browser.text("#sure")
    assert shown == {
        (1, (1, 1, 1)): "∞", (1, (1, 0, 0)): "not a number",  # infinity times 0
        (1, (2, 0, 0)): "0", (2, (0, 0, 0)): "not a number", (2, (1, 1, 1)): "∞",
        (2, (2, 0, 0)): "0", (5, (1,)): "not a number",
    }  # fmt: skip
    assert answer == "not a number"


def test_parts_of_maps_are_cut_by_their_places():
    y = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(np.float32)
    found = part_of(y, Part(0, [3, 1], -2, 1, 3, 4, [2, 3]))
    for c, channel in enumerate((3, 1)):
        for r in range(3):
            for s in range(4):
                i, j = -2 + 2 * r, 1 + 3 * s
                inside = 0 <= i < 5 and 0 <= j < 6
                assert found[c, r, s] == (y[channel, i, j] if inside else 0)
    vector = np.float32([5, 6, 7])
    assert part_of(vector, Part(0, [0], 0, 1, 1, 2, [1, 1])).tolist() == [[[6, 7]]]
    for wrong in ([4], [-1]):
        with pytest.raises(ValueError, match="channels go from 0 to 3, got"):
            part_of(y, Part(0, wrong, 0, 0, 1, 1, [1, 1]))
    for rows, columns in ((1 << 29, 0), (1 << 12, 1 << 12)):
        with pytest.raises(ValueError, match="a window may have 4,194,304 values"):
            part_of(y, Part(0, [0], 0, 0, rows, columns, [1, 1]))
