"""What the article's LeNet must learn. The full floors take minutes: they are slow tests."""

import pytest

from gpuconv import data, models, optim
from gpuconv.train import Trainer

SEEDS = (0, 1, 2)


def train(name, loss, make_optimizer, batch, epochs, seed, images=None):
    """The accuracy on the test images after each epoch."""
    sets = [data.load(name, split) for split in ("train", "test")]
    learn, test = [each.subset(slice(0, images)) for each in sets] if images else sets
    model = models.lenet(seed=seed)
    trainer = Trainer(model, loss, make_optimizer(model.parameters()), seed=seed, progress=False)
    pixels = learn.images / 255
    scale = {"size": 32, "mean": pixels.mean(), "std": pixels.std()}
    loader = data.Loader(learn, batch, seed=seed, **scale)
    history = trainer.fit(loader, data.Loader(test, 500, shuffle=False, **scale), epochs)
    return [record["validation_accuracy"] for record in history]


def article(parameters):
    return optim.SGD(parameters, lr=0.1)


def adam(parameters):
    return optim.Adam(parameters, lr=1e-3)


def test_a_tenth_of_mnist_is_enough_to_read_most_digits():
    assert train("mnist", "cross_entropy", adam, 32, 2, 0, 6000)[-1] > 0.90
    assert train("mnist", "article", article, 16, 2, 0, 6000)[-1] > 0.80


@pytest.mark.slow
def test_the_articles_own_recipe():
    """At this constant rate rounding alone moves an epoch: 60 runs from weights changed by a
    millionth, half of them before the CPU's loops were last changed, gave 95.8 to 98.2% after the
    first, in the mean 97.4 and 97.5%, and at least 98.3% after the better one of the last two.
    """
    firsts = []
    for seed in SEEDS:
        first, *later = train("mnist", "article", article, 16, 3, seed)
        firsts.append(first)
        assert max(later) >= 0.980
    assert sum(firsts) / len(firsts) >= 0.967
    assert min(firsts) >= 0.950


@pytest.mark.slow
def test_adam_and_cross_entropy():
    """At a constant rate the last epoch swings by a few tenths of a percent: seeds 0 to 2 end at
    98.87, 98.76 and 98.73%, PyTorch's at 99.04, 98.83 and 98.58%.
    """
    found = sorted(train("mnist", "cross_entropy", adam, 64, 5, seed)[-1] for seed in SEEDS)
    assert found[1] >= 0.986
    assert found[0] >= 0.983


@pytest.mark.slow
def test_fashion_mnist():
    try:
        data.load("fashion-mnist", "train")
    except OSError as error:
        pytest.skip(f"Fashion-MNIST is not on this machine: {error}")
    assert train("fashion-mnist", "cross_entropy", adam, 64, 5, 0)[-1] >= 0.88
