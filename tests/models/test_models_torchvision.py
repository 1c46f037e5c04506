"""Whole models against torchvision: names, shapes, first weights, and all that they compute."""

import numpy as np
import pytest
from passes import scores_of, training_pass

import gpuconv
from gpuconv import models, nn

pytestmark = pytest.mark.torch
CASES = [
    ("alexnet", {}, 67),
    ("vgg16", {}, 32),
    ("vgg16_bn", {}, 32),
    ("vgg19", {}, 32),
    ("googlenet", {"aux": False}, 64),
    ("googlenet", {"aux": True}, 64),
    ("resnet18", {}, 64),
    ("resnet34", {}, 64),
    ("resnet50", {}, 64),
    ("densenet121", {}, 64),
]
HEAVY = ("alexnet", "vgg16", "vgg16_bn", "vgg19")


def cases():
    for name, arguments, size in CASES:
        marks = [pytest.mark.slow] if name in HEAVY else []
        yield pytest.param(
            name, arguments, size, id=name + "-aux" * arguments.get("aux", 0), marks=marks
        )


def theirs(name, arguments, classes=6):
    """Torchvision's model with its own first weights; a skip where it cannot be imported."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    try:
        import torchvision
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        pytest.skip("torchvision is not installed")
    except RuntimeError as error:  # compiled for another PyTorch than the one that is here
        pytest.skip(f"torchvision does not fit this PyTorch: {error}")
    torch.manual_seed(3)
    more = {"aux_logits": arguments["aux"], "init_weights": True} if name == "googlenet" else {}
    return torch, getattr(torchvision.models, name)(weights=None, num_classes=classes, **more)


@pytest.mark.parametrize(("name", "arguments", "size"), list(cases()))
def test_names_shapes_and_first_weights(name, arguments, size):
    """In the same order; drawn with the same mean and deviation, or the same constant, but for the
    biases of GoogLeNet's linear layers, which begin at 0 here.
    """
    _, rival = theirs(name, arguments)
    own, state = models.MODELS[name](num_classes=6, **arguments).state_dict(), rival.state_dict()
    assert list(own) == list(state)
    for key, tensor in state.items():
        expected, found = tensor.numpy(), own[key]
        assert found.shape == expected.shape, key
        if name == "googlenet" and "fc" in key and key.endswith("bias"):
            assert (found == 0).all()
        elif np.ptp(expected) == 0:
            assert (found == expected).all(), key
        else:  # nine times what a draw of so many numbers leaves to chance
            chance = 9 / np.sqrt(expected.size)
            assert found.std() == pytest.approx(expected.std(), rel=chance), key
            assert abs(found.mean() - expected.mean()) <= chance * expected.std(), key


@pytest.mark.parametrize("device", ["reference", "cpu"])
@pytest.mark.parametrize(("name", "arguments", "size"), list(cases()))
def test_values_equal_torchvisions(name, arguments, size, device):
    """Torchvision's state loaded into ours: scores in evaluation and in training, loss, every
    gradient, running statistics, in float64.
    """
    torch, rival = theirs(name, arguments)
    rival.double()
    rng = np.random.default_rng(5)
    for key, tensor in rival.state_dict().items():
        if "running" in key:
            tensor += torch.tensor(0.1 * rng.random(tensor.shape))
    network = models.MODELS[name](num_classes=6, seed=None, **arguments).to(device, np.float64)
    network.load_state_dict(gpuconv.load_torch(rival.state_dict()))
    for layer in [*rival.modules(), *network.modules()]:
        if "Dropout" in type(layer).__name__:
            layer.p = 0.0
    x, labels = rng.standard_normal((3, 3, size, size)), np.array([0, 2, 5])
    with torch.no_grad():
        close(scores_of(network.eval(), x), rival.eval()(torch.tensor(x)).numpy(), "evaluation")
    t = torch.tensor(x, requires_grad=True)
    scores = rival.train()(t)
    # its named tuple has the main scores first, then the heads from the last one on
    scores = (scores[0], *scores[:0:-1]) if isinstance(scores, tuple) else (scores,)
    criterion = torch.nn.CrossEntropyLoss()
    main, *others = [criterion(each, torch.tensor(labels)) for each in scores]
    (main + 0.3 * sum(others)).backward()
    loss = nn.AuxiliaryLoss()
    value, ours, dx = training_pass(network.train(), loss, x, labels)
    for found, expected in zip(ours if len(scores) > 1 else (ours,), scores, strict=True):
        close(found, expected.detach().numpy(), "scores")
    assert value == pytest.approx((main + 0.3 * sum(others)).item(), rel=1e-9)
    close(dx, t.grad.numpy(), "input")
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    for key, parameter in rival.named_parameters():
        close(gradients.pop(key), parameter.grad.numpy(), key)
    assert not gradients
    state = network.state_dict()
    for key, buffer in rival.named_buffers():
        close(state[key], buffer.numpy(), key)


def close(found, expected, name):
    """Within 1e-8 of the largest."""
    bound = 1e-8 * np.abs(expected).max() + 1e-14
    assert (np.abs(found - expected) <= bound).all(), name
