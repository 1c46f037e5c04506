"""Explanations of whole models against PyTorch: modules with hooks, and autograd with ReLUs that
go backward by another rule.
"""

from unittest import mock

import numpy as np
import pytest
from explained import images

from gpuconv import explain, models, nn
from gpuconv.explain.grad_cam import resize_bilinear
from gpuconv.nn import init

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
import torch_twin  # noqa: E402  needs PyTorch
from torch.nn import functional as F  # noqa: E402

pytestmark = pytest.mark.torch
CASES = [  # model, arguments, image, a layer whose strongest unit is explained, one with maps
    ("lenet", {}, 32, "relu2", "pool1"),
    ("resnet18", {"stem": "small"}, 12, "layer2.0", "layer3"),
    ("googlenet", {}, 64, "inception4a", "inception4e"),
    ("densenet121", {"stem": "small"}, 16, "features.denseblock2", "features"),
]
RULES = {
    "gradient": explain.gradient,
    "guided": explain.guided_backprop,
    "deconvnet": explain.deconvnet,
}


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's idle threads would spin beside gpuconv's own."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


class Ruled(torch.autograd.Function):
    """ReLU whose backward is not its gradient's."""

    @staticmethod
    def forward(ctx, x, rule):
        ctx.rule = rule
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        if ctx.rule != "gradient":
            g = g.clamp(min=0)
        return (g if ctx.rule == "deconvnet" else g * (x > 0)), None


class Watched(torch_twin.Twin):
    """A twin that keeps every module's output, and whose ReLUs go backward by `rule`."""

    rule = "gradient"

    def __call__(self, x):
        self.outputs = {}

        def call(module, x):
            if module is self.network or next(module.children(), None) is not None:
                y = module.forward(x)
            elif isinstance(module, nn.ReLU):
                y = Ruled.apply(x, self.rule)
            else:
                y = torch_twin.SIMPLE[type(module).__name__](module, x, self.of)
            self.outputs[id(module)] = y
            return y

        with mock.patch.object(nn.Module, "__call__", call), torch_twin.functions():
            return self.network(x)


def network(name, arguments):
    """In evaluation, with running statistics of the order of what they stand for."""
    channels = 1 if name == "lenet" else 3
    made = models.MODELS[name](num_classes=6, in_channels=channels, seed=1, **arguments)
    init.initialize(made, 1, init.kaiming_normal)
    rng = np.random.default_rng(3)
    for key, buffer in made.named_buffers():
        if "running_var" in key:
            buffer.data[...] = rng.uniform(0.5, 1.5, buffer.data.shape)
    return made.to("cpu", np.float64).eval(), channels


def layer_named(made, name):
    return next(layer for key, layer in made.named_modules() if key == name)


def close(found, expected):
    bound = 1e-9 * np.abs(expected).max() + 1e-14
    assert np.abs(expected).max() > 0
    assert found.shape == expected.shape
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize(("name", "arguments", "size", "inner", "maps"), CASES)
def test_whole_models(name, arguments, size, inner, maps):
    made, channels = network(name, arguments)
    x = images((channels, size, size))
    twin = Watched(made)
    for rule, function in RULES.items():
        twin.rule = rule
        t = torch.tensor(x, requires_grad=True)
        scores = twin(t)
        (scores[0, 4] + scores[1, 2]).backward()
        close(function(made, x, [4, 2]), t.grad.numpy())
        t = torch.tensor(x, requires_grad=True)
        twin(t)
        y = twin.outputs[id(layer_named(made, inner))]
        unit = tuple(map(int, np.unravel_index(int(y[0].argmax()), y[0].shape)))
        y[(slice(None), *unit)].sum().backward()
        close(function(made, x, unit, inner), t.grad.numpy())
    twin.rule = "gradient"
    scores = twin(torch.tensor(x))
    kept = twin.outputs[id(layer_named(made, maps))]
    (gradient,) = torch.autograd.grad(scores[0, 4] + scores[1, 2], kept)
    cam = F.relu((gradient.mean((2, 3), keepdim=True) * kept).sum(1, keepdim=True))
    cam = F.interpolate(cam, (size, size), mode="bilinear", align_corners=False)
    close(explain.grad_cam(made, x, [4, 2], layer=maps), cam[:, 0].detach().numpy())


@pytest.mark.parametrize("rule", RULES)
def test_lenet_with_hooks_on_modules(rule):
    """As Captum and the first Grad-CAM packages do it."""
    made = models.lenet(seed=2).to("cpu", np.float64)
    twin = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(6, 16, 5), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(400, 120), torch.nn.ReLU(), torch.nn.Linear(120, 100), torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    ).double()  # fmt: skip
    arrays = [torch.tensor(array) for array in made.state_dict().values()]
    twin.load_state_dict(dict(zip(twin.state_dict(), arrays, strict=True)))
    hooks = {
        "gradient": lambda module, grad_in, grad_out: None,
        "guided": lambda module, grad_in, grad_out: (F.relu(grad_in[0]),),
        "deconvnet": lambda module, grad_in, grad_out: (F.relu(grad_out[0]),),
    }
    for module in twin:
        if isinstance(module, torch.nn.ReLU):
            module.register_full_backward_hook(hooks[rule])
    x = images((1, 32, 32), 3)
    t = torch.tensor(x, requires_grad=True)
    twin(t)[:, 7].sum().backward()
    close(RULES[rule](made, x, 7), t.grad.numpy())


@pytest.mark.parametrize(("old", "new"), [((5, 5), (32, 32)), ((3, 7), (8, 5)), ((1, 2), (4, 6))])
def test_resizing(old, new):
    maps = images(old, 2)
    expected = F.interpolate(torch.tensor(maps[None]), new, mode="bilinear", align_corners=False)
    close(resize_bilinear(maps, new), expected[0].numpy())
