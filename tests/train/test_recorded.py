"""Recorded steps: whatever is recorded and replayed has the bits of ordinary steps, on sim."""

import itertools
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from simulated import DEVICE

from gpuconv import checkpoint, data, nn, optim, to_device, to_numpy, train
from gpuconv.cuda import replay
from gpuconv.cuda.runtime import runtime
from gpuconv.nn import functional
from gpuconv.train import records

pytestmark = pytest.mark.filterwarnings("error")
EPOCHS, BATCH = 4, 4
REPLAYED: list[int] = []  # steps, by each call


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    run, start = replay.Record.run, replay.Record.start

    def counted_run(self, *arguments):
        outcome = run(self, *arguments)
        REPLAYED.append(len(outcome.losses))
        return outcome

    def counted_start(self):
        REPLAYED.append(int(any(self.recorder.used)))  # which a forward pass alone has not
        start(self)

    monkeypatch.setattr(replay.Record, "run", counted_run)
    monkeypatch.setattr(replay.Record, "start", counted_start)


def images(count=14, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return data.Dataset(pixels, np.arange(count) % 3)


def network(momentum=0.1, dropout=0.25):
    rng = np.random.default_rng(7)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(dropout), nn.Linear(36, 3),
    )  # fmt: skip
    return model.apply(lambda module: module.reset_parameters(rng))


class Listener(train.Callback):
    """Hears messages, not batches."""

    def __init__(self):
        self.said = []

    def on_message(self, text):
        self.said.append(text)


def trainer(graph=True, make=None, model=None, average=True, loss="cross_entropy", **more):
    model = (network() if model is None else model).to(DEVICE)
    optimizer = (make or (lambda p: optim.SGD(p, 0.05, 0.9)))(model.parameters())
    given = {"clip_norm": 0.7, "schedule": optim.OneCycleLR(0.05, EPOCHS * 4), **more}
    ema = optim.EMA(model, 0.8) if average else None
    return train.Trainer(
        model, loss, optimizer, average=ema, progress=False, graph=graph, **given
    )  # fmt: skip


def loaders(seed=3):
    augment = data.augment.Compose([data.augment.Shift(1), data.augment.HorizontalFlip()])
    training = data.Loader(images(), BATCH, seed=seed, augment=augment)
    return training, data.Loader(images(10, 1), BATCH, shuffle=False)


def state(run):
    """All that a run remembers, as bytes and numbers."""
    optimizer = run.optimizer.state_dict()
    arrays = {**run.model.state_dict(), **optimizer.pop("arrays")}
    if run.average is not None:
        arrays |= {f"average {name}": a for name, a in run.average.state_dict().items()}
    position = {**vars(run.state), "seconds": 0}
    rng = [m.rng_state for m in run.model.modules() if isinstance(m, nn.Dropout)]
    return {name: a.tobytes() for name, a in arrays.items()}, str(optimizer), str(position), rng


def history(run):
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in r.items() if k not in timed} for r in run.history.records]


def fit(run, epochs=EPOCHS, **more):
    """The run's state and history, and how many steps were replayed."""
    before = sum(REPLAYED)
    run.fit(*loaders(), epochs=epochs, **more)
    return state(run), history(run), sum(REPLAYED) - before


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 0.05, weight_decay=0.01),
    "momentum": lambda p: optim.SGD(p, 0.05, 0.9, dampening=0.3),
    "nesterov": lambda p: optim.SGD(p, 0.05, 0.9, nesterov=True),
    "adam": lambda p: optim.Adam(p, 0.01, weight_decay=0.02),
    "amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, 0.01),
    "groups": lambda p: optim.SGD([{"params": p[:3], "lr": 0.01}, {"params": p[3:]}], 0.05, 0.9),
}


