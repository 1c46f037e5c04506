"""The Trainer: the same numbers as a loop by hand, and one clear line when something is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from typing import ClassVar

import numpy as np
import pytest

from gpuconv import checkpoint, models, nn, ops, optim
from gpuconv.autograd import record
from gpuconv.data import Dataset, Loader
from gpuconv.nn import (
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Module,
    ReLU,
    Residual,
    Sequential,
)
from gpuconv.train import Callback, Interrupted, Trainer
from gpuconv.train.progress import Progress, duration


def dataset(count=96, seed=0, classes=4):
    """Pictures whose class is the quarter that is bright: easy to learn."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    images = rng.integers(0, 80, (count, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 100
    return Dataset(images, labels, classes=[str(i) for i in range(classes)])


def network(seed=0, dropout=0.0):
    layers = [Conv2d(1, 4, 3), ReLU(), MaxPool2d(2), Flatten()]
    layers += [nn.Dropout(dropout)] * bool(dropout) + [Linear(36, 4)]
    model = Sequential(*layers)
    nn.init.initialize(model, seed)
    return model


def loaders(batch_size=16):
    return Loader(dataset(), batch_size, seed=3), Loader(dataset(40, seed=1), 16, shuffle=False)


def trainer(model=None, lr=0.1, momentum=0.9, **arguments):
    model = network() if model is None else model
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    arguments = {"progress": False, **arguments}
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, **arguments)


def bits(model):
    return {name: array.tobytes() for name, array in model.state_dict().items()}


def test_fit_equals_a_loop_by_hand_bit_for_bit():
    by_trainer, by_hand = network(), network()
    train, validation = loaders()
    history = trainer(by_trainer).fit(train, validation, epochs=3)

    loss = nn.CrossEntropyLoss()
    optimizer = optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        total, right = 0.0, 0
        for x, labels in Loader(dataset(), 16, seed=3).batches(epoch):
            optimizer.zero_grad()
            scores = by_hand(x)
            value = loss(scores, labels)
            value.backward()
            optimizer.step()
            total += value.item() * len(labels)
            right += int((scores.data.argmax(axis=1) == labels).sum())
        assert history[epoch]["loss"] == total / 96
        assert history[epoch]["accuracy"] == right / 96
    assert bits(by_trainer) == bits(by_hand)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["validation_accuracy"] > 0.9


def test_the_same_seed_gives_the_same_bits():
    runs = []
    for _ in range(2):
        model = network(dropout=0.3)
        trainer(model).fit(loaders()[0], epochs=2)
        runs.append(bits(model))
    assert runs[0] == runs[1]
    other = network(dropout=0.3)
    trainer(other).fit(Loader(dataset(), 16, seed=4), epochs=2)
    assert bits(other) != runs[0]


def test_evaluate_by_hand():
    model = network()
    run = trainer(model)
    found = run.evaluate(loaders()[1])
    data = dataset(40, seed=1)
    scores = model(data.batch(np.arange(40))).data
    losses = -np.log(ops.softmax(scores.astype(np.float64))[np.arange(40), data.labels])
    assert abs(found["loss"] - losses.mean()) < 1e-6
    confusion = np.zeros((4, 4), int)
    for label, row in zip(data.labels, scores, strict=True):
        confusion[label, row.argmax()] += 1
    assert np.array_equal(found["confusion"], confusion)
    assert found["accuracy"] == np.trace(confusion) / 40
    assert found["images"] == 40
    assert model.training
    assert np.array_equal(run.evaluate(Loader(data, 7))["confusion"], confusion)
    with pytest.raises(ValueError, match="the loader has no images"):
        run.evaluate([])


def test_many_classes_are_not_counted_by_pairs():
    """Their matrix would take 8 GB."""
    classes = 32_768
    x, labels = np.zeros((3, 4), np.float32), np.array([5, 7, 5])
    model = nn.Sequential(nn.Linear(4, classes))
    model.load_state_dict({"0.weight": np.zeros((classes, 4)), "0.bias": np.eye(1, classes, 5)[0]})
    found = trainer(model).evaluate([(x, labels)])
    assert found["confusion"] is None
    assert found["accuracy"] == 2 / 3


