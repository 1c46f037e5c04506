"""Every model drives the loss of 32 images near zero on `cpu`: its gradients lead somewhere."""

import numpy as np
import pytest
from passes import scores_of

from gpuconv import data, models, nn, optim

GRAY = ("lenet", "lenet5", "harley_lenet")
# Sides of the images: the smallest that the stems and the heads' pools admit, or a little above.
SIZES = {"alexnet": 67, "alexnet_2012": 67, "zfnet": 64, "googlenet_paper": 80}
# Deep networks without batch norm set out slowly, whatever the rate: weights of 0.01 (AlexNet and
# ZF Net), which suit the 6x6 maps of a whole photograph, make the signal of a single pixel fade.
PLAIN = {"alexnet": 100, "alexnet_2012": 250, "zfnet": 250, "googlenet_paper": 150}
VGG = {"vgg16": 120, "vgg19": 150}


def plan(name):
    """(highest rate, steps): Adam's usual 1e-3, more for small networks, less for plain ones."""
    if name in GRAY:
        return 3e-3, 60
    if name in PLAIN:
        return 3e-4, PLAIN[name]
    if name in VGG:  # at 3e-4 VGG-19 ended just short
        return 1.5e-4, VGG[name]
    return (3e-4, 40) if name == "vgg16_bn" else (1e-3, 30)


def digits(size, channels):
    """32 of MNIST's test images, enlarged to `size` and given a colour each, and their labels."""
    mnist = data.load("mnist", "test").subset(slice(0, 32))
    places = np.arange(size) * 28 // size
    x = mnist.images[:, :, places][..., places].astype(np.float32) / 127.5 - 1
    colours = np.random.default_rng(0).random((32, channels, 1, 1), np.float32) + 0.5
    return (x * colours if channels > 1 else x), mnist.labels


def build(name):
    """The model for ten classes, and what stands in the way of learning by heart taken off.

    Dropout, which is there to prevent it, is off; batch norm's running statistics follow three
    times as fast as usual, so that a few dozen steps are enough for them to arrive.
    """
    channels, size = (1, 32) if name in GRAY else (3, SIZES.get(name, 32))
    arguments = {} if name in GRAY else {"input_size": size}
    network = models.MODELS[name](num_classes=10, in_channels=channels, seed=0, **arguments)
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.3
    return network, *digits(size, channels)


def cases():
    for name in sorted(models.MODELS):
        yield pytest.param(name, marks=[] if name in GRAY else [pytest.mark.slow])


@pytest.mark.parametrize("name", list(cases()))
def test_overfits_32_images(name):
    network, x, labels = build(name)
    rate, steps = plan(name)
    schedule, loss = optim.OneCycleLR(rate, steps), nn.CrossEntropyLoss()
    optimizer = optim.Adam(network.parameters())
    for step in range(steps):
        optimizer.lr = schedule(step)
        optimizer.zero_grad()
        loss(network(x), labels).backward()
        optimizer.step()
    # harley_lenet's scores end in 1.7159 tanh: its loss is at least log(1 + 9 exp(-3.43)), 0.26
    goal = 0.3 if name == "harley_lenet" else 0.02
    assert float(loss(network(x), labels)) < goal
    np.testing.assert_array_equal(scores_of(network.eval(), x).argmax(axis=1), labels)