SLOW = {name: pytest.mark.slow for name in OPTIMIZERS if name not in ("nesterov", "amsgrad")}


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW.get(n, ())) for n in OPTIMIZERS])
def test_replayed_steps_have_the_bits_of_ordinary_ones(name):
    """With dropout, batch norm, augmentation, schedules of rate and momentum, clipping, an average,
    validation, a smaller last batch.
    """
    cycled = optim.OneCycleLR(0.05, EPOCHS * 4, cycle_momentum=name not in ("sgd", "nesterov"))
    *expected, none = fit(trainer(False, OPTIMIZERS[name], schedule=cycled))
    *found, replayed = fit(trainer(True, OPTIMIZERS[name], schedule=cycled))
    assert found == expected
    assert none == 0
    # Of 16 steps all but two of each size of batch, and the one that begins the average.
    assert replayed == 16 - 5


class Plain(data.Loader):
    """A loader that the device does not know: its batches are copied."""


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("place", ["resident", "streamed", "prepared by the host"])
def test_batches_made_on_the_device_train_as_the_loaders_own(place, graph, monkeypatch):
    if place == "streamed":
        monkeypatch.setattr(type(runtime(DEVICE)), "free_memory", lambda self: 0)
    augment = data.Affine(9) if place == "prepared by the host" else data.Shift(1)
    found = []
    for kind, with_graph in ((Plain, False), (data.Loader, graph)):
        run = trainer(with_graph)
        run.callbacks.append(Listener())
        run.fit(
            kind(images(), BATCH, seed=4, augment=augment),
            kind(images(10, 1), BATCH, shuffle=False),
            epochs=EPOCHS,
        )
        found.append((state(run), history(run)))
    assert found[0] == found[1]
    (said,) = run.callbacks[-1].said
    on = runtime(DEVICE).name
    starts = {"resident": "14 images are on", "streamed": "batches are copied to"}
    assert said.startswith(f"{starts.get(place, 'batches are copied to')} {on}")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["article", "hinge", nn.CrossEntropyLoss(0.1)])
def test_other_losses_and_a_mean_of_all_batches(loss):
    def run(graph):
        return fit(trainer(graph, model=network(momentum=None), loss=loss, clip_norm=None))[:2]

    assert run(True) == run(False)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.main = nn.Linear(64, 8, rng=1), nn.Linear(8, 3, rng=2)
        self.side, self.other = nn.Linear(8, 3, rng=3), nn.Linear(8, 3, rng=4)

    def forward(self, x):
        y = functional.relu(self.body(functional.flatten(x, 1)))
        return (self.main(y), self.side(y), self.other(y)) if self.training else self.main(y)


def test_auxiliary_heads():
    def run(graph):
        return fit(trainer(graph, model=TwoHeads(), loss=nn.AuxiliaryLoss(), average=False))

    found, expected = run(True), run(False)
    assert found[:2] == expected[:2]
    assert found[2] > 0


def test_a_callback_that_hears_every_batch_sees_the_state_of_an_ordinary_run():
    """And may change the rate, and freeze a layer."""

    class Each(train.Callback):
        def __init__(self):
            self.seen = []

        def on_batch_end(self, run):
            self.seen.append(state(run))
            if run.state.step == 5:
                run.set_lr(0.003)
            if run.state.step == 9:
                run.model[0].requires_grad_(False)

    found = []
    for graph in (True, False):
        listener = Each()
        fit(trainer(graph, callbacks=[listener]))
        found.append(listener.seen)
    assert len(found[0]) == 16
    assert found[0] == found[1]


def test_batches_are_told_in_groups_where_nobody_wants_each():
    class Some(train.Callback):
        each_batch = False

        def __init__(self):
            self.at = []

        def on_batch_end(self, run):
            self.at.append(run.state.batch)

    cosine = optim.CosineLR(0.05, 100)
    run = trainer(log_batches=20, callbacks=[listener := Some()], schedule=cosine)
    training = data.Loader(images(400), BATCH, seed=1)
    run.fit(training, epochs=1)
    assert len(listener.at) < 60
    assert {20, 40, 60, 80, 100} <= set(listener.at)
    assert [r["batch"] for r in run.history.records if "batch" in r] == [20, 40, 60, 80, 100]


