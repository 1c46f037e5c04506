"""Losses that the host computes further: where that is linear, their steps are recorded."""

import numpy as np
import pytest
from simulated import DEVICE
from test_recorded import BATCH, REPLAYED, Listener, Net, counted, fit, images, state, trainer

from gpuconv import data, optim, to_device, train
from gpuconv.nn.functional import cross_entropy, hinge

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures(counted.__name__)]


def scaled(scores, labels):
    return 0.5 * cross_entropy(scores, labels)


def added(scores, labels):
    return (cross_entropy(scores, labels) + np.float32(0.3) * hinge(scores, labels) - 0.1) / 1.3


def detached(scores, labels):
    first, second = cross_entropy(scores, labels, 0.1), hinge(scores, labels, 2.0)
    parts = [first, 1 - second / 3, second.detach() * 2.5, -first * 0.25, first - second]
    return (sum(parts) / len(parts)).mean()


def twice(scores, labels):
    """The same value from two losses."""
    return cross_entropy(scores, labels) - 0.5 * cross_entropy(scores, labels)


def squared(scores, labels):
    return cross_entropy(scores, labels) ** 2


def product(scores, labels):
    return cross_entropy(scores, labels) * hinge(scores, labels)


def relative(scores, labels):
    loss = cross_entropy(scores, labels)
    return 2 * loss / loss.detach()


def larger(scores, labels):
    losses = [cross_entropy(scores, labels), hinge(scores, labels)]
    return max(losses, key=lambda loss: loss.item())


def unused(scores, labels):
    hinge(scores, labels)
    return cross_entropy(scores, labels)


FURTHER = "the loss is computed further by the host"
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        pytest.param(scaled, "", marks=slow),
        pytest.param(added, "", marks=slow),
        (detached, ""),
        pytest.param(twice, "", marks=slow),
        (squared, FURTHER),
        pytest.param(product, FURTHER, marks=slow),
        pytest.param(relative, FURTHER, marks=slow),
        pytest.param(larger, "the host reads a tensor's value", marks=slow),
        pytest.param(unused, "it computes a loss that is no part of its own", marks=slow),
    ],
)
def test_steps_of_losses_that_the_host_computes_further(loss, why):
    said = Listener()
    *found, replayed = fit(trainer(True, None, Net(), False, loss, callbacks=[said]))
    *expected, none = fit(trainer(False, None, Net(), False, loss))
    assert found == expected
    assert (replayed > 4, none) == (not why, 0)
    assert said.said[1:] == ([f"the step is not recorded: {why}"] if why else [])


def by_hand(replayed):
    """What ten steps return, and the weights."""
    model = Net().to(DEVICE)
    optimizer = optim.SGD(model.parameters(), 0.05)

    def step(x, labels):
        optimizer.zero_grad()
        scores = model(x)
        parts = cross_entropy(scores, labels), hinge(scores, labels)
        loss = parts[0] + 0.25 * parts[1]
        loss.backward()
        optimizer.step()
        return loss, parts[1] / 2, scores

    run = train.recorded(step, model, optimizer) if replayed else step
    found = []
    for x, labels in data.Loader(images(40), BATCH, seed=1):
        loss, half, scores = run(to_device(x, DEVICE), to_device(labels, DEVICE))
        found.append((loss, half, scores.numpy().tobytes()))
    numbers = [(loss.item(), half.item(), scores) for loss, half, scores in found]
    return numbers, {name: a.tobytes() for name, a in model.state_dict().items()}


def test_a_step_of_ones_own_returns_what_it_computed_of_its_losses():
    before = sum(REPLAYED)
    assert by_hand(True) == by_hand(False)
    assert sum(REPLAYED) - before == 10 - 3


def test_a_part_that_is_not_finite_stops_the_run_as_without_a_record():
    """Until then, with a rate of 0, each batch has the loss of the one before."""
    found = []
    for graph in (True, False):
        pixels, model = np.ones((40, 1, 8, 8), np.float32), Net()
        pixels[29, 0] = 3e38 * np.sign(model.linear.weight.data[0]).reshape(8, 8)
        source = data.Loader(data.Dataset(pixels, np.zeros(40, int)), BATCH, shuffle=False)
        run = trainer(graph, lambda p: optim.SGD(p, 0.0), model, False, added, schedule=None)
        with pytest.raises(FloatingPointError) as error:
            run.fit(source, epochs=1)
        found.append((str(error.value), state(run)))
    assert found[0] == found[1]
    assert "'batch': 7" in found[0][1][2]
