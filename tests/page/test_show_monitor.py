"""A run that the page follows and steers."""

import http.client
import json
import math
import threading
import time
import types

import numpy as np
import pytest
from explained import scores
from served import serving

from gpuconv import data, ops, optim
from gpuconv.data import Preprocessing
from gpuconv.models import lenet
from gpuconv.page import Session, monitor
from gpuconv.page.monitor import TrainingMonitor
from gpuconv.train import Callback, Interrupted, Trainer

EPOCHS = 2


def loader(count=640, **how):
    digits = data.load("mnist", "train").subset(slice(0, count))
    return data.Loader(digits, 32, size=32, mean=0.1307, std=0.3081, **how)


def session_of(model):
    metadata = {
        "image_shape": [1, 28, 28],
        "dark_border": True,
        "input": {"mean": [0.1307], "std": [0.3081]},
    }
    return Session(model, Preprocessing.from_metadata(metadata, model.input_shape), "lenet")


def trainer_of(callbacks=(), out=None, schedule=None):
    model = lenet(seed=1)
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    how = {"callbacks": callbacks, "out": out, "schedule": schedule, "progress": False}
    return Trainer(model, "cross_entropy", optimizer, **how)


def state_bytes(model):
    return {name: array.tobytes() for name, array in model.state_dict().items()}


@pytest.fixture
def eager(monkeypatch):
    """Notes, copies and evaluates after every batch."""
    for name in ("POINT_SECONDS", "WEIGHT_SECONDS", "EVALUATE_SECONDS"):
        monkeypatch.setattr(monitor, name, 0.0)
    monkeypatch.setattr(monitor, "SHARE", 1e9)


class Run:
    """A run in a thread of its own, followed by a `TrainingMonitor`."""

    def __init__(self, tmp_path, schedule=None):
        held = loader(96, shuffle=False)
        self.monitor = TrainingMonitor(session_of(lenet(seed=0)), held, "pictures")
        self.trainer = trainer_of([self.monitor], tmp_path / "run", schedule)
        self.error = None
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self):
        try:
            self.monitor.follow(self._train)
        except BaseException as error:
            self.error = error

    def _train(self, again):
        self.trainer.fit(loader(seed=3), epochs=EPOCHS, resume=again)

    def until(self, *states):
        deadline = time.monotonic() + 60
        while self.monitor.state not in states:
            assert self.error is None, self.error
            assert time.monotonic() < deadline, self.monitor.state
            time.sleep(0.002)


def test_a_watched_run_has_the_bits_of_one_that_is_not(eager):
    alone = trainer_of()
    alone.fit(loader(seed=3), epochs=EPOCHS)
    watching = TrainingMonitor(session_of(lenet(seed=0)), loader(96, shuffle=False), "pictures")
    stream = watching.events()  # somebody looks
    next(stream)
    watched = trainer_of([watching])
    watched.fit(loader(seed=3), epochs=EPOCHS)
    assert state_bytes(watched.model) == state_bytes(alone.model)
    assert watching.session.version > 40  # the weights were copied after every batch
    assert state_bytes(watching.session.graph.model) == state_bytes(alone.model)
    found = watching.snapshot()
    assert len(found["points"]) == EPOCHS * 20
    means = [np.mean([p["loss"] for p in found["points"][k : k + 20]]) for k in (0, 20)]
    for mean, record in zip(means, found["epochs"], strict=True):
        assert abs(mean - record["loss"]) < 1e-9


def test_pause_resume_stop_and_go_on(eager, tmp_path):
    run = Run(tmp_path)
    assert run.monitor.state == "ready"
    run.monitor.command("start")
    run.until("running")
    run.monitor.command("pause")
    deadline = time.monotonic() + 60
    steps = -1
    while steps != run.trainer.state.step and time.monotonic() < deadline:
        steps = run.trainer.state.step
        time.sleep(0.1)
    assert steps == run.trainer.state.step < EPOCHS * 20  # it waits
    run.monitor.command("resume")
    run.until("running")
    run.monitor.command("stop")
    run.until("stopped", "done")
    if run.monitor.state == "stopped":
        assert run.trainer.state.step < EPOCHS * 20
        assert "interrupted in epoch" in run.monitor.problem
        run.monitor.command("start")
        run.until("done")
    assert run.trainer.state.step == EPOCHS * 20
    alone = trainer_of()
    alone.fit(loader(seed=3), epochs=EPOCHS)
    assert state_bytes(run.trainer.model) == state_bytes(alone.model)


