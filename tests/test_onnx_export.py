"""Exported ONNX files: onnxruntime's outputs, names and shapes, and what is refused."""

import json

import numpy as np
import pytest
from random_networks import RandomNetwork

from gpuconv import models, nn

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")

from onnx_runs import check_export, compare, outputs, runtime  # noqa: E402

from gpuconv.onnx import export  # noqa: E402

pytestmark = pytest.mark.onnx
F = nn.functional
LARGE = ("alexnet", "alexnet_2012", "vgg16", "vgg16_bn", "vgg19", "zfnet")


def names(values):
    return [value.name for value in values]


def filled(network):
    """A network whose weights have He's spread; drawn faster than by its initialisers."""
    rng = np.random.default_rng(0)
    for p in network.parameters():
        fan_in = p.data[0].size if p.ndim > 1 else 100
        p.data[...] = np.resize(rng.standard_normal(1 << 16), p.shape) * np.sqrt(2 / fan_in)
    for name, buffer in network.named_buffers():
        buffer.data[...] = rng.uniform(0.5, 2) if name.endswith("var") else 0
    return network


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in sorted(models.MODELS)],
)
def test_every_model_of_the_zoo(name, tmp_path):
    network = filled(models.MODELS[name](seed=None))
    file = check_export(network, tmp_path / "net.onnx")
    used = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert used == {n for n in names(file.graph.initializer) if not n.startswith("constant")}


@pytest.mark.parametrize("seed", range(100))
def test_random_networks(seed, tmp_path):
    network = RandomNetwork(seed)
    network.to("cpu", np.float32)
    check_export(network, tmp_path / "net.onnx", network.x.shape[1:], np.float32(network.x))


@pytest.mark.parametrize("seed", range(8))
def test_convolutions_and_pools_of_every_geometry(seed, tmp_path):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        layer, shape = random_window(rng)
        try:
            nn.output_shape(layer, shape)
        except ValueError:  # it does not fit
            continue
        check_export(layer, tmp_path / "net.onnx", shape)


def random_window(rng):
    """A layer with a window, and the shape of an image."""

    def pick(low, high):
        return int(rng.integers(low, high + 1))

    kernel, beyond = (pick(1, 4), pick(1, 4)), 3 * (rng.random() < 0.2)
    paddings = (
        "same",
        "full",
        (pick(0, kernel[0] // 2), pick(0, kernel[1] // 2)),
        tuple((pick(0, k - 1 + beyond), pick(0, k - 1 + beyond)) for k in kernel),
    )
    stride, dilation = (pick(1, 5), pick(1, 5)), (pick(1, 2), pick(1, 2))
    padding, ceil, include = paddings[pick(0, 3)], bool(pick(0, 1)), bool(pick(0, 1))
    layers = (
        nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups=2, rng=0),
        nn.MaxPool2d(kernel, stride, padding, dilation, ceil),
        nn.SumPool2d(kernel, stride, padding, dilation, ceil),
        nn.AvgPool2d(kernel, stride, padding, ceil, include, dilation),
    )
    return layers[pick(0, 3)], (2, pick(4, 11), pick(4, 11))


class Free(nn.Module):
    """A forward of functions and operators, of every kind that has a form in ONNX."""

    def __init__(self):
        super().__init__()
        links = np.random.default_rng(0).random((6, 4)) < 0.6
        links[0] = True
        self.conv, self.bn = nn.Conv2d(3, 6, 3, padding=1, rng=0), nn.BatchNorm2d(6, affine=False)
        self.partial = nn.Conv2d(6, 4, 3, connections=links, rng=1)
        self.even = nn.LocalResponseNorm(4, 0.5, 0.75, 1.5, "paper")
        self.odd = nn.LocalResponseNorm(3, 0.5, 0.75, 1.5, "paper")
        self.scale = nn.Parameter(np.float32([1, 2, 3, 0.5]).reshape(4, 1, 1))
        self.fc, self.shift = nn.Linear(64, 5, rng=2), nn.Parameter(np.arange(5, dtype=np.float32))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x))) + x[:, :1] * 2
        y = self.partial((y / 3 + 1) ** 2) - 0.5
        y = self.odd(self.even(F.scaled_tanh(y))) * self.scale
        z = y.reshape(y.shape[0], 2, -1).reshape(-1, 4, 6, 6)
        y = F.adaptive_avg_pool2d(F.cat([y, z])[:, 1:8:2, ..., ::2], (4, 4))
        scores = self.fc(F.dropout(y, 0.5, 1).flatten(1) if self.training else y.flatten(1))
        square = scores @ nn.Tensor(np.eye(5, dtype=np.float32)) * self.shift
        return F.softmax(square), -square.sum(1), y[:, -2].mean((1, 2)), x, square, square


def test_a_forward_of_functions(tmp_path):
    file = check_export(Free(), tmp_path / "net.onnx", (3, 8, 8))
    assert len(set(names(file.graph.output))) == 6
    found = names(file.graph.initializer)
    assert {"conv.weight", "partial.weight", "scale", "shift", "bn.running_var"} < set(found)
    assert not any(name.startswith("unused") for name in found)


