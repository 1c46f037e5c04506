"""A run that was killed, interrupted or stopped, and resumed, ends in the bits of one that was not.

The runs train on real digits with dropout, augmentation, a schedule, Adam and averaged weights, so
that every kind of state matters. Killed ones are real processes, killed with SIGKILL at seeded
random moments.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from gpuconv import checkpoint, data, nn, optim
from gpuconv.nn import Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential
from gpuconv.train import Callback, Interrupted, Trainer

EPOCHS, BATCHES = 3, 16


def build():
    model = Sequential(
        Conv2d(1, 4, 5), ReLU(), MaxPool2d(2), Dropout(0.2), Flatten(), Linear(576, 10)
    )
    nn.init.initialize(model, 7)
    return model


def train(out, callbacks=(), epochs=EPOCHS, threads_note=None, **arguments):
    """The run, begun or resumed: the same call each time, as after a power failure."""
    digits = data.load("mnist", "test")
    loader = data.Loader(digits.subset(slice(0, 500)), 32, seed=5, augment=data.Shift(2))
    held_out = data.Loader(digits.subset(slice(500, 700)), 100, shuffle=False)
    model = build()
    run = Trainer(
        model,
        "cross_entropy",
        optim.Adam(model.parameters(), weight_decay=1e-4),
        schedule=optim.OneCycleLR(3e-3, EPOCHS * BATCHES),
        clip_norm=2.0,
        average=optim.EMA(model, 0.9),
        callbacks=callbacks,
        out=out,
        checkpoint_batches=3,
        log_batches=4,
        progress=False,
        **arguments,
    )
    return run.fit(loader, held_out, epochs=epochs, resume="auto")


def final_state(folder):
    """All that must agree, and none of the times."""
    last = checkpoint.read(folder / "last.safetensors")
    best = checkpoint.read(folder / "best.safetensors")
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for record in [*lines, last.metadata["position"], best.metadata["result"]]:
        for name in ("seconds", "images_per_second"):
            record.pop(name, None)
    arrays = [last.weights, last.optimizer, best.weights]
    contents = [{name: a.tobytes() for name, a in each.items()} for each in arrays]
    return contents, last.metadata, best.metadata, lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return final_state(folder)


def check_unbroken(folder):
    """Whatever a kill left is whole: the checkpoints pass their checksums."""
    for name in ("last.safetensors", "best.safetensors"):
        if (folder / name).exists():
            checkpoint.read(folder / name)


class Stop(Callback):
    """Send a signal to this process after the steps in `at`."""

    def __init__(self, at, number=signal.SIGINT):
        self.at, self.number = at, number

    def on_batch_end(self, run):
        if run.state.step in self.at:
            os.kill(os.getpid(), self.number)


def test_the_state_has_everything(whole):
    (weights, optimizer, best), last, _, lines = whole
    assert weights.keys() == best.keys() == build().state_dict().keys()
    assert len(optimizer) == 3 * len(weights)  # Adam's two averages and the weights'
    assert last["generators"] == {"3": [last["generators"]["3"][0], EPOCHS * BATCHES]}
    assert [line.get("batch") for line in lines] == [4, 8, 12, 16, None] * EPOCHS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [(1,), (7, 23, 24), (16,), (17, 47, 48)])
def test_interrupted_and_resumed(tmp_path, whole, number, at):
    for _ in at:
        with pytest.raises(Interrupted):
            train(tmp_path, [Stop(at, number)])
        check_unbroken(tmp_path)
    train(tmp_path)
    assert final_state(tmp_path) == whole


def test_interrupted_while_validating(tmp_path, whole, monkeypatch):
    forward = Sequential.forward

    def interrupted(model, x):
        if not model.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(model, x)

    with monkeypatch.context() as patch:
        patch.setattr(Sequential, "forward", interrupted)
        with pytest.raises(Interrupted, match="after 16 of 16 batches"):
            train(tmp_path)
    train(tmp_path)
    assert final_state(tmp_path) == whole


def test_a_run_that_is_done_stays_as_it_is(tmp_path, whole):
    first = train(tmp_path)
    again = train(tmp_path)
    assert again == first
    assert final_state(tmp_path) == whole


def test_epoch_by_epoch(tmp_path, whole):
    for epochs in range(1, EPOCHS + 1):
        history = train(tmp_path, epochs=epochs)
        assert len(history) == epochs
    assert final_state(tmp_path) == whole


def test_records_beyond_the_checkpoint_are_written_again(tmp_path, whole):
    with pytest.raises(Interrupted):
        train(tmp_path, [Stop((20,))])
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 2, "loss": 0.5}\n{"epoch": 3, "lo')
    train(tmp_path)
    assert final_state(tmp_path) == whole


def test_a_history_that_lacks_records_is_told(tmp_path, capsys):
    with pytest.raises(Interrupted):
        train(tmp_path, [Stop((20,))])
    file = tmp_path / "history.jsonl"
    record = json.loads(file.read_text().splitlines()[0])
    file.write_text(json.dumps({**record, "loss": ["odd"]}) + "\n")  # no record, and one is enough
    messages = []

    class Listen(Callback):
        def on_message(self, text):
            messages.append(text)

    train(tmp_path, [Listen()])
    assert "history.jsonl: lacks records that the run had written" in messages[0]
    assert "resumed" in messages[1]
    assert "epoch 2 after 4 batches" in messages[1]
    assert "odd" not in file.read_text()


# ---- more epochs ---------------------------------------------------------------------------------


def extend(out, callbacks=(), epochs=5, model=None, optimizer=optim.Adam, schedule=True, count=500):
    """Two more epochs of a finished run, with another schedule, augmentation and weight decay."""
    digits = data.load("mnist", "test")
    loader = data.Loader(digits.subset(slice(0, count)), 32, seed=6)
    held_out = data.Loader(digits.subset(slice(500, 700)), 100, shuffle=False)
    model = build() if model is None else model
    run = Trainer(
        model,
        "cross_entropy",
        optimizer(model.parameters(), lr=1e-3),
        schedule=optim.CosineLR(1e-3, 2 * BATCHES) if schedule else None,
        average=optim.EMA(model, 0.9),
        callbacks=callbacks,
        out=out,
        checkpoint_batches=3,
        log_batches=4,
        progress=False,
    )
    return run, run.fit(loader, held_out, epochs=epochs, resume="extend")


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_batch_end(self, run):
        self.rates.append(run.optimizer.lr)


def test_a_finished_run_is_extended_with_a_schedule_of_its_own(tmp_path):
    train(tmp_path)
    before = checkpoint.read(tmp_path / "last.safetensors")
    watch = Rates()
    _, history = extend(tmp_path, [watch])
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5]
    schedule = optim.CosineLR(1e-3, 2 * BATCHES)
    assert watch.rates == [schedule(step) for step in range(2 * BATCHES)]
    after = checkpoint.read(tmp_path / "last.safetensors")
    assert after.metadata["position"]["step"] == (EPOCHS + 2) * BATCHES
    assert set(after.metadata["optimizer"]["steps"]) == {(EPOCHS + 2) * BATCHES}
    assert after.metadata["optimizer"]["param_groups"][0]["weight_decay"] == 0
    assert after.metadata["generators"]["3"][1] == (EPOCHS + 2) * BATCHES
    assert any(not np.array_equal(after.weights[k], a) for k, a in before.weights.items())


class Messages(Callback):
    def __init__(self):
        self.texts = []

    def on_message(self, text):
        self.texts.append(text)


def test_an_extended_run_says_that_its_images_are_others(tmp_path):
    train(tmp_path)
    same, others = Messages(), Messages()
    extend(tmp_path, [same], epochs=4)
    extend(tmp_path, [others], count=480)
    notice = f"{tmp_path / 'last.safetensors'}: goes on with other images than the run had"
    assert notice not in same.texts
    assert notice in others.texts


@pytest.mark.parametrize("at", [(49,), (55, 64, 65), (79,)])
def test_an_extended_run_is_interrupted_and_resumed(tmp_path, at):
    train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    extend(tmp_path / "whole")
    for _ in at:
        with pytest.raises(Interrupted):
            extend(tmp_path / "cut", [Stop(at)])
    extend(tmp_path / "cut")
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "whole")


def test_what_cannot_be_extended_is_told(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, [Stop((20,))])
    with pytest.raises(ValueError, match="stopped in epoch 2 after 4 batches; resume it to the"):
        extend(tmp_path)
    train(tmp_path)
    wider = Sequential(Conv2d(1, 5, 5), ReLU(), MaxPool2d(2), Dropout(0.2), Flatten())
    with pytest.raises(ValueError, match="another architecture"):
        extend(tmp_path, model=Sequential(*wider, Linear(720, 10)))
    with pytest.raises(ValueError, match='resume must be True, False, "auto" or "extend"'):
        Trainer(build(), "hinge", optim.SGD(build().parameters()), out=tmp_path).fit(
            [1], resume="on"
        )
    with pytest.raises(ValueError, match="total_steps must be epochs"):
        train(tmp_path, epochs=EPOCHS + 1)


def test_an_extended_run_may_have_another_optimiser(tmp_path):
    train(tmp_path)
    run, history = extend(tmp_path, optimizer=lambda p, lr: optim.SGD(p, lr, 0.9), schedule=False)
    assert set(run.optimizer.steps) == {2 * BATCHES}
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["lr"] == 1e-3


# ---- kill -9 -----------------------------------------------------------------------------------


class Count(Callback):
    def __init__(self, shared):
        self.shared = shared

    def on_batch_end(self, run):
        self.shared.value = run.state.step


def child(folder, step):
    train(Path(folder), [Count(step)])


def kill_at(context, folder, target, jitter):
    """Start or resume the run in a process of its own; SIGKILL once it has passed step `target`."""
    step = context.Value("i", 0, lock=False)
    process = context.Process(target=child, args=(str(folder), step))
    process.start()
    deadline = time.monotonic() + 120
    while step.value < target and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(jitter)
    process.kill()
    process.join()
    check_unbroken(folder)
    return process.exitcode


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills, tmp_path, whole):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpuconv.train", "gpuconv.data"])
    draw = random.Random(20)
    targets = sorted(draw.sample(range(EPOCHS * BATCHES - 2), kills))
    codes = [kill_at(context, tmp_path, each, draw.random() * 0.02) for each in targets]
    late = max(1, kills // 5)  # the last ones may have finished first
    assert codes.count(-signal.SIGKILL) >= kills - late
    train(tmp_path)
    assert final_state(tmp_path) == whole
    assert not list(tmp_path.glob(".*.tmp"))
    assert np.isfinite(checkpoint.read(tmp_path / "last.safetensors").weights["5.weight"]).all()
