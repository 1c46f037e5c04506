"""What the page says of a network: its layers in order, and how each value came about."""

import json
import math

import numpy as np
import pytest
from explained import scores

from gpuconv import Tensor, models, nn, ops
from gpuconv.nn import functional as F
from gpuconv.page.graph import Graph
from gpuconv.page.nodes import explain

EPS = np.finfo(np.float32).eps

CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 4, (3, 5)),
    "padded, strided": nn.Conv2d(3, 4, 3, stride=(2, 3), padding=((2, 0), (1, 2))),
    "dilated, same": nn.Conv2d(3, 4, 3, padding="same", dilation=(2, 1)),
    "groups, no bias": nn.Conv2d(6, 4, 3, padding=1, groups=2, bias=False),
    "partial": nn.Conv2d(3, 3, (3, 2), padding=1, connections=[[1, 0, 1], [1, 1, 0], [0, 1, 1]]),
}
POOLS = {
    "max": nn.MaxPool2d(2),
    "max, overlapping, padded": nn.MaxPool2d((3, 2), stride=(2, 1), padding=1),
    "max, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "average, padding counted": nn.AvgPool2d(3, 2, padding=1),
    "average, padding not counted": nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average, ceil": nn.AvgPool2d(4, 4, padding=2, ceil_mode=True),
    "sum": nn.SumPool2d((2, 3)),
    "adaptive": nn.AdaptiveAvgPool2d((3, 2)),
}


def graph_of(layer, shape):
    """A network whose node 1 is the layer, with something behind it that gives scores."""
    features = math.prod(nn.output_shape(layer, shape))
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(features, 3, rng=0)).eval()
    return Graph(model, shape)


def outputs_of(graph, seed=0):
    x = np.random.default_rng(seed).standard_normal((1, *graph[0].shape)).astype(np.float32)
    return graph.outputs(x)


def indices(shape, count=40):
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


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolutions_terms(name):
    layer = CONVOLUTIONS[name]
    graph = graph_of(layer, (layer.in_channels, 9, 11))
    outputs = outputs_of(graph)
    x, w = outputs[0].astype(np.float64), layer.weight.data.astype(np.float64)
    (top, _), (left, _) = layer.window.pads(9, 11)
    for k, p, q in indices(graph[1].shape):
        found = explain(graph, outputs, 1, (k, p, q))
        terms = {}
        for c in range(w.shape[1]):  # the definition, by loops
            channel = c + k // (w.shape[0] // layer.groups) * w.shape[1]
            for r in range(w.shape[2]):
                for s in range(w.shape[3]):
                    i = p * layer.window.stride[0] - top + r * layer.window.dilation[0]
                    j = q * layer.window.stride[1] - left + s * layer.window.dilation[1]
                    inside = 0 <= i < 9 and 0 <= j < 11
                    terms[channel, r, s] = (x[channel, i, j] if inside else 0.0, w[k, c, r, s])
        linked = [t for t in terms if t[0] in found["window"]["channels"]]
        assert all(terms[t][1] == 0 for t in terms if t not in linked)
        assert found["x"] == [terms[t][0] for t in linked]
        assert found["w"] == [terms[t][1] for t in linked]
        exact = np.array([terms[t][0] * terms[t][1] for t in linked])
        assert (np.abs(np.array(found["products"]) - exact) <= EPS * np.abs(exact)).all()
        bound = rounding(len(linked) + 2, [*exact, found["bias"] or 0])
        assert abs(found["sum"] - exact.sum()) <= bound
        assert abs(found["value"] - (exact.sum() + (found["bias"] or 0))) <= bound
        assert found["value"] == float(outputs[1][k, p, q])


@pytest.mark.parametrize("name", POOLS)
def test_a_pools_window(name):
    layer = POOLS[name]
    graph = graph_of(layer, (3, 9, 10))
    outputs = outputs_of(graph)
    for index in indices(graph[1].shape):
        found = explain(graph, outputs, 1, index)
        place = found["window"]
        x = np.array(found["x"]).reshape(place["rows"], place["columns"])
        inside = np.array(place["inside"]).reshape(x.shape)
        for r in range(place["rows"]):
            for s in range(place["columns"]):
                i = place["top"] + r * place["dilation"][0]
                j = place["left"] + s * place["dilation"][1]
                assert inside[r, s] == (0 <= i < 9 and 0 <= j < 10)
                assert x[r, s] == (outputs[0][index[0], i, j] if inside[r, s] else 0)
        if "winner" in found:
            assert inside.ravel()[found["winner"]]
            assert found["x"][found["winner"]] == found["value"] == x[inside].max()
        else:
            bound = rounding(x.size + 1, x) / found["divisor"]
            assert abs(found["value"] - x.sum() / found["divisor"]) <= bound