def test_what_a_callback_changes_between_groups_of_batches_counts_from_there_on():
    """Also where the host's part of the next group was done before: rate, settings, frozen layers,
    random numbers, weights.
    """

    class Change(train.Callback):
        each_batch = False

        def on_batch_end(self, run):
            weight = run.model[6].weight
            changes = {
                30: lambda: run.set_lr(0.004),
                50: lambda: run.optimizer.param_groups[0].update(weight_decay=0.1),
                60: lambda: setattr(run.model[5], "rng_state", [5, 0]),
                70: lambda: setattr(run.model[5], "p", 0.4),
                80: lambda: run.model[0].requires_grad_(False),
                90: lambda: run.model.load_state_dict(
                    {"6.weight": weight.numpy() * np.float32(0.5)}, strict=False
                ),
            }
            changes.get(run.state.batch, lambda: None)()

    def trained(graph):
        run = trainer(graph, log_batches=10, callbacks=[Change()], schedule=None)
        run.fit(data.Loader(images(440), BATCH, seed=1), epochs=1)
        return state(run), history(run)

    assert trained(True) == trained(False)


def test_a_loss_that_is_not_finite():
    """The error, weights, running statistics, average, position and random numbers of an ordinary
    run: the rate explodes in the third epoch.
    """
    found = []
    for graph in (True, False):
        run = trainer(graph, schedule=optim.StepLR(0.05, 9, 1e20), clip_norm=None)
        with pytest.raises(FloatingPointError, match="the loss is not finite") as error:
            fit(run)
        found.append((str(error.value), state(run), history(run)))
    assert found[0] == found[1]


def test_a_norm_that_is_not_finite():
    """Of the eighth batch's gradients, whose loss is finite."""
    pixels = np.random.default_rng(2).random((60, 1, 8, 8)).astype(np.float32)
    pixels[30] = 1e5
    source = data.Dataset(pixels, np.arange(60) % 3)
    found = []
    for graph in (True, False):
        run = trainer(graph, model=TwoHeads(), loss=nn.AuxiliaryLoss(weight=1e38))
        with pytest.raises(FloatingPointError, match="batch 8: the gradients' norm is") as error:
            run.fit(data.Loader(source, BATCH, shuffle=False), epochs=1)
        found.append((str(error.value), state(run)))
    assert found[0] == found[1]


def test_a_label_that_is_no_class():
    found = []
    labels = np.arange(40) % 3
    labels[30] = 5
    for graph in (True, False):
        run = trainer(graph)
        source = data.Dataset(images(40).images, labels)
        with pytest.raises(ValueError, match="label 5 is out of range") as error:
            run.fit(data.Loader(source, BATCH, shuffle=False), epochs=1)
        found.append((str(error.value), state(run)))
    assert found[0] == found[1]


class Flaky(nn.Module):
    """Three forwards in turn, in training."""

    calls = itertools.count(1)

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3, rng=1)

    def forward(self, x):
        y = self.linear(functional.flatten(x, 1))
        turn = next(self.calls) % 3 if self.training else 0
        return (nn.Identity(), functional.relu, functional.tanh)[turn](y)