@pytest.mark.parametrize("schedule", [None, optim.CosineLR(0.02, t_max=EPOCHS * 20)])
def test_the_learning_rate_is_changed_from_the_next_step_on(eager, tmp_path, schedule):
    run = Run(tmp_path, schedule)
    rates = {}

    class Watch(monitor.Callback):
        def on_batch_end(self, trainer):
            step = trainer.state.step
            rates[step] = trainer.optimizer.lr
            if step == 10:
                run.monitor.command("rate", 0.005)

    run.trainer.callbacks.insert(0, Watch())
    run.monitor.command("start")
    run.until("done")
    usual = schedule or (lambda step: 0.02)
    factor = 0.005 / usual(9)
    for step in range(1, EPOCHS * 20 + 1):
        expected = usual(step - 1) if step <= 10 else usual(step - 1) * factor
        assert math.isclose(rates[step], expected, rel_tol=1e-12), step
    assert run.trainer.schedule is schedule  # as the checkpoints describe the run


@pytest.mark.parametrize("schedule", [None, optim.CosineLR(0.02, t_max=EPOCHS * 20)])
def test_a_changed_rate_survives_a_stop(tmp_path, schedule):
    class At(monitor.Callback):
        def __init__(self, stop):
            self.stop, self.rates = stop, {}

        def on_batch_end(self, trainer):
            step = trainer.state.step
            self.rates[step] = trainer.optimizer.lr
            if step == 7:
                trainer.set_lr(0.004)
            if step == self.stop:
                trainer.interrupt()

    whole = At(None)
    alone = trainer_of([whole], tmp_path / "alone", schedule)
    alone.fit(loader(seed=3), epochs=EPOCHS)
    first, second = At(12), At(None)
    with pytest.raises(Interrupted):
        trainer_of([first], tmp_path / "parts", schedule).fit(loader(seed=3), epochs=EPOCHS)
    resumed = trainer_of([second], tmp_path / "parts", schedule)  # as another process would
    resumed.fit(loader(seed=3), epochs=EPOCHS, resume=True)
    assert {**first.rates, **second.rates} == whole.rates
    usual = schedule or (lambda step: 0.02)
    assert whole.rates[7] == usual(6)
    assert math.isclose(whole.rates[13], 0.004 / usual(6) * usual(12), rel_tol=1e-12)
    assert state_bytes(resumed.model) == state_bytes(alone.model)


def test_commands_that_do_not_fit(tmp_path):
    watching = TrainingMonitor(session_of(lenet()), loader(96, shuffle=False), "pictures")
    for action in ("pause", "resume", "stop", "rate"):
        with pytest.raises(ValueError, match=f"cannot {action}: the run is ready"):
            watching.command(action, 0.1)
    with pytest.raises(ValueError, match="unknown action 'explode'"):
        watching.command("explode")
    watching.state = "running"
    for rate in (0, -1, math.nan, math.inf, 1e4, "0.1", None, True):
        with pytest.raises((TypeError, ValueError), match="rate must be"):
            watching.command("rate", rate)


def test_a_run_that_breaks_is_told(eager, tmp_path):
    run = Run(tmp_path)
    run.trainer.optimizer.lr = 1e9
    run.monitor.command("start")
    run.thread.join(60)
    assert isinstance(run.error, FloatingPointError)
    assert run.monitor.state == "failed"
    assert "not finite" in run.monitor.problem


def test_an_interrupt_of_the_terminal_passes(tmp_path):
    run = Run(tmp_path)
    run.monitor.command("start")
    run.until("running")
    run.trainer.interrupt()  # as Ctrl-C does, without the page's stop
    run.thread.join(60)
    assert isinstance(run.error, Interrupted)