def test_the_nan_that_wins_a_pool():
    graph = graph_of(nn.MaxPool2d(2), (1, 2, 2))
    x = np.float32([[[[1, np.nan], [3, 4]]]])
    found = explain(graph, graph.outputs(x), 1, (0, 0, 0))
    assert (found["winner"], found["value"], found["x"]) == (1, None, [1.0, None, 3.0, 4.0])
    json.dumps(found, allow_nan=False)


def test_the_other_layers():
    norm = nn.BatchNorm2d(4)
    rng = np.random.default_rng(3)
    for holder in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        holder.data[...] = rng.uniform(0.5, 2, 4)
    model = nn.Sequential(
        norm=norm,
        lrn=nn.LocalResponseNorm(3, alpha=0.4),
        tanh=nn.Tanh(),
        sum=nn.Residual(nn.Sequential(nn.Conv2d(4, 4, 1, rng=0)), nn.Identity()),
        join=nn.Concat(nn.Conv2d(4, 2, 1, rng=1), nn.Sigmoid()),
        flat=nn.Flatten(),
        fc=nn.Linear(6 * 3 * 2, 5, rng=2),
    ).eval()
    graph = Graph(model, (4, 3, 2))
    outputs = outputs_of(graph)
    by_kind = {node.kind: node for node in graph}
    for node in graph:
        for index in indices(node.shape, 10):
            found = explain(graph, outputs, node.number, index)
            value, close = found["value"], 8 * EPS
            assert value == float(outputs[node.number][index])
            json.dumps(found, allow_nan=False)
            if node.kind == "batch_norm":
                made = (found["x"] - found["mean"]) / math.sqrt(found["var"] + found["eps"])
                made = made * found["weight"] + found["bias"]
                assert abs(value - made) <= close * (abs(made) + 10)
            elif node.kind == "response_norm":
                squares = sum(x * x for x in found["x"])
                made = found["x"][found["center"]]
                made /= (found["k"] + found["a"] * squares) ** found["beta"]
                assert abs(value - made) <= close * (abs(made) + 1)
            elif node.kind == "tanh":
                assert abs(value - math.tanh(found["x"])) <= close
            elif node.kind == "sigmoid":
                assert abs(value - 1 / (1 + math.exp(-found["x"]))) <= close
            elif node.kind == "add":
                assert value == float(np.float32(found["x"][0]) + np.float32(found["x"][1]))
            elif node.kind in ("concat", "flatten", "identity"):
                assert value == found["x"] == float(outputs[found["from"]][tuple(found["at"])])
            elif node.kind == "softmax":
                exps = [math.exp(x - max(found["x"])) for x in found["x"]]
                assert abs(value - exps[index[0]] / sum(exps)) <= close
                assert np.abs(np.array(found["exps"]) - exps).max() <= close
                assert abs(found["sum"] - sum(exps)) <= close * sum(exps)
    assert {"add", "concat", "response_norm", "batch_norm", "softmax"} <= set(by_kind)


@pytest.mark.parametrize("name", ["lenet", "harley_lenet", "lenet5", "resnet18", "densenet121"])
def test_the_layers_one_by_one_give_the_models_scores(name):
    build = getattr(models, name)
    small = {"input_size": 32} if name in ("resnet18", "densenet121") else {}
    try:
        model = build(**small)
    except TypeError:
        model = build()
    shape = model.input_shape if model.input_shape[1] <= 64 else (3, 64, 64)
    graph = Graph(model.eval(), shape)
    x = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    outputs = graph.outputs(x)
    expected = scores(model, x)[0]
    assert outputs[graph.scores].shape == expected.shape
    assert np.abs(outputs[graph.scores] - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(outputs[-1] - ops.softmax(expected[None])[0]).max() <= 1e-4
    assert [tuple(y.shape) for y in outputs] == [node.shape for node in graph]


def test_auxiliary_heads_are_left_out():
    model = models.googlenet_paper(num_classes=7, aux=True, input_size=96).eval()
    graph = Graph(model)
    assert not any(node.name.startswith("aux") for node in graph)
    x = np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float32)
    expected = scores(model, x)[0]
    error = np.abs(graph.outputs(x)[graph.scores] - expected).max()
    assert error <= 1e-4 * np.abs(expected).max()


