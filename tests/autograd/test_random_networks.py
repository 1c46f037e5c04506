"""Random networks: PyTorch's outputs and gradients in float64, and proved ones in float32.

In float64 whole networks are compared. In float32 a rounding may decide a ReLU or a maximum, so
every operation is compared by itself, on the inputs that it really had, within its proved bound;
see proved.py.
"""

import copy
from collections import Counter

import numpy as np
import pytest
from random_networks import RandomNetwork, results

from gpuconv import nn, ops
from gpuconv.autograd import Tensor

SEEDS = range(240)
QUICK = range(0, 240, 8)
# float64, at most some thousand products summed one after another in some ten layers; numbers are
# compared with the largest of their array. Every fault of routing is many orders larger.
EXACT = 1e-9


def quick_and_slow(seeds):
    slow = [pytest.param(s, marks=pytest.mark.slow) for s in SEEDS if s not in seeds]
    return pytest.mark.parametrize("seed", [*seeds, *slow])


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


@pytest.mark.torch
@pytest.mark.parametrize("seed", SEEDS)
def test_pytorch_agrees(seed):
    network = RandomNetwork(seed)
    network.to("reference", np.float64).train(not network.eval_mode)
    expected = through_torch(copy.deepcopy(network))
    compare(results(network, "reference", np.float64), expected, EXACT, seed)


@quick_and_slow(QUICK)
def test_cpu_agrees_with_the_definitions(seed):
    expected = results(RandomNetwork(seed), "reference", np.float64)
    for fusing in (True, False):
        found = results(RandomNetwork(seed), "cpu", np.float64, fusing)
        compare(found, expected, EXACT, (seed, fusing))


def proved(seed, device, fusing, known):
    """A network's results in float32, all of its operations compared with their definitions."""
    from proved import Proof

    network = RandomNetwork(seed)
    network.together = False  # sums of losses are NumPy's
    with Proof(known) as proof:
        found = results(network, device, np.float32, fusing)
    assert proof.checked.total() >= len(network.program)
    return found


@quick_and_slow(range(4, 240, 10))
def test_float32_is_proved_on_cpu_and_in_the_simulator(seed):
    pytest.importorskip("simulated")
    known = {}
    one_by_one = [proved(seed, device, False, known) for device in ("reference", "cpu", "sim")]
    fused = [proved(seed, device, True, known) for device in ("cpu", "sim")]
    for expected, *others in (one_by_one, fused):
        for found in others:
            compare(found, expected, 0, seed)


# Layers that may return their very input.
PASSING = {
    "Dropout(0)": lambda: nn.Dropout(0.0),
    "Identity": nn.Identity,
    "MaxPool2d(1)": lambda: nn.MaxPool2d(1),
    "Sequential(Identity)": lambda: nn.Sequential(nn.Identity()),
    "Sequential()": nn.Sequential,
    "Dropout in evaluation": lambda: nn.Dropout(0.5).eval(),
}


@pytest.mark.parametrize("last", PASSING)
@pytest.mark.parametrize("weighted", ["conv", "linear"])
def test_a_shortcut_around_a_layer_that_returns_its_input(weighted, last):
    """The shortcut is added to what ReLU's gradient still needs."""
    rng = np.random.default_rng(0)
    if weighted == "conv":
        x, layer = rng.standard_normal((2, 3, 6, 5)), nn.Conv2d(3, 3, 3, padding=1, rng=1)
        run, run_backward, geometry = ops.conv2d, ops.conv2d_backward, (1, 1, 1, 1)
    else:
        x, layer = rng.standard_normal((4, 3)), nn.Linear(3, 3, rng=1)
        run, run_backward, geometry = ops.linear, ops.linear_backward, ()
        if last == "MaxPool2d(1)":
            last = "Flatten of 2-D"
    passing = nn.Flatten() if last == "Flatten of 2-D" else PASSING[last]()
    model = nn.Residual(nn.Sequential(layer, nn.ReLU(), passing)).to("cpu", np.float64)
    inputs, dy = Tensor(x, requires_grad=True), rng.standard_normal(x.shape)
    y = model(inputs)
    y.backward(dy.copy())
    w, b = layer.weight.data, layer.bias.data
    plain = run.definition(x, w, b, *geometry)
    dx, dw, db = run_backward.definition(np.where(plain > 0, dy, 0), x, w, b, *geometry)
    np.testing.assert_allclose(y.data, np.maximum(plain, 0) + x, 1e-12, 1e-12)
    for found, expected in ((inputs.grad, dx + dy), (layer.weight.grad, dw), (layer.bias.grad, db)):
        np.testing.assert_allclose(found, expected, 1e-12, 1e-12)


def test_the_networks_hold_what_they_should():
    """Every layer and every kind of connection, in training and in evaluation."""
    counts = {True: Counter(), False: Counter()}
    for seed in SEEDS:
        network = RandomNetwork(seed)
        counts[network.eval_mode].update(network.features())
    expected = {
        "add", "cat", "checkpoint", "max_pool2d", "relu", "scaled_tanh", "sigmoid", "tanh",
        "AdaptiveAvgPool2d", "AvgPool2d", "BatchNorm2d", "Concat", "Conv2d", "DenseBlock",
        "Dropout", "Dropout(0)", "Flatten", "Flatten of 2-D", "Identity", "Linear",
        "LocalResponseNorm", "MaxPool2d", "MaxPool2d(1)", "Residual", "Sequential", "SumPool2d",
        "frozen", "head read twice", "nested containers", "several outputs", "shared layer",
        "Residual whose body ends without weights",
    }  # fmt: skip
    for evaluated, found in counts.items():
        few = {what: found[what] for what in expected if found[what] < 4}
        assert not few, (evaluated, few)
