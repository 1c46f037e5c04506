"""What the page says of a network: its layers in order, and how each value came about."""

import numpy as np
import pytest
from explained import scores

from gpuconv import Tensor, models, nn, ops
from gpuconv.nn import functional as F
from gpuconv.page.graph import Graph


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
    assert graph.layer_name(3) == "conv"
    assert graph.layer_name(1) == ""  # explain knows the layer's last call by that name


def test_batch_norm_without_running_statistics_is_not_explained():
    norm = nn.BatchNorm2d(2)
    norm.running_mean = norm.running_var = None
    norm.forward = lambda x: F.relu(F.tanh(x))  # whatever it computes of the batch
    model = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Flatten(), nn.Linear(8, 2))
    assert Graph(model.eval(), (1, 4, 4))[2].kind == "other"


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
        (lambda x: x.flatten(1) + len(x.numpy()[0, 0, 0, 0]), "cannot follow the forward of own"),
    ],
)
def test_layers_that_cannot_be_shown_are_named(forward, words):
    with pytest.raises(ValueError, match=f"show: .*{words}"):
        Graph(network_with(forward), (1, 2, 2))


class Clipped(nn.Module):
    """A layer in NumPy, without a function of gpuconv."""

    def forward(self, x):
        return Tensor(np.clip(x.data, -1, 1))


class Halved(nn.Module):
    """A forward that asks for values: what it does depends on the picture."""

    def __init__(self):
        super().__init__()
        self.clip, self.fc = Clipped(), nn.Linear(4, 2, rng=0)

    def forward(self, x):
        y = self.clip(x * float(abs(x.numpy()).max()))
        return self.fc((F.relu(y) if x.numpy()[0, 0, 0, 0] > 5 else y).flatten(1))


def test_a_forward_that_asks_for_values_and_a_layer_in_numpy():
    """The graph is recorded from one forward pass, of a black picture."""
    model = Halved().eval()
    graph = Graph(model, (1, 2, 2))
    assert [(node.name, node.kind, node.sources) for node in graph] == [
        ("input", "input", ()),
        ("scale", "other", (0,)),
        ("clip", "other", (1,)),
        ("flat", "flatten", (2,)),
        ("fc", "linear", (3,)),
        ("probabilities", "softmax", (4,)),
    ]
    x = np.array([[[[1, -2], [0.25, 0]]]], np.float32)
    outputs = graph.outputs(x)
    assert (outputs[2] == [[[1, -1], [0.5, 0]]]).all()
    assert (outputs[graph.scores] == scores(model, x)[0]).all()
    with pytest.raises(ValueError, match="runs other layers for this picture than for a black one"):
        graph.outputs(x + 9)


def test_what_cannot_be_shown():
    with pytest.raises(ValueError, match="does not know its input"):
        Graph(nn.Sequential(nn.Flatten()))
    with pytest.raises(ValueError, match="must end with a score for each class"):
        Graph(nn.Sequential(nn.ReLU()), (1, 4, 4))
    with pytest.raises(ValueError, match="at most 100,000,000"):
        Graph(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 8000, 8000))