class Free(nn.Module):
    """Functions between layers, one layer twice, and a layer without layers inside of one's own."""

    class Scaled(nn.Module):
        def forward(self, x):
            return F.relu(x) * 0.5

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, rng=0)
        self.same = nn.Identity()
        self.scaled = Free.Scaled()
        self.fc = nn.Linear(24, 3, rng=1)

    def forward(self, x):
        y = F.relu(self.conv(x))
        y = F.tanh(self.conv(y) + self.same(x))
        y = self.scaled(F.avg_pool2d(y, (1, 2), count_include_pad=False))
        return self.fc(F.cat([y, F.max_pool2d(x, 2, (1, 2), (1, 0))[:, :, :3]]).flatten(1))


def test_a_forward_of_ones_own():
    model = Free().eval()
    graph = Graph(model, (2, 3, 4))
    assert [(node.name, node.kind, node.sources) for node in graph] == [
        ("input", "input", ()),
        ("conv", "conv", (0,)),
        ("relu", "relu", (1,)),
        ("conv", "conv", (2,)),
        ("same", "identity", (0,)),
        ("sum", "add", (3, 4)),
        ("tanh", "tanh", (5,)),
        ("avg_pool2d", "avg_pool", (6,)),
        ("scaled", "other", (7,)),
        ("max_pool2d", "max_pool", (4,)),
        ("index", "other", (9,)),
        ("joined", "concat", (8, 10)),
        ("flat", "flatten", (11,)),
        ("fc", "linear", (12,)),
        ("probabilities", "softmax", (13,)),
    ]
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    outputs = graph.outputs(x)
    assert (outputs[graph.scores] == scores(model, x)[0]).all()
    for node in graph:
        for index in indices(node.shape, 5):
            found = explain(graph, outputs, node.number, index)
            if node.kind in ("max_pool", "avg_pool"):
                inside = np.array(found["x"])[found["window"]["inside"]]
                made = inside.max() if node.kind == "max_pool" else inside.sum() / found["divisor"]
                assert abs(found["value"] - made) <= 8 * EPS
    assert graph.layer_name(3) == "conv"
    assert graph.layer_name(1) is None  # explain knows the layer's last call by that name


def network_with(forward):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(forward(x))

    return nn.Sequential(own=Own())


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda x: Tensor(x.data.reshape(1, 4)), "own has values that no function"),
        (lambda x: x.reshape(1, 2, 2).reshape(1, 4), r"shape \(1, 2, 2\); the page shows"),
        (lambda x: x.flatten(1) * float(x.numpy().max()), "cannot follow the forward of own"),
    ],
)
def test_layers_that_cannot_be_shown_are_named(forward, words):
    with pytest.raises(ValueError, match=f"show: .*{words}"):
        Graph(network_with(forward), (1, 2, 2))


def test_what_cannot_be_shown():
    with pytest.raises(ValueError, match="does not know its input"):
        Graph(nn.Sequential(nn.Flatten()))
    with pytest.raises(ValueError, match="must end with a score for each class"):
        Graph(nn.Sequential(nn.ReLU()), (1, 4, 4))
    with pytest.raises(ValueError, match="at most 100,000,000"):
        Graph(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 8000, 8000))
    graph = Graph(models.lenet().eval())
    outputs = outputs_of(graph)
    with pytest.raises(ValueError, match="there is no layer 99, the last is 13"):
        explain(graph, outputs, 99, (0,))
    for index in ((0, 0), (6, 0, 0), (0, 28, 0), (0, 0, -1)):
        with pytest.raises(ValueError, match="there is no element"):
            explain(graph, outputs, 1, index)