def test_predict_gives_probabilities():
    model = network(dropout=0.5)
    run = trainer(model)
    x = dataset(40, seed=1).batch(np.arange(40))
    p = run.predict(x, batch_size=7)
    assert p.shape == (40, 4)
    assert np.all(np.abs(p.sum(axis=1) - 1) < 1e-6)
    assert np.allclose(p, ops.softmax(model.eval()(x).data), atol=1e-6)
    assert np.allclose(run.predict(loaders()[1]), p, atol=1e-6)
    assert np.allclose(run.predict(x[3]), p[3:4], atol=1e-6)
    assert run.predict(x[:0]).shape == (0, 4)
    with pytest.raises(ValueError, match="the loader shuffles"):
        run.predict(loaders()[0])
    with_softmax = Sequential(*network(), nn.Softmax())
    assert np.allclose(trainer(with_softmax).predict(x).sum(axis=1), 1, atol=1e-6)


def test_the_folder_of_a_run(tmp_path):
    model = network()
    run = trainer(model, out=tmp_path / "a" / "b", log_batches=2)
    history = run.fit(*loaders(), epochs=3)
    folder = tmp_path / "a" / "b"
    assert sorted(os.listdir(folder)) == ["best.safetensors", "history.jsonl", "last.safetensors"]
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line for line in lines if "batch" not in line] == history
    assert [line["step"] for line in lines if "batch" in line] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    last = checkpoint.read(folder / "last.safetensors")
    assert {k: a.tobytes() for k, a in last.weights.items()} == bits(model)
    assert last.metadata["position"]["epoch"] == 3
    best = checkpoint.read(folder / "best.safetensors")
    accuracies = [record["validation_accuracy"] for record in history]
    scores = [(record["validation_accuracy"], -record["validation_loss"]) for record in history]
    assert best.metadata["epoch"] == 1 + scores.index(max(scores))
    assert best.metadata["result"]["validation_accuracy"] == max(accuracies)
    assert best.metadata["classes"] == ["0", "1", "2", "3"]
    assert best.metadata["input"]["input_shape"] == [1, 8, 8]
    best.load_into(network(seed=9))


def test_a_model_of_the_zoo_comes_back_from_its_checkpoint(tmp_path):
    model = models.lenet(num_classes=4)
    train = Loader(dataset(32), 16, size=32)
    trainer(model, out=tmp_path, lr=0.01).fit(train, train, epochs=1)
    again = checkpoint.load(tmp_path / "last.safetensors")
    assert bits(again) == bits(model)
    assert not again.training


def test_schedule_and_momentum_are_applied():
    train, _ = loaders()
    seen = []

    class Watch(Callback):
        def on_batch_end(self, run):
            seen.append((run.optimizer.lr, run.optimizer.momentum))

    cycle = optim.OneCycleLR(0.1, 12)
    trainer(schedule=cycle, callbacks=[Watch()]).fit(train, epochs=2)
    assert seen == [(cycle(step), cycle.momentum(step)) for step in range(12)]
    with pytest.raises(ValueError, match="total_steps=12; total_steps must be epochs"):
        trainer(schedule=cycle).fit(train, epochs=3)


def test_clip_norm_changes_the_run_and_bounds_the_step():
    model = network()
    before = [p.data.copy() for p in model.parameters()]
    trainer(model, lr=1.0, momentum=0.0, clip_norm=1e-3).fit(Loader(dataset(16), 16), epochs=1)
    after = [p.data for p in model.parameters()]
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(after, before, strict=True)))
    assert abs(moved - 1e-3) < 1e-5


