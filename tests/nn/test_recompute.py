"""Recomputation gives the bits of plain training, and takes less memory."""

import tracemalloc

import numpy as np
import pytest

from gpuconv import models, nn, optim

RNG = np.random.default_rng(0)


def block(channels, drop):
    return nn.Residual(
        nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Conv2d(channels, channels, 1),
        )
    )


def network(recompute):
    """Blocks with batch norm and dropout, one of them used by a loss of its own."""
    wrap = nn.Recompute if recompute else lambda layer: layer
    made = nn.AuxiliaryHeads(
        {"head": "middle"},
        first=nn.Conv2d(2, 6, 3, padding=1),
        middle=wrap(nn.Sequential(**{"": block(6, 0.3), "relu": nn.ReLU()})),
        head=wrap(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))),
        dense=nn.DenseBlock(one=wrap(nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)))),
        last=wrap(nn.Concat(block(10, 0.5), nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.ReLU()))),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        fc=nn.Linear(20, 3),
    )
    nn.init.initialize(made, 5)
    for _, layer in made.layers():  # seeds must not depend on how many layers stand before
        if isinstance(layer, nn.Dropout):
            layer.seed = 11
    return made


def same_weights(made, other):
    made.load_state_dict({name: array.copy() for name, array in other.state_dict().items()})
    return made


def steps(made, images, labels, count=3):
    """All that training leaves, after some steps: dx, gradients, state, generators, as bytes."""
    loss, left = nn.AuxiliaryLoss(), []
    optimizer = optim.SGD(made.parameters(), lr=0.05, momentum=0.9)
    for _ in range(count):
        optimizer.zero_grad()
        left.append(loss.forward(made.forward(images), labels))
        left.append(made.backward(loss.backward()).tobytes())
        left += [parameter.grad.tobytes() for parameter in made.parameters()]
        optimizer.step()
    left += [array.tobytes() for array in made.state_dict().values()]
    return left + [layer.masks for _, layer in made.layers() if isinstance(layer, nn.Dropout)]


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_bit_is_plain_trainings(device, dtype):
    images, labels = RNG.standard_normal((4, 2, 9, 7)).astype(dtype), np.array([0, 2, 1, 1])
    plain = network(False).to(device, dtype)
    saving = same_weights(network(True).to(device, dtype), plain)
    assert list(plain.state_dict()) == list(saving.state_dict())
    assert steps(plain, images, labels) == steps(saving, images, labels)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "googlenet", "densenet121"])
def test_models_of_blocks(name):
    stem = {"stem": "small"} if name != "googlenet" else {"aux": True}
    images, labels = RNG.standard_normal((2, 3, 32, 32)).astype(np.float32), np.array([0, 2])
    plain, saving = (
        models.MODELS[name](num_classes=4, recompute=flag, **stem) for flag in (False, True)
    )
    assert plain.spec == saving.spec
    assert list(plain.state_dict()) == list(saving.state_dict())
    same_weights(saving, plain)
    assert steps(plain, images, labels, 1) == steps(saving, images, labels, 1)


def peak(made, images, labels):
    loss = nn.CrossEntropyLoss()
    tracemalloc.start()
    try:
        for _ in range(2):
            made.zero_grad()
            loss.forward(made.forward(images), labels)
            tracemalloc.reset_peak()
            made.backward(loss.backward(), need_dx=False)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_it_takes_less_memory():
    images, labels = RNG.standard_normal((4, 8, 32, 32)).astype(np.float32), np.arange(4)
    tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    plain = nn.Sequential(*(block(8, 0.0) for _ in range(8)), *tail)
    saving = nn.Sequential(*(nn.Recompute(block(8, 0.0)) for _ in range(8)), *tail)
    assert peak(saving, images, labels) < 0.6 * peak(plain, images, labels)


def test_modes_are_those_of_the_forward_pass():
    """Batch norm in evaluation mode at the forward pass stays so, whatever is set in between."""
    images = RNG.standard_normal((3, 4, 5, 5))
    results = []
    for wrap in (lambda layer: layer, nn.Recompute):
        norm = nn.BatchNorm2d(4).to(dtype=np.float64).eval()
        layer = wrap(norm)
        layer.forward(images)
        norm.train()
        results.append(layer.backward(images).tobytes())
        assert norm.training
        assert norm.num_batches_tracked.data == 0
    assert results[0] == results[1]


def test_each_forward_serves_one_backward():
    layer = nn.Recompute(nn.ReLU())
    layer.forward(np.ones((2, 2), np.float32))
    layer.backward(np.ones((2, 2), np.float32))
    with pytest.raises(RuntimeError, match=r"Recompute\.backward: call forward first"):
        layer.backward(np.ones((2, 2), np.float32))
    layer.infer(np.ones((2, 2), np.float32))
    with pytest.raises(RuntimeError, match=r"Recompute\.backward: call forward first"):
        layer.backward(np.ones((2, 2), np.float32))


def test_errors():
    with pytest.raises(TypeError, match="Recompute: expected a Layer, got int"):
        nn.Recompute(3)
    with pytest.raises(ValueError, match="vgg16: has no blocks to recompute"):
        models.vgg16(recompute=True, seed=None)