class Looking(nn.Module):
    """Reads its own output."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3, rng=1)

    def forward(self, x):
        y = self.linear(functional.flatten(x, 1))
        y.numpy()
        return y


@pytest.mark.parametrize(
    ("model", "why"),
    [(Flaky, "it is not the same each time"), (Looking, "an array is copied to the host")],
)
def test_what_cannot_be_recorded_is_named_once_and_trained_as_ever(model, why):
    Flaky.calls = itertools.count(1)
    run = trainer(model=model(), average=False, callbacks=[listener := Listener()])
    found = fit(run)
    Flaky.calls = itertools.count(1)
    expected = fit(trainer(False, model=model(), average=False))
    assert found[:2] == expected[:2]
    assert found[2] == 0
    assert listener.said[1:] == [f"the step is not recorded: {why}"]


def test_a_hook_is_called_for_every_batch():
    calls, run = [], trainer(average=False)
    run.model[0].register_forward_hook(lambda *_: calls.append(1))
    assert fit(run, epochs=2)[2] == 0
    assert len(calls) >= 8


def by_hand(device, replayed, arguments=lambda x, labels: (x, labels)):
    """Losses, scores and weights of twelve hand-written steps."""
    model, criterion = network().to(device), nn.CrossEntropyLoss()
    optimizer, average = optim.Adam(model.parameters(), 0.01), optim.EMA(model, 0.9)

    def step(x, labels, factor):
        optimizer.zero_grad()
        scores = model(x)
        loss = criterion(scores, labels)
        loss.backward()
        optim.clip_grad_norm(model.parameters(), 0.5 * factor)
        optimizer.step()
        average.update()
        return loss, scores

    run = train.recorded(step, model, optimizer) if replayed else step
    found = []
    for i, (x, labels) in enumerate(data.Loader(images(44), BATCH, seed=1)):
        optimizer.lr = 0.01 / (1 + i)
        there = to_device(x, device), to_device(labels, device)
        given = arguments(x, labels) if replayed else there
        loss, scores = run(*given, 1)
        gradient = to_numpy(model[6].weight.grad)
        found.append((loss, scores.numpy().tobytes(), gradient.tobytes()))
    found = [(loss.item(), *rest) for loss, *rest in found]  # read when all is done
    arrays = {**model.state_dict(), **average.state_dict()}
    return found, {name: a.tobytes() for name, a in arrays.items()}


@pytest.mark.parametrize(
    "way", [lambda a: a, lambda a: to_device(a, DEVICE)], ids=["host", "there"]
)
def test_a_step_of_ones_own_is_recorded(way):
    before = sum(REPLAYED)
    expected = by_hand(DEVICE, False)
    assert by_hand(DEVICE, True, lambda x, labels: (way(x), way(labels))) == expected
    assert sum(REPLAYED) - before == 11 - 3
    assert by_hand("cpu", True) == by_hand("cpu", False)


def test_a_step_of_ones_own_that_cannot_be_recorded():
    model = nn.Linear(64, 3, rng=1).to(DEVICE)
    run = train.recorded(lambda x: model(x.reshape(4, 64)).numpy(), model)
    x = images(4).images / np.float32(255)
    with pytest.warns(
        UserWarning, match="the step is not recorded: an array is copied to the host"
    ):
        found = [run(x) for _ in range(6)]
    assert len({y.tobytes() for y in found}) == 1
    with pytest.raises(TypeError, match="give the modules and optimisers"):
        train.recorded(lambda x: x)


def test_at_most_four_records_are_kept(monkeypatch):
    made = []
    monkeypatch.setattr(records, "Record", lambda *_: made.append(1) or FakeRecord())
    kept = records.Records(runtime(DEVICE), print)
    for kind in (*"abcde", *"abcde"):
        kept.run(kind, lambda recorder: None)
    assert len(made) == 5
    assert [kept.find(kind) is not None for kind in "abcde"] == [False, True, True, True, True]


class FakeRecord:
    note = ""


@pytest.mark.slow
def test_validation_and_freed_memory_between_replays_change_nothing():
    """Evaluations hold their results, arrays come and go, and predictions have other shapes."""

    class Meddle(train.Callback):
        def __init__(self, meddles):
            self.meddles, self.held = meddles, []

        def on_batch_end(self, run):
            if self.meddles:
                self.held.append(run.predict(images(3 + run.state.step).images / np.float32(255)))
                self.held.append(run.evaluate(loaders()[1]))
                junk = [runtime(DEVICE).asarray(np.full(n, np.nan, "f4")) for n in (9, 999, 4000)]
                del junk, self.held[: len(self.held) - 3]
                if DEVICE == "cuda":
                    runtime(DEVICE).cupy.get_default_memory_pool().free_all_blocks()

    found = [fit(trainer(callbacks=[Meddle(meddles)]))[:2] for meddles in (False, True)]
    assert found[0] == found[1]


def test_predictions_and_evaluations_are_recorded():
    run = trainer()
    pixels = images(70).images / np.float32(255)
    found = run.predict(pixels, 10)
    run.graph = False
    assert found.tobytes() == run.predict(pixels, 10).tobytes()
    loader = data.Loader(images(70), 10, shuffle=False)
    plain = run.evaluate(loader)
    run.graph = True
    again = run.evaluate(loader)
    assert plain.pop("confusion").tolist() == again.pop("confusion").tolist()
    assert plain == again


KILLED = """
import os, signal, sys
sys.path[:0] = [PATHS]
import test_recorded as here
from gpuconv import train