def test_callbacks_are_told_and_may_stop():
    events = []

    class Watch(Callback):
        def on_fit_begin(self, run):
            events.append("begin")

        def on_batch_end(self, run):
            events.append(run.state.batch)

        def on_epoch_end(self, run, record):
            events.append(record["epoch"])
            run.stopping = record["epoch"] == 2

        def on_fit_end(self, run):
            events.append("end")

    history = trainer(callbacks=[Watch()]).fit(Loader(dataset(32), 16), epochs=9)
    assert events == ["begin", 1, 2, 1, 1, 2, 2, "end"]
    assert len(history) == 2


class Broken(Module):
    """Passes x on; puts one infinity into the output of the n-th forward pass in training."""

    def __init__(self, at, value=np.inf):
        super().__init__()
        self.at, self.count, self.value = at, 0, value

    def forward(self, x):
        self.count += self.training
        if self.count < self.at:
            return x
        y = x.data.copy()
        y.flat[5] = self.value
        return record("broken", y, (x,), lambda dy, over: (dy,))


def test_the_first_layer_that_is_not_finite_is_named(tmp_path):
    def told(model, **arguments):
        with pytest.raises(FloatingPointError) as info:
            trainer(model, **arguments).fit(Loader(dataset(64), 16), epochs=2)
        text = str(info.value)
        assert "\n" not in text
        return text

    model = Sequential(conv=Conv2d(1, 2, 3), odd=Broken(3, np.nan), act=ReLU(), flat=Flatten(),
                       fc=Linear(72, 4))  # fmt: skip
    text = told(model, out=tmp_path)
    assert "epoch 1, batch 3: the loss is not finite" in text
    assert "output of layer odd (Broken), which holds NaN in 1 of 1152 values" in text
    assert not any(module._hooks for module in model.modules())
    kept = checkpoint.read(tmp_path / "last.safetensors")  # from before: finite
    assert all(np.isfinite(array).all() for array in kept.weights.values())

    inner = Residual(Sequential(Conv2d(2, 2, 3, padding=1), Broken(1)), Conv2d(2, 2, 1))
    model = Sequential(Conv2d(1, 1, 3), Concat(Conv2d(1, 1, 1), Conv2d(1, 1, 1)), inner,
                       Flatten(), Linear(72, 4))  # fmt: skip
    assert "layer 2.body.1 (Broken), which holds infinity" in told(model)

    model = network()
    model["4"].weight.data[1, 1] = np.nan
    text = told(model)
    assert "layer 4 (Linear)" in text
    assert "because its weight is not finite" in text
    model = network()
    model["0"].weight.data[1, 0, 1, 1] = np.inf  # though convolution and ReLU may run as one
    assert "layer 0 (Conv2d)" in told(model)


def test_a_learning_rate_that_diverges_is_told_and_no_broken_checkpoint_is_left(tmp_path):
    model = network()
    run = trainer(model, lr=1e30, out=tmp_path, checkpoint_batches=1)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run.fit(loaders()[0], epochs=5)
    kept = checkpoint.read(tmp_path / "last.safetensors")
    assert all(np.isfinite(array).all() for array in kept.weights.values())


class BrokenBackward(Broken):
    """Breaks the gradient alone: the loss is still finite when the weights no longer are."""

    def forward(self, x):
        return record("broken", x.data, (x,), lambda dy, over: (dy * np.float32(self.value),))


def test_weights_that_broke_after_a_finite_loss_are_not_saved(tmp_path):
    def run(**arguments):
        model = Sequential(Flatten(), Linear(64, 4), BrokenBackward(1))
        trainer(model, out=tmp_path, **arguments).fit(loaders()[0])

    with pytest.raises(FloatingPointError, match=r"1\.weight is not finite after the last update"):
        run(checkpoint_batches=1)
    kept = checkpoint.read(tmp_path / "last.safetensors")
    assert all(np.isfinite(array).all() for array in kept.weights.values())
    with pytest.raises(FloatingPointError, match="batch 1: the gradients' norm is"):
        run(clip_norm=1.0)


