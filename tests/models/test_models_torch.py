"""Whole models against PyTorch: scores, loss, every gradient, the running statistics."""

import numpy as np
import pytest
from passes import scores_of, training_pass

from gpuconv import models, nn

pytestmark = pytest.mark.torch
GRAY = ("lenet", "lenet5", "harley_lenet")
# name, arguments, side of the images. The large ones and the goldens' sizes are slow tests.
QUICK = [
    ("lenet", {}, 32),
    ("lenet5", {}, 32),
    ("harley_lenet", {}, 32),
    ("googlenet", {}, 64),
    ("googlenet", {"aux": True}, 64),
    ("resnet18", {"stem": "small"}, 32),
    ("resnet50", {}, 64),
    ("densenet121", {}, 64),
]
SLOW = [
    ("resnet18", {}, 64),
    ("resnet34", {}, 64),
    ("resnet50", {"stem": "small"}, 16),
    ("densenet121", {"stem": "small"}, 32),
    ("alexnet", {}, 67),
    ("alexnet", {}, 224),
    ("alexnet_2012", {"input_size": 67}, 67),
    ("alexnet_2012", {"input_size": 67, "groups": 1, "lrn": "paper"}, 67),
    ("alexnet_2012", {}, 227),
    ("zfnet", {"input_size": 64}, 64),
    ("zfnet", {}, 224),
    ("googlenet", {"aux": True}, 224),
    ("googlenet_paper", {"input_size": 80}, 80),
    ("googlenet_paper", {"aux": True, "input_size": 80}, 80),
    ("googlenet_paper", {"aux": True}, 224),
    ("vgg16", {}, 32),
    ("vgg16", {}, 224),
    ("vgg16_bn", {}, 64),
    ("vgg19", {}, 64),
    ("resnet18", {}, 224),
]


def cases():
    for case in QUICK + SLOW:
        marks = [pytest.mark.slow] if case in SLOW else []
        yield pytest.param(*case, id="-".join(map(str, (case[0], *case[1], case[2]))), marks=marks)


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize(("name", "arguments", "size"), list(cases()))
def test_models_equal_pytorch(name, arguments, size, device):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import torch_twin

    rng = np.random.default_rng(7)
    channels = 1 if name in GRAY else 3
    network = models.MODELS[name](num_classes=6, in_channels=channels, seed=1, **arguments)
    torch_twin.without_dropout(network.to(device, np.float64))
    twin = torch_twin.Twin(network)
    x, labels = rng.standard_normal((3, channels, size, size)), np.array([0, 2, 5])
    t = torch.tensor(x, requires_grad=True)
    theirs = twin(t)
    value = torch_twin.loss(theirs, torch.tensor(labels))
    value.backward()
    loss = nn.AuxiliaryLoss()
    mine, ours, dx = training_pass(network, loss, x, labels)
    for number, scores in enumerate(ours if isinstance(ours, tuple) else (ours,)):
        expected = theirs[number] if isinstance(theirs, tuple) else theirs
        close(scores, expected.detach().numpy(), f"scores {number}")
    assert mine == pytest.approx(value.item(), rel=1e-9)
    close(dx, t.grad.numpy(), "input")
    for key, parameter in network.named_parameters():
        close(parameter.grad, twin.tensors[key].grad.numpy(), key)
    for key, value in network.state_dict().items():
        if "running" in key:
            close(value, twin.tensors[key].numpy(), key)
    network.eval()  # the twin's too: it reads each layer's mode
    close(scores_of(network, x), twin(t).detach().numpy(), "scores in evaluation")


def close(found, expected, name):
    """Within 1e-8 of the largest; most agree to 1e-12, DenseNet's first scale, whose gradient the
    next batch norms cancel, to 1e-9.
    """
    bound = 1e-8 * np.abs(expected).max() + 1e-14
    assert (np.abs(found - expected) <= bound).all(), name
