"""Recomputation gives the bits of plain training, and takes less memory."""

import tracemalloc

import numpy as np
import pytest
from passes import training_pass

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


class Network(nn.Module):
    """Blocks with batch norm and dropout, one of them used by a loss of its own."""

    def __init__(self, recompute):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.middle = nn.Sequential(block(6, 0.3), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
        self.dense = nn.DenseBlock(4, nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)))
        self.last = nn.Concat(block(10, 0.5), nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.ReLU()))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(20, 3)
        for part in (self.middle, self.head, self.dense[0], self.last):
            part.recompute = recompute
        nn.init.initialize(self, 5)

    def forward(self, x):
        x = self.middle(self.first(x))
        return self.fc(self.pool(self.last(self.dense(x))).flatten(1)), self.head(x)


def same_weights(made, other):
    made.load_state_dict({name: array.copy() for name, array in other.state_dict().items()})
    return made


def steps(made, images, labels, count=3):
    """All that training leaves, after some steps: dx, gradients, state, generators, as bytes."""
    loss, left = nn.AuxiliaryLoss(), []
    optimizer = optim.SGD(made.parameters(), lr=0.05, momentum=0.9)
    for _ in range(count):
        optimizer.zero_grad()
        value, _, dx = training_pass(made, loss, images, labels)
        left += [value, dx.tobytes()]
        left += [parameter.grad.tobytes() for parameter in made.parameters()]
        optimizer.step()
    left += [array.tobytes() for array in made.state_dict().values()]
    return left + [layer.masks for layer in made.modules() if isinstance(layer, nn.Dropout)]


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_bit_is_plain_trainings(device, dtype):
    images, labels = RNG.standard_normal((4, 2, 9, 7)).astype(dtype), np.array([0, 2, 1, 1])
    plain = Network(False).to(device, dtype)
    saving = same_weights(Network(True).to(device, dtype), plain)
    assert list(plain.state_dict()) == list(saving.state_dict())
    assert steps(plain, images, labels) == steps(saving, images, labels)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "googlenet", "densenet121", pytest.param("resnet50", marks=pytest.mark.slow)],
)
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
            value = loss(made(images), labels)
            tracemalloc.reset_peak()
            value.backward()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_it_takes_less_memory():
    images, labels = RNG.standard_normal((4, 8, 32, 32)).astype(np.float32), np.arange(4)
    tail = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    plain = nn.Sequential(*(block(8, 0.0) for _ in range(8)), *tail)
    saving = nn.Sequential(*(block(8, 0.0) for _ in range(8)), *tail)
    assert nn.recompute_blocks(saving) == 8
    assert peak(saving, images, labels) < 0.6 * peak(plain, images, labels)


def test_errors():
    with pytest.raises(ValueError, match="vgg16: has no blocks to recompute"):
        models.vgg16(recompute=True, seed=None)