def test_the_search_repeats_the_batch_with_the_same_dropout():
    class Recorded(nn.Dropout):
        outputs: ClassVar[list] = []

        def forward(self, x):
            y = super().forward(x)
            self.outputs.append(y.data)
            return y

    model = Sequential(Flatten(), Recorded(0.5), Broken(3), Linear(64, 4))
    with pytest.raises(FloatingPointError, match=r"layer 2 \(Broken\)"):
        trainer(model).fit(loaders()[0])
    *_, before, failed, searched = Recorded.outputs
    assert np.array_equal(failed, searched)
    assert not np.array_equal(before == 0, failed == 0)


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / ".last.safetensors.0123456789abcdef.tmp").write_bytes(b"half")
    trainer(out=tmp_path).fit(loaders()[0])
    assert not list(tmp_path.glob(".*"))


def test_nan_in_the_input_is_named():
    x, labels = dataset(32).batch(np.arange(32)), dataset(32).labels
    x[21, 0, 3, 3] = np.nan
    with pytest.raises(ValueError, match="epoch 1, batch 2: the input holds NaN") as info:
        trainer().fit([(x[:16], labels[:16]), (x[16:], labels[16:])], epochs=1)
    assert "first in image 5 of the batch" in str(info.value)
    with pytest.raises(ValueError, match="evaluation, after 0 images: the input holds NaN"):
        trainer().evaluate([(x, labels)])


