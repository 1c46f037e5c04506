"""`train.recorded`: steps of one's own have the bits of ordinary ones, recorded or not."""

import gc
import warnings

import numpy as np
import pytest
from simulated import DEVICE
from test_recorded import BATCH, REPLAYED, Net, counted, images, network

from gpuconv import autograd, data, nn, optim, to_device, to_numpy, train
from gpuconv.nn.functional import cross_entropy

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures(counted.__name__)]
WEIGHT = 1.0


class Parts:
    """A network, its optimiser, and steps of it."""

    def __init__(self, model=None, make=lambda p: optim.SGD(p, 0.05, 0.9)):
        self.model = (model or network()).to(DEVICE)
        self.optimizer = make(self.model.parameters())
        self.criterion, self.average = nn.CrossEntropyLoss(), optim.EMA(self.model, 0.8)
        self.scaler = optim.LossScaler(DEVICE, 2.0**40, 3)
        self.rng, self.calls, self.weight = np.random.default_rng(0), 0, 1.0

    def step(self, x, labels, weight=1.0):
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(x), labels) * (weight * self.own_weight())
        loss.backward()
        self.optimizer.step()
        return loss

    def own_weight(self):
        return self.weight

    def weighted(self, x, labels):
        return self.step(x, labels, WEIGHT)

    def part(self, x, labels):
        """Of a step of several batches."""
        loss = cross_entropy(self.model(x), labels) / 4
        loss.backward()
        return loss

    def averaged(self, x, labels):
        loss = self.step(x, labels)
        self.average.update()
        return loss

    def halved(self, x, labels):
        self.optimizer.zero_grad()
        with autograd.precision("fp16", self.scaler.factor):
            scores = self.model(x)
        loss = cross_entropy(scores, labels)
        loss.backward()
        self.scaler.unscale(self.optimizer.params)
        self.optimizer.step(self.scaler)
        return loss

    def annealed(self, x, labels):
        self.optimizer.lr *= 0.9
        return self.step(x, labels)

    def drawn(self, x, labels):
        return self.step(x, labels, self.rng.choice([1.0, 1.0, 0.5]))

    def counting(self, x, labels):
        self.calls += 1
        return self.step(x, labels, 1 if self.calls < 9 else 0.1)

    def packed(self, batch):
        return self.step(batch["x"], *batch["more"])

    def failing(self, x, labels):
        loss = self.step(x, labels)
        if self.weight == 2:
            raise OSError("the disk is full")
        return loss


def plain(parts, run, i, x, labels):
    return run(x, labels)


def changing(parts, run, i, x, labels):
    """What a loop changes between steps."""
    global WEIGHT
    WEIGHT = 1.0 if i < 6 else 0.25
    parts.weight = 1.0 if i < 12 else 3.0
    parts.criterion.label_smoothing = 0.0 if i < 17 else 0.2
    return run(x, labels)


def adding_up(parts, run, i, x, labels):
    """Four batches a step, then three; gradients may come from elsewhere."""
    loss = run(x, labels)
    if i == 13:
        parts.model[0].weight.grad = to_device(np.ones((4, 1, 3, 3), np.float32), DEVICE)
    if i % 4 == 3 if i < 16 else i % 3 == 0:
        parts.optimizer.step()
        parts.optimizer.zero_grad()
    return loss


def averaging(parts, run, i, x, labels):
    if i == 12:
        state = parts.average.state_dict().items()
        parts.average.load_state_dict({n: (a * 0.5).astype(a.dtype) for n, a in state})
    parts.average.decay = 0.8 if i < 17 else 0.5
    return run(x, labels)


def scaling(parts, run, i, x, labels):
    counts = list(parts.optimizer.steps)
    loss = run(x, labels)
    float(loss)
    parts.scaler.settle(parts.optimizer, counts)
    return loss


def failing(parts, run, i, x, labels):
    parts.weight = 2.0 if i in (1, 2, 9) else 1.0
    try:
        return run(x, labels)
    except OSError as error:
        return error


def named(parts, run, i, x, labels):
    return run(labels=labels, weight=0.5, x=x)


def tensors(parts, run, i, x, labels):
    return run(nn.Tensor(x), nn.Tensor(labels))


def nested(parts, run, i, x, labels):
    return run({"x": x, "more": [labels, 0.5]})


OWN = "changes its own attributes or global variables as it runs"
CASES = {
    "changes between steps": (Parts.weighted, changing, 9, ""),
    "gradients add up": (Parts.part, adding_up, 12, ""),
    "names": (Parts.step, named, 18, ""),
    "tensors": (Parts.step, tensors, 18, ""),
    "a dict": (Parts.packed, nested, 18, ""),
    "an average": (Parts.averaged, averaging, 9, ""),
    "fp16": (Parts.halved, scaling, 9, ""),
    "an error": (Parts.failing, failing, 9, ""),
    "a rate of its own": (Parts.annealed, plain, 0, "it changes a setting of the optimiser"),
    "random numbers": (Parts.drawn, plain, 0, f"drawn {OWN}"),
    "a count": (Parts.counting, plain, 0, f"counting {OWN}"),
}
QUICK = ("changes between steps", "gradients add up", "a dict", "a rate of its own", "a count")


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CASES]
)
def test_whatever_a_loop_does(case):
    step, loop, least, why = CASES[case]
    batches = [
        tuple(to_device(a, DEVICE) for a in batch)
        for batch in data.Loader(images(24 * BATCH), BATCH, seed=1)
    ]

    def trained(replayed):
        parts, found = Parts(), []
        bound = step.__get__(parts)
        run = train.recorded(bound, parts.model, parts.optimizer) if replayed else bound
        before = sum(REPLAYED)
        for i, batch in enumerate(batches):
            found.append(loop(parts, run, i, *batch))
        grads = [
            p.grad if p.grad is None else to_numpy(p.grad).tobytes() for p in parts.optimizer.params
        ]
        arrays = {**parts.model.state_dict(), **parts.average.state_dict()}
        numbers = [str(f) if isinstance(f, OSError) else f.item() for f in found]
        return (numbers, grads, {n: a.tobytes() for n, a in arrays.items()}), sum(REPLAYED) - before

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found, replayed = trained(True)
    assert found == trained(False)[0]
    assert replayed >= least
    assert bool(replayed) == (not why)
    assert [str(each.message).partition(": ")[2][: len(why)] for each in said] == [why] * bool(why)
    assert all(each.filename == __file__ for each in said)


def test_a_number_that_is_never_the_same_is_said_and_takes_no_memory():
    parts = Parts(Net())
    run = train.recorded(parts.step, parts.model, parts.optimizer)
    x, labels = (to_device(a, DEVICE) for a in next(iter(data.Loader(images(), BATCH))))
    for i in range(31):
        run(x, labels, 1 + i / 100)
    with pytest.warns(UserWarning, match="what it is given or reads is never the same again"):
        run(x, labels, 2.0)
    gc.collect()
    held = [each for each in gc.get_objects() if type(each) is type(x) and each.shape == x.shape]
    assert len(held) < 10


def test_an_argument_that_requires_a_gradient_runs_as_it_is():
    parts = Parts(Net())
    run = train.recorded(parts.part, parts.model, parts.optimizer)
    x = nn.Tensor(to_device(np.ones((4, 1, 8, 8), np.float32), DEVICE), requires_grad=True)
    for _ in range(4):
        x.grad = None
        run(x, to_device(np.arange(4) % 3, DEVICE))
        assert x.grad is not None
