"""Whole models against PyTorch: scores, loss, every gradient, the running statistics."""

import numpy as np
import pytest

from gpuconv import models, nn

pytestmark = pytest.mark.torch
CASES = [
    ("lenet5", {}, 32),
    ("alexnet", {"input_size": 67}, 67),
    ("alexnet_2012", {"input_size": 67}, 67),
    ("zfnet", {"input_size": 64}, 64),
    ("googlenet", {"aux": True}, 64),
    ("googlenet_paper", {"aux": True, "input_size": 80}, 80),
    ("vgg16_bn", {}, 32),
    ("resnet18", {"stem": "small"}, 32),
    ("resnet50", {}, 64),
    ("densenet121", {"stem": "small"}, 32),
]


HEAVY = ("alexnet", "alexnet_2012", "zfnet", "vgg16_bn", "googlenet_paper")


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] in HEAVY)) for case in CASES],
)
def test_models_equal_pytorch(name, arguments, size, device):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import torch_twin

    rng = np.random.default_rng(7)
    channels = 1 if name.startswith("lenet") else 3
    network = models.MODELS[name](num_classes=6, in_channels=channels, seed=1, **arguments)
    torch_twin.without_dropout(network.to(device, np.float64))
    twin = torch_twin.Twin(network)
    x, labels = rng.standard_normal((3, channels, size, size)), np.array([0, 2, 5])
    t = torch.tensor(x, requires_grad=True)
    value = torch_twin.loss(twin(t), torch.tensor(labels))
    value.backward()
    loss = nn.AuxiliaryLoss()
    loss.device = device
    assert loss.forward(network.forward(x), labels) == pytest.approx(value.item(), rel=1e-9)
    close(network.backward(loss.backward()), t.grad.numpy(), "input")
    for key, parameter in network.named_parameters():
        close(parameter.grad, twin.tensors[key].grad.numpy(), key)
    for key, value in network.state_dict().items():
        if "running" in key:
            close(value, twin.tensors[key].numpy(), key)


def close(found, expected, name):
    """Within 1e-6 of the largest: batch norm over few values amplifies the last bits."""
    bound = 1e-6 * np.abs(expected).max() + 1e-14
    assert (np.abs(found - expected) <= bound).all(), name