def test_bad_arguments():
    train, _ = loaders()
    for epochs in (0, -1):
        with pytest.raises(ValueError, match="epochs must be at least 1"):
            trainer().fit(train, epochs=epochs)
    with pytest.raises(TypeError, match="epochs must be an int"):
        trainer().fit(train, epochs=1.5)
    with pytest.raises(ValueError, match="no batches"):
        trainer().fit([], epochs=1)
    with pytest.raises(ValueError, match="unknown loss 'hing'; did you mean 'hinge'"):
        Trainer(network(), "hing", optim.SGD(network().parameters()))
    for norm in (-1, 0):
        with pytest.raises(ValueError, match="Trainer: clip_norm must be a finite number > 0"):
            trainer(clip_norm=norm)
    with pytest.raises(ValueError, match="Trainer: log_batches must be at least 1"):
        trainer(log_batches=0)
    with pytest.raises(ValueError, match="resume needs the Trainer's out"):
        trainer().fit(train, resume=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    model = network()
    before = bits(model)
    with pytest.raises(OSError, match="file/run: cannot make this folder") as info:
        trainer(model, out=tmp_path / "file" / "run").fit(loaders()[0])
    assert "\n" not in str(info.value)
    assert bits(model) == before


def test_a_disk_that_fills_up(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not allowed here")
    try:

        class Fill(Callback):
            def on_epoch_end(self, run, record):
                with contextlib.suppress(OSError), (tmp_path / "filler").open("ab", 0) as file:
                    while True:
                        file.write(bytes(4096))

        with pytest.raises(OSError, match="cannot write: No space left on device"):
            trainer(out=tmp_path, callbacks=[Fill()]).fit(*loaders(), epochs=4)
        kept = checkpoint.read(tmp_path / "last.safetensors")
        assert kept.metadata["kind"] == "training"
        assert not list(tmp_path.glob(".*"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def brighter(loader):
    """The loader with one pixel of one image changed."""
    images = loader.dataset.images.copy()
    images[70, 0, 3, 3] ^= 1
    dataset = Dataset(images, loader.dataset.labels, classes=loader.dataset.classes)
    return Loader(dataset, loader.batch_size, seed=loader.seed)


def test_lists_of_batches_have_a_checksum(tmp_path):
    batches = list(loaders()[0].batches(0))
    trainer(out=tmp_path).fit(batches)
    trainer(out=tmp_path).fit(batches, epochs=2, resume=True)
    changed = [(x.copy(), labels) for x, labels in batches]
    changed[3][0][1, 0, 2, 2] += 1
    with pytest.raises(ValueError, match=r"data\.crc32 was"):
        trainer(out=tmp_path).fit(changed, epochs=3, resume=True)


def test_one_run_at_a_time_is_in_a_folder(tmp_path):
    told = []

    class Second(Callback):
        def on_batch_end(self, run):
            if run.state.step == 2:
                for folder in (tmp_path, tmp_path / "."):
                    with pytest.raises(OSError, match="another run is training in this fold") as e:
                        trainer(out=folder).fit(loaders()[0], resume="auto")
                    told.append(str(e.value))

    first = network()
    trainer(first, out=tmp_path, callbacks=[Second()]).fit(*loaders())
    assert len(told) == 2
    assert "\n" not in told[0]
    alone = network()
    trainer(alone, out=tmp_path / "other").fit(*loaders())
    assert bits(first) == bits(alone)
    kept = checkpoint.read(tmp_path / "last.safetensors")
    assert {k: a.tobytes() for k, a in kept.weights.items()} == bits(first)
    trainer(out=tmp_path).fit(*loaders())  # the lock is gone with the run


def test_the_lock_ends_with_a_killed_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from gpuconv.train.folder import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(BlockingIOError, match="another run is training"):
            trainer(out=tmp_path).fit(loaders()[0])
    finally:
        other.kill()
        other.wait()
    trainer(out=tmp_path).fit(loaders()[0])


def test_the_best_weights_of_another_run_are_told(tmp_path):
    messages = []

    class Listen(Callback):
        def on_message(self, text):
            messages.append(text)

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    trainer(out=ours).fit(*loaders(), epochs=1)
    trainer(network(seed=5), out=theirs, lr=0.05).fit(*loaders(), epochs=2)
    trainer(out=ours, callbacks=[Listen()]).fit(*loaders(), epochs=1, resume=True)
    assert not any("another run" in text for text in messages)
    (ours / "best.safetensors").write_bytes((theirs / "best.safetensors").read_bytes())
    trainer(out=ours, callbacks=[Listen()]).fit(*loaders(), epochs=1, resume=True)
    assert any("best.safetensors: is of another run" in text for text in messages)


def test_another_recipe_or_model_is_refused_and_named(tmp_path):
    train, validation = loaders()
    trainer(out=tmp_path).fit(train, validation, epochs=1)

    def told(run, loader=train):
        before = bits(run.model)
        with pytest.raises(ValueError, match=r"last.safetensors: ") as info:
            run.fit(loader, validation, epochs=2, resume=True)
        assert "\n" not in str(info.value)
        assert bits(run.model) == before
        return str(info.value)

    text = told(trainer(out=tmp_path), brighter(train))
    assert "is of another run: data: the images or labels are not those of that run; repeat" in text
    assert "data.batch_size was 16, is now None" in told(trainer(out=tmp_path), list(train))
    text = told(trainer(out=tmp_path, lr=0.2))
    assert "is of another run: optimizer.lr was 0.1, is now 0.2; repeat its settings" in text
    assert "clip_norm was None, is now 1" in told(trainer(out=tmp_path, clip_norm=1.0))
    assert "data.batch_size was 16, is now 8" in told(trainer(out=tmp_path), loaders(8)[0])
    assert "schedule" in told(trainer(out=tmp_path, schedule=optim.StepLR(0.1, 5)))
    wider = Sequential(Conv2d(1, 5, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(45, 4))
    text = told(trainer(wider, out=tmp_path))
    assert "another architecture: 0.weight has shape (4, 1, 3, 3), this model's is (5, 1" in text
    lenet = models.lenet(num_classes=4)
    assert "model.name was 'Sequential', is now 'lenet'" in told(trainer(lenet, out=tmp_path))
    (tmp_path / "last.safetensors").write_bytes((tmp_path / "best.safetensors").read_bytes())
    assert "holds weights only" in told(trainer(out=tmp_path))
    (tmp_path / "last.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        trainer(out=tmp_path).fit(train, resume=True)


def test_signal_handlers_come_back_and_threads_may_train():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer().fit(Loader(dataset(16), 16), epochs=1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    done = []
    thread = threading.Thread(
        target=lambda: done.append(trainer().fit(Loader(dataset(16), 16), epochs=1))
    )
    thread.start()
    thread.join()
    assert len(done[0]) == 1


class Send(Callback):
    """Send this process signals after a step."""

    def __init__(self, step, *numbers):
        self.step, self.numbers = step, numbers

    def on_batch_end(self, run):
        if run.state.step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_batch_and_saves(tmp_path, number, code):
    run = trainer(out=tmp_path, callbacks=[Send(8, number)])
    with pytest.raises(Interrupted, match="interrupted in epoch 2 after 2 of 6 batches") as info:
        run.fit(*loaders(), epochs=3)
    assert info.value.exit_code == code
    assert isinstance(info.value, KeyboardInterrupt)
    assert checkpoint.read(tmp_path / "last.safetensors").metadata["position"]["step"] == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    run = trainer(out=tmp_path, callbacks=[Send(8, signal.SIGINT, signal.SIGINT)])
    with pytest.raises(Interrupted, match="stopped at once") as info:
        run.fit(*loaders(), epochs=3)
    assert info.value.exit_code == 130
    assert checkpoint.read(tmp_path / "last.safetensors").metadata["position"]["step"] == 6


@pytest.mark.parametrize("batch", [16, 96])
def test_compilation_does_not_count_as_speed(monkeypatch, batch):
    """The clock advances by 100 s in the first batch of a run, by 1 s in the others."""
    clock = [0.0]
    own = Trainer._batch

    def slow(self, x, labels):
        clock[0] += 1.0 if self.state.step else 100.0
        own(self, x, labels)

    monkeypatch.setattr(Trainer, "_batch", slow)
    monkeypatch.setattr("gpuconv.train.trainer.time.monotonic", lambda: clock[0])
    records = trainer().fit(Loader(dataset(96), batch), epochs=2)
    if batch == 16:
        assert [record["images_per_second"] for record in records] == [16, 16]
        assert [record["seconds"] for record in records] == [6, 6]
    else:  # nothing to compare the first batch with
        assert [record.get("images_per_second") for record in records] == [None, 96]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_and_elsewhere(monkeypatch):
    monkeypatch.setattr("gpuconv.train.progress.COMPILED_SECONDS", 1e9)  # whatever compiles here
    plain, live = io.StringIO(), Terminal()
    for stream in (plain, live):
        bar = Progress(stream)
        bar._interval = 0.0
        trainer(callbacks=[bar]).fit(*loaders(), epochs=2)
    lines = plain.getvalue().splitlines()
    assert len(lines) == 2 * 6 + 2
    assert lines[2].startswith("epoch 1/2  batch 3/6  loss ")
    assert " images/s" in lines[2]
    assert lines[2].endswith(" left")
    assert lines[6].startswith("epoch 1/2  loss ")
    assert "validation loss" in lines[6]
    assert "\x1b[" in live.getvalue()  # drawn in place
    assert "validation loss" in live.getvalue()
    quiet = io.StringIO()
    trainer(callbacks=[Progress(quiet)]).fit(*loaders(), epochs=2)
    assert len(quiet.getvalue().splitlines()) == 2
    monkeypatch.setattr("gpuconv.train.progress.COMPILED_SECONDS", 0.0)
    told = io.StringIO()
    trainer(callbacks=[Progress(told)]).fit(*loaders(), epochs=1)
    assert told.getvalue().startswith("compiled for this processor in ")
    assert [duration(s) for s in (4.24, 187, 7387)] == ["4.2 s", "3:07", "2:03:07"]