def test_evaluation_on_held_out_pictures():
    session = session_of(lenet(seed=4))
    held = loader(100, shuffle=False)
    found = session.evaluate(held)
    counts = np.zeros((10, 10), int)
    wrong = []
    for number in range(100):
        x = held.dataset.batch([number], 32, 0.1307, 0.3081)
        p = ops.softmax.reference(scores(session.graph.model, x).astype(np.float64))[0]
        truth, answer = int(held.dataset.labels[number]), int(p.argmax())
        counts[truth, answer] += 1
        if truth != answer:
            wrong.append((p[truth], truth, answer, p[answer]))
    assert found["confusion"] == counts.tolist()
    assert found["accuracy"] == np.trace(counts) / 100
    for shown, (_, truth, answer, sure) in zip(found["mistakes"], sorted(wrong), strict=False):
        assert (shown["label"], shown["answer"]) == (truth, answer)
        assert abs(shown["sure"] - sure) < 1e-6
    assert len(found["mistakes"]) == min(12, len(wrong))


def test_events_over_http(eager, tmp_path):
    run = Run(tmp_path)
    with serving(run.monitor.session, monitor=run.monitor) as server:
        address = server.server_address[:2]
        streams = []
        for _ in range(monitor.MAX_STREAMS):
            connection = http.client.HTTPConnection(*address, timeout=60)
            connection.request("GET", "/api/events")
            streams.append((connection, connection.getresponse()))
        assert streams[0][1].getheader("Content-Type") == "text/event-stream"
        one_more = http.client.HTTPConnection(*address, timeout=60)
        one_more.request("GET", "/api/events")
        assert one_more.getresponse().status == 503
        for connection, _ in streams[1:]:
            connection.close()
        post = http.client.HTTPConnection(*address, timeout=60)
        body = json.dumps({"action": "start"})
        post.request("POST", "/api/training", body, {"Content-Type": "application/json"})
        assert json.loads(post.getresponse().read()) == {"state": "starting"}
        seen = []
        while not seen or (seen[-1].get("state") != "done"):
            line = streams[0][1].readline()
            if line.startswith(b"data: "):
                seen.append(json.loads(line[6:]))
        assert {event["event"] for event in seen} == {
            "state", "progress", "epoch", "weights", "evaluation",
        }  # fmt: skip
        snapshot = run.monitor.snapshot()
        assert [e["record"] for e in seen if e["event"] == "epoch"] == snapshot["epochs"]
        streams[0][0].close()


def test_without_a_run_there_is_nothing_to_follow():
    with serving(session_of(lenet())) as server:
        for path in ("/api/training", "/api/events"):
            connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
            connection.request("GET", path)
            assert connection.getresponse().status == 404


def test_the_many_points_of_a_long_run_are_thinned(eager, monkeypatch):
    monkeypatch.setattr(monitor, "MAX_POINTS", 10)
    watching = TrainingMonitor(session_of(lenet(seed=0)), loader(96, shuffle=False), "pictures")
    trainer_of([watching]).fit(loader(seed=3), epochs=EPOCHS)
    points = watching.snapshot()["points"]
    assert len(points) <= 10
    assert [p["step"] for p in points] == sorted({p["step"] for p in points})


class Losses(Callback):
    """The loss of each batch."""

    def __init__(self):
        self.found, self._sum = [], 0.0

    def on_batch_end(self, trainer):
        p = trainer.state
        before = self._sum if p.batch > 1 else 0.0
        self.found.append((p.loss_sum - before) / 32)
        self._sum = p.loss_sum


def test_points_come_though_an_epoch_is_shorter_than_the_time_between_them(monkeypatch):
    """A clock that ticks once a batch: epochs of 20, points every 30."""
    watching = TrainingMonitor(session_of(lenet(seed=0)), loader(96, shuffle=False), "")
    losses = Losses()
    trainer = trainer_of([losses, watching])
    clock = types.SimpleNamespace(monotonic=lambda: float(trainer.state.step))
    monkeypatch.setattr(monitor, "time", clock)
    monkeypatch.setattr(monitor, "POINT_SECONDS", 30.0)
    trainer.fit(loader(seed=3), epochs=4)
    points = watching.snapshot()["points"]
    assert [p["step"] for p in points] == [30, 60]
    for point, begin in zip(points, (0, 30), strict=True):
        assert abs(point["loss"] - np.mean(losses.found[begin : begin + 30])) < 1e-9
    assert watching.snapshot()["progress"]["images_per_second"] == 32
