"""Random networks: PyTorch's outputs and gradients, and the same on every device."""

import copy

import numpy as np
import pytest
from random_networks import RandomNetwork, distance_to_an_edge, operands, results

SEEDS = range(240)
QUICK = range(0, 240, 8)
# float64, at most some thousand products summed one after another in some ten layers; numbers are
# compared with the largest of their array. Every fault of routing is many orders larger.
EXACT = 1e-9


def compare(found, expected, bound, seed):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        if wanted is None:
            assert found[name] is None, (seed, name)
            continue
        scale = max(float(np.abs(wanted).max(initial=0)), 1.0)
        worst = np.abs(found[name] - wanted).max(initial=0)
        assert worst <= bound * scale, (seed, name, worst, scale)


def through_torch(network):
    """The same program by PyTorch's functions."""
    torch = pytest.importorskip("torch")
    import torch_twin

    twin = torch_twin.Twin(network)
    x = torch.tensor(network.x, requires_grad=True)
    ys = twin(x)
    for y, dy in zip(ys, network.dys, strict=True):
        if y.requires_grad:
            y.backward(torch.tensor(dy), retain_graph=True)
    tensors = twin.tensors
    found = {f"y{i}": y.detach().numpy() for i, y in zip(network.outputs, ys, strict=True)}
    found["dx"] = None if x.grad is None else x.grad.numpy()
    for name, _ in network.named_parameters():
        grad = tensors[name].grad
        found[f"d {name}"] = None if grad is None else grad.numpy()
    return found | {n: tensors[n].numpy() for n, b in network.named_buffers() if b.data.ndim}


def against_torch(seed):
    network = RandomNetwork(seed)
    network.to("reference", np.float64).train(not network.eval_mode)
    expected = through_torch(copy.deepcopy(network))
    compare(results(network, "reference", np.float64), expected, EXACT, seed)


@pytest.mark.torch
@pytest.mark.parametrize("seed", SEEDS)
def test_pytorch_agrees(seed):
    against_torch(seed)


def against_reference(seed):
    expected = results(RandomNetwork(seed), "reference", np.float64)
    for fusing in (True, False):
        found = results(RandomNetwork(seed), "cpu", np.float64, fusing)
        compare(found, expected, EXACT, (seed, fusing))


@pytest.mark.parametrize("seed", QUICK)
def test_cpu_agrees_with_the_definitions(seed):
    against_reference(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [s for s in SEEDS if s not in QUICK])
def test_cpu_agrees_with_the_definitions_on_all(seed):
    against_reference(seed)


# float32: ten layers of sums of up to a hundred products, with batch norm over few values between
# them: the worst of all seeds is 3.7e-4 of its array's largest value, the tenth worst 2e-6. A ReLU
# or a pool that decides otherwise is off by far more, so networks with one near its edge are left
# out.
CLOSE, EDGE = 5e-4, 2e-5


def simulated(seed):
    """On device sim and on cpu in float32."""
    pytest.importorskip("simulated")
    network = RandomNetwork(seed)
    if distance_to_an_edge(network) < EDGE:
        return False
    expected = results(RandomNetwork(seed), "reference", np.float64)
    for device in ("cpu", "sim"):
        compare(results(RandomNetwork(seed), device, np.float32), expected, CLOSE, (seed, device))
    return True


def test_float32_agrees_on_cpu_and_in_the_simulator():
    assert sum(map(simulated, SEEDS)) >= 120


def test_the_networks_hold_what_they_should():
    """Every kind of operation and every layer, in training and evaluation, with shared layers."""
    kinds, layers, shared, read_twice, frozen, modes = set(), set(), 0, 0, 0, set()
    for seed in SEEDS:
        network = RandomNetwork(seed)
        kinds |= {op[0] for op in network.program}
        layers |= {type(m).__name__ for m in network.modules()}
        names = [op[1] for op in network.program if op[0] == "layer"]
        shared += len(names) > len(set(names))
        reads = [i for op in network.program for i in operands(op)]
        read_twice += len(reads) > len(set(reads))
        frozen += any(not p.requires_grad for p in network.parameters())
        modes.add(network.eval_mode)
    assert kinds >= {"layer", "checkpoint", "add", "cat", "relu", "tanh", "sigmoid", "max_pool2d"}
    assert layers >= {
        "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm2d", "Concat", "Conv2d", "DenseBlock",
        "Dropout", "Flatten", "Identity", "Linear", "LocalResponseNorm", "MaxPool2d", "Residual",
        "Sequential", "SumPool2d",
    }  # fmt: skip
    assert min(shared, read_twice, frozen) >= 20
    assert modes == {True, False}