class Kill(train.Callback):
    each_batch = False
    def on_batch_end(self, run):
        if run.state.step >= 11:
            os.kill(os.getpid(), signal.SIGKILL)

run = here.trainer(callbacks=[Kill()], out=sys.argv[1], checkpoint_batches=2)
run.fit(*here.loaders(), epochs=here.EPOCHS)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_killed_run_goes_on_to_the_bits_of_an_uninterrupted_one(tmp_path):
    here = Path(__file__).resolve()
    paths = f"{str(here.parent)!r}, {str(here.parents[1] / 'helpers')!r}"
    script = KILLED.replace("PATHS", paths)
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=here.parents[2])
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    stopped = checkpoint.read(tmp_path / "run" / "last.safetensors").metadata["position"]
    assert 8 <= stopped["step"] < 12
    *resumed, _ = fit(trainer(out=tmp_path / "run", checkpoint_batches=2), resume=True)
    *whole, _ = fit(trainer(out=tmp_path / "whole", checkpoint_batches=2))
    assert resumed == whole


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 3, rng=1)

    def forward(self, x):
        y = self.linear(functional.flatten(x, 1))
        return functional.relu(y) if self.training and self.turn() else y

    def turn(self):
        return False


class Counting(Net):
    """Keeps a count where no attribute is replaced."""

    def __init__(self):
        super().__init__()
        self.kept = {"calls": [0]}

    def turn(self):
        self.kept["calls"][0] += 1
        return self.kept["calls"][0] > 8


class Alternating(Net):
    """Comes back to the attributes that it had."""

    def __init__(self):
        super().__init__()
        self.odd = False

    def turn(self):
        self.odd = not self.odd
        return self.odd


class Averaging(Net):
    """Moves an array of its own, which nothing reads."""

    def __init__(self):
        super().__init__()
        self.kept = np.ones(3)

    def turn(self):
        self.kept *= 0.9
        return False