def test_the_batch_is_free_and_names_can_be_given(tmp_path):
    network = models.lenet(seed=0)
    for batch in (1, 5):
        x = np.random.default_rng(batch).random((batch, 1, 32, 32), dtype=np.float32)
        options = {"input_name": "image", "output_names": ["scores"], "classes": list("abc")}
        file = check_export(network, tmp_path / "net.onnx", x=x, **options)
    assert names(file.graph.input) == ["image"]
    assert names(file.graph.output) == ["scores"]
    axes = [
        axis.dim_param or axis.dim_value for axis in file.graph.input[0].type.tensor_type.shape.dim
    ]
    assert axes == ["batch", 1, 32, 32]
    assert json.loads(file.metadata_props[0].value) == ["a", "b", "c"]
    for wrong in ([], ["a", "b"], ["conv1.weight"], ["image"]):
        with pytest.raises(ValueError, match="output_names must be 1 new names"):
            export(network, tmp_path / "net.onnx", input_name="image", output_names=wrong)


def test_double_precision_and_devices(tmp_path):
    wide = nn.Sequential(nn.Linear(3, 2, rng=0), nn.Tanh()).to(dtype=np.float64)
    path, x = tmp_path / "net.onnx", np.random.default_rng(0).random((4, 3))
    export(wide, path, (3,))
    np.testing.assert_allclose(runtime(path, x)[0], outputs(wide, nn.Tensor(x))[0], 1e-6)
    pytest.importorskip("simulated")
    there = Free().to("sim")
    export(there, path, (3, 8, 8))
    x = np.random.default_rng(0).random((1, 3, 8, 8), dtype=np.float32)
    compare(runtime(path, x), outputs(there.to("cpu"), x))


class Calls(nn.Module):
    """A function of the input, as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.sum(0), "sum of the network mixes the images of a batch"),
        (lambda x: x.reshape(-1), "reshape of the network mixes the images"),
        (lambda x: F.dropout(x, 0.5, 1), "dropout has no form in ONNX"),
        (lambda x: x[:, [0, 1]], "only slices and numbers"),
        (lambda x: x[..., ::-1], "forward"),
        (lambda x: x.detach(), "values that no function of nn.functional gave"),
        (lambda x: x * float(x.numpy().max()), "depends on more than shapes"),
        (lambda x: x.max(1), "depends on more than shapes"),
        (lambda x: {"scores": x}, "must return tensors, got dict"),
        (nn.BatchNorm2d(3, track_running_stats=False), "without running statistics"),
        (nn.Conv2d(4, 2, 3), "x has 3 channels"),
    ],
)
def test_what_has_no_form_in_onnx_is_refused_in_one_line(function, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        export(Calls(function), tmp_path / "net.onnx", (3, 8, 8))
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    path, lenet = tmp_path / "net.onnx", models.lenet(seed=None)
    with pytest.raises(ValueError, match="give its input_shape"):
        export(nn.Flatten(), path)
    with pytest.raises(ValueError, match="input_name must be a new name"):
        export(lenet, path, input_name="conv1.weight")
    for model, shape, options, message in (
        (lambda x: x, None, {}, "a Module is expected, got function"),
        (lenet, 32, {}, "input_shape must be such as"),
        (lenet, (1, 32, 2.5), {}, "input_shape"),
        (lenet, None, {"classes": {1, 2}}, "what JSON can hold"),
    ):
        with pytest.raises(TypeError, match=message):
            export(model, path, shape, **options)
    assert not path.exists()


@pytest.mark.torch
def test_opset_and_names_are_those_of_pytorchs_exporter(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript, of PyTorch's exporter, is not installed")

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.fc = torch.nn.Linear(64, 5)

        def forward(self, x):
            y = torch.nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
            return self.fc(y.flatten(1))

    class Ours(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.fc = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Linear(64, 5)

        def forward(self, x):
            return self.fc(F.max_pool2d(F.relu(self.conv1(x)), 2).flatten(1))

    batch = {0: torch.export.Dim("batch")}
    theirs, path = Theirs().eval(), tmp_path / "torch.onnx"
    torch.onnx.export(
        theirs, torch.zeros(2, 3, 8, 8), path, dynamic_shapes=(batch,), dynamo=True, verbose=False
    )
    expected, found = onnx.load(path), check_export(Ours(), tmp_path / "net.onnx", (3, 8, 8))
    assert found.opset_import == expected.opset_import
    assert found.ir_version == expected.ir_version
    for part in ("input", "output"):
        a, b = (getattr(file.graph, part)[0] for file in (found, expected))
        assert (a.name, a.type) == (b.name, b.type)
    weights = {n for n in names(expected.graph.initializer) if n in theirs.state_dict()}
    assert weights == set(names(found.graph.initializer))
    kinds, wanted = ([n.op_type for n in file.graph.node] for file in (found, expected))
    assert kinds == ["Flatten" if kind == "Reshape" else kind for kind in wanted]