class Drawing(Net):
    """Draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.rng = [np.random.default_rng(1)]

    def turn(self):
        return self.rng[0].random() < 0.2


class DrawingGlobally(Net):
    def turn(self):
        return random.random() < 0.2


class Annealed:
    """A loss that is another from the ninth call on, and no module."""

    def __init__(self):
        self.calls = 0

    def __call__(self, scores, labels):
        self.calls += 1
        function = functional.cross_entropy if self.calls < 9 else functional.hinge
        return function(scores, labels)


def flooded(scores, labels):
    loss = functional.cross_entropy(scores, labels)
    return loss if float(loss) > 1.1 else -1 * loss


def plain(scores, labels):
    return functional.cross_entropy(scores, labels)


ITS_OWN = "changes its own attributes or global variables as it runs"
DRAWS = "it draws random numbers of Python or NumPy"


@pytest.mark.parametrize(
    ("make", "loss", "why"),
    [
        (Counting, "article", f"Counting {ITS_OWN}"),
        (Alternating, "article", f"Alternating {ITS_OWN}"),
        pytest.param(Averaging, "article", f"Averaging {ITS_OWN}", marks=pytest.mark.slow),
        pytest.param(Drawing, "article", f"Drawing {ITS_OWN}", marks=pytest.mark.slow),
        (DrawingGlobally, "article", DRAWS),
        (Net, Annealed, f"Annealed {ITS_OWN}"),
        (Net, lambda: flooded, "the host reads a tensor's value"),
        (Net, lambda: plain, ""),
    ],
)
def test_code_of_ones_own_that_a_replay_would_not_run_is_run(make, loss, why):
    found = []
    for graph in (True, False):
        random.seed(0)
        model, criterion = make(), loss if isinstance(loss, str) else loss()
        said = Listener()
        run = trainer(graph, model=model, loss=criterion, average=False, callbacks=[said])
        found.append((*fit(run), str(getattr(model, "kept", None))))
        if graph:
            assert said.said[1:] == ([f"the step is not recorded: {why}"] if why else [])
    (*with_graph, replayed, kept), (*without, _, expected) = found
    assert (with_graph, kept) == (without, expected)
    assert bool(replayed) == (not why)


def ema(run, share):
    run.average = optim.EMA(run.model, 0.8) if share is None else run.average
    averages = run.average.state_dict().items()
    run.average.load_state_dict({n: a * a.dtype.type(share or 1) for n, a in averages})


REPLACED = {
    "a layer": lambda run: setattr(run.model, "2", nn.Tanh().to(DEVICE)),
    "a layer with weights": lambda run: setattr(run.model, "6", nn.Linear(36, 3, rng=3).to(DEVICE)),
    "a forward": lambda run: setattr(run.model[2], "forward", lambda x: functional.tanh(x)),
    "the loss": lambda run: setattr(run, "loss", nn.HingeLoss()),
    "the loss's function": lambda run: setattr(run, "loss", plain),
    "the optimiser": lambda run: setattr(run, "optimizer", optim.SGD(run.model.parameters(), 0.1)),
    "the average": lambda run: ema(run, None),
    "what is averaged": lambda run: ema(run, 0.5),
    "the precision": lambda run: setattr(run, "precision", "bf16"),
}


@pytest.mark.parametrize("at", [8, 12])  # within an epoch, and at the end of one
@pytest.mark.parametrize("what", [pytest.param(n, marks=pytest.mark.slow) for n in REPLACED])
def test_what_a_callback_replaces_is_used_from_the_next_step_on(what, at):
    class Replace(train.Callback):
        def on_batch_end(self, run):
            if run.state.step == at:
                REPLACED[what](run)

    def run(graph):
        return fit(trainer(graph, callbacks=[Replace()], schedule=None, loss="article"))

    found, expected = run(True), run(False)
    assert found[:2] == expected[:2]
    assert found[2] > 4


CHANGES = {
    "augment": lambda train, validation: setattr(train, "augment", data.augment.Affine(9)),
    "in place": lambda train, validation: setattr(train.augment, "pixels", 2),
    "seed": lambda train, validation: setattr(train, "seed", 9),
    "pictures": lambda train, validation: setattr(train, "dataset", images(14, 5)),
    "validation": lambda train, validation: setattr(validation, "mean", 0.5),
    "labels": lambda train, validation: validation.dataset.labels.sort(),
}


@pytest.mark.parametrize(
    "what", [pytest.param(n, marks=pytest.mark.slow if n != "pictures" else ()) for n in CHANGES]
)
def test_a_loader_that_is_changed_after_an_epoch_is_read_as_it_is(what):
    """Against a loader that the device does not know."""
    found = []
    for kind in (Plain, data.Loader):
        source = kind(images(), BATCH, seed=4, augment=data.augment.Shift(1))
        validation = kind(images(10, 1), BATCH, shuffle=False)

        class Change(train.Callback):
            def on_epoch_end(self, run, record, loaders=(source, validation)):
                if run.state.epoch == 1:
                    CHANGES[what](*loaders)

        run = trainer(callbacks=[Change()])
        run.fit(source, validation, epochs=3)
        found.append((state(run), history(run)))
    assert found[0] == found[1]


class Reusing:
    """Every batch in the same memory; fails at one of the second epoch."""

    def __init__(self):
        self.passes = 0

    def __len__(self):
        return 30

    def __iter__(self):
        self.passes += 1
        rng, x, labels = np.random.default_rng(0), np.empty((4, 1, 8, 8), "f4"), np.zeros(4, int)
        for batch in range(30):
            if self.passes == 2 and batch == 21:
                raise OSError("no such picture")
            x[...] = rng.random(x.shape)
            yield x, labels


def test_batches_that_share_memory_and_one_that_fails():
    found = []
    for graph in (True, False):
        run = trainer(graph, average=False, schedule=None)
        with pytest.raises(OSError, match="no such picture"):
            run.fit(Reusing(), epochs=2)
        found.append(state(run))
    assert "'batch': 21" in found[0][2]
    assert found[0] == found[1]
