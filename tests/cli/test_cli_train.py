"""The command line around a trained network: train, evaluate, predict, and their errors."""

import gzip
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gpuconv import autograd, checkpoint, data, models, nn
from gpuconv.cli import main
from gpuconv.cli import train as train_command

QUICK = ["--limit", "1500", "--epochs", "3", "--batch", "32"]
QUICK += ["--validation", "0.1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on 1,500 digits: its folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.fixture
def refused(capsys):
    """Run a command that must fail with exit code 2 and one line; returns that line."""

    def run(*argv):
        assert main([str(argument) for argument in argv]) == 2
        told = capsys.readouterr()
        assert told.err.startswith("gpuconv: ")
        assert told.err.count("\n") == 1
        return told.err[len("gpuconv: ") : -1]

    return run


@pytest.fixture
def said(capsys):
    def run(*argv):
        assert main([str(argument) for argument in argv]) == 0
        told = capsys.readouterr()
        assert told.err == ""
        return told.out

    return run


@pytest.fixture(scope="module")
def digits():
    return data.load("mnist", "train"), data.load("mnist", "test")


@pytest.fixture
def tiny(tmp_path, digits):
    """A folder of IDX files: 40 training and 10 test digits."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for mnist, stem, count in zip(digits, ("train", "t10k"), (40, 10), strict=True):
        some = mnist.subset(slice(0, count))
        data.write_idx(folder / f"{stem}-images-idx3-ubyte", some.images[:, 0])
        data.write_idx(folder / f"{stem}-labels-idx1-ubyte", some.labels.astype(np.uint8))
    return folder


@pytest.fixture
def drawn():
    """Asked for by the tests that need the pictures; the others go without, half a second each."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(train_command, "_draw", lambda *args: None)


# ---- train -------------------------------------------------------------------------------------


def test_train_leaves_everything_and_says_where(said, tmp_path, monkeypatch, tiny, drawn):
    monkeypatch.chdir(tmp_path)
    text = said("train", "--data", "tiny", "--epochs", "2", "--batch", "8", "--validation", "0.1")
    folder = tmp_path / "runs" / "lenet-tiny"
    found = {file.name for file in folder.iterdir()}
    assert "36 training images, 4 held out" in text
    assert ("curves.png" in found) == (importlib.util.find_spec("matplotlib") is not None)
    wanted = {"last.safetensors", "best.safetensors", "history.jsonl"}
    assert wanted <= found
    assert "test accuracy" in text
    for name in ("best.safetensors", "history.jsonl", "curves.png", "confusion.png"):
        assert name not in found or f"runs/lenet-tiny/{name}" in text
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    metadata = checkpoint.read(folder / "best.safetensors").metadata
    assert metadata["settings"]["validation"] == 0.1
    assert metadata["image_shape"] == [1, 28, 28]
    assert metadata["dark_border"] is True


def test_a_second_run_takes_the_next_folder(said, tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    for name in ("lenet-tiny", "lenet-tiny-2", "lenet-tiny-3"):
        assert f"folder runs/{name}\n" in said(
            "train", "--data", tiny, "--epochs", "1", "--batch", 8
        )


def test_a_folder_given_by_hand_is_not_replaced_unasked(refused, said, tmp_path, tiny):
    out = tmp_path / "mine"
    options = ["--data", tiny, "--epochs", "1", "--batch", "8", "--out", out]
    said("train", *options)
    before = {file: file.read_bytes() for file in out.iterdir()}
    assert "holds a run already" in refused("train", *options)
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    said("train", *options, "--overwrite", "--seed", "9")
    assert checkpoint.read(out / "last.safetensors").metadata["settings"]["seed"] == 9


def test_the_articles_recipe(said, tmp_path, tiny):
    out = tmp_path / "run"
    said("train", "--recipe", "article", "--epochs", "1", "--data", tiny, "--out", out)
    metadata = checkpoint.read(out / "last.safetensors").metadata
    recipe = metadata["recipe"]
    assert recipe["loss"]["name"] == "ArticleLoss"
    assert recipe["optimizer"] == {
        "name": "SGD", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0,
        "dampening": 0.0,
    }  # fmt: skip
    assert recipe["data"]["batch_size"] == 16
    assert recipe["data"]["images"] == 40  # all of them: nothing is held out
    assert recipe["schedule"] is None
    assert recipe["data"]["augment"] is None
    assert len(metadata["input"]["mean"]) == 1  # of the training set, one channel
    assert not (out / "best.safetensors").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--optimizer", "adam", "--schedule", "none", "--loss", "hinge", "--augment", "none"],
        [
            "--optimizer",
            "adamw",
            "--schedule",
            "cosine",
            "--clip",
            "1",
            "--augment",
            "shift+affine",
        ],
        ["--momentum", "0", "--schedule", "onecycle", "--weight-decay", "0", "--validation", "0"],
        ["--schedule", "step", "--augment", "crop+flip", "--normalize", "none", "--threads", "1"],
        ["--label-smoothing", "0.1", "--ema", "0.9", "--validation", "0.2"],
    ],
)
def test_every_setting_trains(said, tmp_path, tiny, options):
    from gpuconv.threads import set_thread_count, thread_count

    threads = thread_count()
    out = tmp_path / "run"
    try:
        said("train", "--data", tiny, "--epochs", "3", "--batch", "8", "--out", out, *options)
    finally:
        set_thread_count(threads)
    settings = checkpoint.read(out / "last.safetensors").metadata["settings"]
    for name, value in zip(options[::2], options[1::2], strict=True):
        if name != "--threads":
            assert str(settings[name[2:].replace("-", "_")]).removesuffix(".0") == value


@pytest.mark.parametrize(
    ("model", "option", "size"),
    [
        ("resnet18", [], (28, 28)),  # not 64 times as many pixels, nearly all of them black
        ("resnet18", ["--size", "30x40"], (30, 40)),
        ("lenet", [], (32, 32)),
        pytest.param("zfnet", ["--size", "64"], (64, 64), marks=pytest.mark.slow),
    ],
)
def test_the_size_of_the_networks_input(said, tmp_path, tiny, monkeypatch, model, option, size):
    """As `train` chooses it and every reader of the checkpoint finds it; nothing is trained."""
    from gpuconv.data import Preprocessing
    from gpuconv.train import prepare, run_config

    seen = []
    monkeypatch.setattr("gpuconv.train.run.Trainer.fit", lambda *args, **kwargs: seen.append(args))
    monkeypatch.setattr(train_command, "_report", lambda *args: None)
    argv = ["--model", model, "--data", tiny, "--batch", "8", "--out", tmp_path / "run", *option]
    said("train", *argv)
    trainer, loader, _ = seen[0]
    assert loader.input_shape == (1, *size)
    assert trainer.metadata["settings"]["size"] == list(size)
    run = prepare(run_config(**trainer.metadata["settings"]))  # as when it is resumed
    assert run.training.input_shape == (1, *size)
    metadata = {"model": trainer.model.spec, "input": {"input_shape": list(loader.input_shape)}}
    path = tmp_path / "model.safetensors"
    checkpoint.save(trainer.model, path, **metadata, image_shape=[1, 28, 28])
    found = checkpoint.read(path)
    built = found.build()
    assert built.input_shape == (1, *size)
    assert Preprocessing.from_metadata(found.metadata, built.input_shape).size == size


def test_averaged_weights_are_tested_where_none_were_kept_as_best(said, tmp_path, tiny):
    out = tmp_path / "run"
    options = ["--data", tiny, "--epochs", "2", "--batch", "8", "--validation", "0", "--ema", "0.9"]
    text = said("train", *options, "--out", out)
    found = checkpoint.read(out / "last.safetensors")
    model = models.build(found.metadata["model"])
    losses = {}
    for name, state in (("own", found.weights), ("averaged", averages(found))):
        model.load_state_dict(state)
        losses[name] = loss_on(model, found, tiny)
    assert losses["own"] != losses["averaged"]
    assert f"loss {losses['averaged']}" in text


def averages(found):
    """A checkpoint's averaged weights, by the names of the model's state."""
    start = "average/"
    return {k.removeprefix(start): a for k, a in found.optimizer.items() if k.startswith(start)}


def loss_on(model, found, folder):
    """The loss on the folder's test images, as `gpuconv train` prints it."""
    how = {name: found.metadata["input"][name] for name in ("size", "mean", "std")}
    images = data.load(str(folder), "test")
    ((x, labels),) = data.Loader(images, len(images), shuffle=False, **how)
    return f"{nn.CrossEntropyLoss()(model.eval()(x), labels).item():.4f}"


def test_smoothing_is_for_cross_entropy(refused, tiny):
    told = refused("train", "--data", tiny, "--loss", "hinge", "--label-smoothing", "0.1")
    assert told == "train: label smoothing is for the loss cross_entropy, the loss is hinge"
    assert "expected a number" in refused("train", "--data", tiny, "--ema", "1")


def test_the_reference_device_trains_alike(said, tmp_path, tiny):
    for device in ("cpu", "reference"):
        out = tmp_path / device
        said(
            "train", "--data", tiny, "--epochs", "1", "--batch", 8, "--device", device, "--out", out
        )
    a, b = (
        checkpoint.read(tmp_path / d / "last.safetensors").weights for d in ("cpu", "reference")
    )
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-4)


def test_stopped_and_resumed_equals_uninterrupted(said, tmp_path, tiny, monkeypatch, capsys):
    from gpuconv.train import Trainer

    options = ["--data", tiny, "--epochs", "3", "--batch", "8", "--augment", "shift+affine"]
    options += ["--validation", "0.2", "--label-smoothing", "0.1", "--ema", "0.9"]
    said("train", *options, "--out", tmp_path / "whole")

    own = Trainer._batch

    def then_terminated(self, x, labels):
        own(self, x, labels)
        if self.state.step == 7:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_batch", then_terminated)
    out = tmp_path / "stopped"
    assert main(["train", *map(str, options), "--out", str(out)]) == 143
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith(f"to go on: gpuconv train --resume {out}\n")
    monkeypatch.undo()
    assert "resumed" in said("train", "--resume", out)
    for name in ("last.safetensors", "best.safetensors"):
        a, b = (checkpoint.read(tmp_path / d / name).weights for d in ("whole", "stopped"))
        assert all(a[key].tobytes() == b[key].tobytes() for key in a)


def test_ctrl_c_of_a_real_process(tmp_path):
    command = [sys.executable, "-m", "gpuconv", "train", "--out", str(tmp_path / "run"), *QUICK]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("epoch 1"):
                process.send_signal(signal.SIGINT)
                break
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.startswith("gpuconv: interrupted in epoch")
    assert told.count("\n") == 1


def test_train_without_matplotlib_says_how_to_get_it(said, tmp_path, tiny, monkeypatch, drawn):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text = said("train", "--data", tiny, "--epochs", 1, "--batch", 8, "--out", tmp_path / "run")
    assert 'pip install "gpuconv[viz]"' in text
    assert "test accuracy" in text


def test_a_folder_of_pictures(said, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for number, name in enumerate(("dark", "light")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for k in range(6):
                pixels = rng.integers(0, 60, (20 + k, 30, 3), np.uint8) + np.uint8(190 * number)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    out = tmp_path / "run"
    options = ["--epochs", "12", "--batch", "4", "--augment", "none", "--schedule", "none"]
    said("train", "--data", tmp_path / "pictures", *options, "--lr", "0.02", "--out", out)
    test = tmp_path / "pictures" / "test"
    text = said("predict", out / "last.safetensors", test / "light" / "3.png", test / "dark/0.png")
    assert ": light\n" in text
    assert ": dark\n" in text
    assert "accuracy  100.00% (12 of 12)" in said("evaluate", out / "last.safetensors")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--epochs", "0"], "argument --epochs: expected a whole number of at least 1, got '0'"),
        (["--epochs", "1.5"], "expected a whole number of at least 1, got '1.5'"),
        (["--resize", "strech"], "unknown way to resize 'strech'; did you mean 'stretch'?"),
        (["--model", "lenett"], "unknown model 'lenett'; did you mean 'lenet'?"),
        (["--optimizer", "admw"], "unknown optimizer 'admw'; did you mean 'adamw'?"),
        (["--loss", "crossentropy"], "unknown loss 'crossentropy'; did you mean 'cross_entropy'?"),
        (["--schedule", "cosin"], "unknown schedule 'cosin'; did you mean 'cosine'?"),
        (["--augment", "shift+flp"], "unknown augmentation 'flp'; did you mean 'flip'?"),
        (["--recipe", "artcle"], "unknown recipe 'artcle'; did you mean 'article'?"),
        (["--device", "cudda"], "unknown device 'cudda'; did you mean 'cuda'?"),
        (["--data", "mnit"], "unknown data set 'mnit'; did you mean 'mnist'?"),
        (["--data", "no/such/folder"], "no/such/folder: no such file or folder"),
        (["--lr", "-1"], "expected a number of more than 0, got '-1'"),
        (["--lr", "0"], "argument --lr: expected a number of more than 0, got '0'"),
        (["--clip", "0"], "argument --clip: expected a number of more than 0, got '0'"),
        (["--device", "gpu"], "unknown device 'gpu'; did you mean 'cuda'?"),
        (["--out", ""], "argument --out: expected a path, got ''"),
        (["--resume", ""], "argument --resume: expected a path, got ''"),
        (["--data", ""], "argument --data: expected a path, got ''"),
        (["--size", "0"], "argument --size: expected a side from 1 to 4096, or height and width"),
        (["--size", "28"], "lenet does not read images of 28x28 (--size), it was made for 32x32"),
        (["--momentum", "1"], "expected a number of at least 0 and below 1, got '1'"),
        (["--optimizer", "adam", "--momentum", "0.5"], "momentum is for the optimizer sgd"),
        (["--validation", "0.001"], "validation 0.001: tiny train: cannot split 40 images"),
        (["--seed", "-1"], "expected a whole number of at least 0, got '-1'"),
        (["--resume", "x", "--out", "y"], "not allowed with argument"),
        (["--precision", "fp61"], "unknown precision 'fp61'; did you mean 'fp16'?"),
        (["--precision", "bf16", "--device", "cpu"], "bf16: the device cpu has ieee alone"),
    ],
)
def test_bad_settings(refused, tmp_path, tiny, options, expected):
    base = [] if "--resume" in options else ["--out", tmp_path / "run"]
    assert expected in refused("train", "--data", tiny, "--batch", "8", *base, *options)
    assert not (tmp_path / "run").exists()


def test_a_precision_is_said_kept_and_not_changed_by_a_resume(said, refused, tmp_path, tiny):
    out = tmp_path / "run"
    options = ["--epochs", "1", "--batch", "8", "--device", "reference", "--out", out]
    assert "device reference, precision fp16" in said(
        "train", "--data", tiny, *options, "--precision", "fp16"
    )
    found = checkpoint.read(out / "last.safetensors").metadata
    assert found["settings"]["precision"] == found["recipe"]["precision"] == "fp16"
    assert found["loss_scale"] == {"scale": 65536.0, "good": 5}
    text = refused("train", "--resume", out, "--precision", "bf16")
    assert f"--precision is bf16, the run in {out} has fp16" in text
    assert "test accuracy" in said("train", "--resume", out)


def test_evaluate_and_predict_say_in_what_they_compute(said, refused, tmp_path, tiny):
    """float32 unless told otherwise; in the run's precision the scores are that precision's."""
    options = ["--data", tiny, "--device", "reference"]
    more = ["--out", tmp_path / "run", "--epochs", "1", "--limit", "8", "--batch", "8"]
    said("train", *options, *more, "--precision", "bf16")
    path = tmp_path / "run" / "last.safetensors"
    digit = tmp_path / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)).save(digit)
    note = "computed in ieee; trained in bf16 (--precision bf16)\n"
    assert said("evaluate", path, *options).startswith(note)
    assert said("predict", path, digit, "--device", "reference").startswith(note)
    own = said("evaluate", path, *options, "--precision", "bf16")
    assert "computed" not in own
    found = checkpoint.read(path)
    recipe, model = found.metadata["input"], found.build().to("reference")
    test = data.load(str(tiny), "test")
    x = test.batch(np.arange(len(test)), size=32, mean=recipe["mean"], std=recipe["std"])
    with autograd.precision("bf16"):
        loss = nn.CrossEntropyLoss()(model(x), test.labels).item()
    assert f"loss      {loss:.4f} (" in own
    for command in (["evaluate", path], ["predict", path, digit]):
        text = refused(*command, "--device", "cpu", "--precision", "bf16")
        assert "--precision bf16: the device cpu has ieee alone" in text


def test_a_finished_run_is_one_also_where_its_pictures_cannot_be_drawn(
    said, tmp_path, tiny, drawn, monkeypatch
):
    options = ["--data", tiny, "--epochs", "1", "--batch", "8"]
    (tmp_path / "run" / "curves.png").mkdir(parents=True)
    monkeypatch.setattr("gpuconv.train.folder.PICTURES", ())
    text = said("train", *options, "--out", tmp_path / "run")
    assert re.search(r"pictures +none: .*curves.png: cannot write: is a directory", text, re.I)
    broken = ModuleNotFoundError("No module named 'kiwisolver'", name="kiwisolver")
    for error in (ValueError("no glyph"), MemoryError(), broken, RuntimeError("freetype")):
        monkeypatch.setattr("gpuconv.viz.curves", lambda *args, error=error: raise_(error))
        text = said("train", *options, "--out", tmp_path / "run", "--overwrite")
        assert re.search(rf"pictures +none: {str(error) or 'MemoryError'}\n", text)


def raise_(error):
    raise error


def test_overwrite_waits_for_no_other_run(refused, tmp_path, tiny):
    """While another run is in the folder, nothing of it is touched."""
    from gpuconv.train.folder import locked

    out = tmp_path / "run"
    out.mkdir()
    for name in ("last.safetensors", "curves.png"):
        (out / name).write_text("kept")
    with locked(out):
        text = refused("train", "--data", tiny, "--batch", 8, "--out", out, "--overwrite")
        assert text.startswith(f"{out}: another run is training in this folder")
        assert {file.name: file.read_text() for file in out.iterdir()} == {
            "last.safetensors": "kept", "curves.png": "kept",
        }  # fmt: skip


def test_an_output_folder_that_cannot_be(refused, tmp_path, tiny):
    (tmp_path / "file").write_text("kept")
    options = ["--data", tiny, "--epochs", "1", "--batch", "8"]
    assert "file" in refused("train", *options, "--out", tmp_path / "file" / "run")
    assert "file" in refused("train", *options, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_full_disk(refused, tiny):
    text = refused("train", "--data", tiny, "--batch", "8", "--out", "/dev/full")
    assert text.startswith("/dev/full")


def test_training_that_diverges_names_the_layer(refused, tmp_path, tiny):
    options = ["--batch", "8", "--lr", "1e30", "--schedule", "none", "--out", tmp_path / "run"]
    text = refused("train", "--data", tiny, *options)
    assert re.search(r"epoch 1, batch \d: the loss is not finite; .* layer \w+ \(", text)
    assert "lower the learning rate" in text


def test_a_finished_run_gets_more_epochs(said, tmp_path, tiny):
    out = tmp_path / "run"
    said("train", "--data", tiny, "--batch", "8", "--epochs", "2", "--out", out)
    said("train", "--resume", out, "--epochs", "5", "--lr", "0.01")
    metadata = checkpoint.read(out / "last.safetensors").metadata
    assert metadata["position"]["epoch"] == 5
    assert metadata["recipe"]["schedule"]["total_steps"] == 3 * 5
    assert metadata["recipe"]["optimizer"]["lr"] == 0.01
    assert len((out / "history.jsonl").read_text().splitlines()) == 5
    assert "resumed" in said("train", "--resume", out)  # and nothing is left to do


def test_resume_refuses(refused, trained, tmp_path):
    assert "holds no run to resume" in refused("train", "--resume", tmp_path)
    text = refused("train", "--resume", trained / "last.safetensors")
    assert text.endswith(f"is a file; give the folder of the run, {trained}")
    for option, told in (("--lr", "0.05"), ("--batch", "32"), ("--weight-decay", "0.0005")):
        text = refused("train", "--resume", trained, option, "3")
        assert text.startswith(f"train: {option} is 3")
        assert f"the run in {trained} has {told}; leave it out to resume" in text
    for option in (["--overwrite"], ["--recipe", "article"]):
        text = refused("train", "--resume", trained, *option)
        assert f"{option[0]} is for a new run" in text
    (tmp_path / "other").mkdir()
    checkpoint.save(models.lenet(), tmp_path / "other" / "last.safetensors")
    assert "is no run of `gpuconv train`" in refused("train", "--resume", tmp_path / "other")


def corrupt(folder, what):
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    content = images.read_bytes()
    if what == "missing":
        labels.unlink()
    elif what == "truncated":
        images.write_bytes(content[:-100])
    elif what == "magic":
        images.write_bytes(b"\1\2\3\4" + content[4:])
    elif what == "gzip":
        packed = bytearray(gzip.compress(content))
        packed[len(packed) // 2] ^= 0xFF
        images.unlink()
        images.with_name(images.name + ".gz").write_bytes(bytes(packed))
    elif what == "counts":
        data.write_idx(labels, np.zeros(39, np.uint8))
    elif what == "nan":
        bad = np.zeros((40, 28, 28), np.float32)
        bad[5, 3, 3] = np.nan
        data.write_idx(images, bad)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("missing", "there is no train-labels-idx1-ubyte"),
        ("truncated", "train-images-idx3-ubyte"),
        ("magic", "train-images-idx3-ubyte"),
        ("gzip", "train-images-idx3-ubyte.gz"),
        ("counts", "40 images but 39 labels"),
        ("nan", "image 5 holds NaN"),
    ],
)
def test_corrupt_data(refused, tmp_path, tiny, what, expected):
    corrupt(tiny, what)
    options = ["--data", tiny, "--batch", "8", "--out", tmp_path / "run"]
    assert expected in refused("train", *options)
    assert not (tmp_path / "run").exists()


def test_that_there_is_no_test_set_is_said_before_training(refused, tmp_path, tiny):
    (tiny / "t10k-labels-idx1-ubyte").unlink()
    for k in range(8):
        (tmp_path / "p" / "Train" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 9), 20 * k).save(tmp_path / "p" / "Train" / "ab"[k % 2] / f"{k}.png")
    for folder, expected in (
        (tiny, "there is no t10k-labels-idx1-ubyte"),
        (tmp_path / "p", "a subfolder Train but none named test"),
    ):
        assert expected in refused("train", "--data", folder, "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()


# ---- evaluate ----------------------------------------------------------------------------------


def test_evaluate_counts_every_image_once(said, trained, digits):
    path = trained / "best.safetensors"
    text = said("evaluate", path, "--limit", "700", "--batch", "300")
    found = checkpoint.read(path)
    recipe = found.metadata["input"]
    test = digits[1].subset(slice(0, 700))
    x = test.batch(np.arange(700), size=32, mean=recipe["mean"], std=recipe["std"])
    answers = found.build()(x).numpy().argmax(axis=1)
    right = int((answers == test.labels).sum())
    assert right > 500  # it learned something
    assert f"accuracy  {right / 700:.2%} ({right} of 700)" in text
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (test.labels, answers), 1)
    part = text.partition("a column for each answer\n")[2].partition("\n\n")[0].splitlines()[1:]
    printed = [[0 if cell == "." else int(cell) for cell in line.split()[1:]] for line in part]
    assert np.array_equal(printed, matrix)
    for k in range(10):
        total, own = matrix[k].sum(), matrix[k, k]
        assert re.search(rf"\n  {k} +{total} +{own} +{own / total:.2%}\n", text)
    wrong = matrix - np.diag(np.diag(matrix))
    i, j = np.unravel_index(wrong.argmax(), wrong.shape)
    assert f"most frequent mistakes: {i} taken for {j} {wrong[i, j]}x" in text


def test_evaluate_on_other_data_and_device(said, trained, tiny):
    path = trained / "last.safetensors"
    options = ["--data", tiny, "--split", "train"]
    ours = said("evaluate", path, *options)
    assert "on tiny train, 40 images" in ours
    assert said("evaluate", path, *options, "--device", "reference") == ours


def test_checkpoints_that_cannot_be_used(refused, trained, tmp_path):
    good = (trained / "best.safetensors").read_bytes()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good[:-1000])
    assert "bad.safetensors: damaged" in refused("evaluate", bad)
    bad.write_bytes(good[:5])
    assert "truncated" in refused("evaluate", bad)
    bad.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "do not match its checksum" in refused("evaluate", bad)
    bad.write_bytes(b"not a checkpoint")
    assert "not a safetensors file" in refused("evaluate", bad)
    assert "there is no such file" in refused("evaluate", tmp_path / "none.safetensors")
    (tmp_path / "last.safetensors").write_bytes(good)  # a run without a best epoch
    told = refused("evaluate", tmp_path / "best.safetensors")
    assert told.endswith("there is no such file; last.safetensors is there")
    spec = {"name": "lenet", "arguments": {"num_classes": 7}}
    checkpoint.save(models.lenet().state_dict(), bad, model=spec)
    checkpoint.write(bad, checkpoint.Checkpoint(models.lenet().state_dict(), {"model": spec}))
    assert "fc3.weight has shape (10, 100), this model's is (7, 100)" in refused("evaluate", bad)
    checkpoint.save({"weight": np.ones(3)}, bad)
    assert "names no model" in refused("evaluate", bad)


def test_evaluate_refuses_data_of_other_kinds(refused, trained, tiny):
    labels = np.arange(40) % 12
    data.write_idx(tiny / "train-labels-idx1-ubyte", labels.astype(np.uint8))
    text = refused("evaluate", trained / "best.safetensors", "--data", tiny, "--split", "train")
    assert "tiny train has 12 classes, the network 10" in text


# ---- predict -----------------------------------------------------------------------------------


@pytest.fixture
def digit(tmp_path, trained, digits):
    """A test digit that the network recognises with confidence: PNG path, pixels, label."""
    found = checkpoint.read(trained / "best.safetensors")
    recipe, test = found.metadata["input"], digits[1]
    x = test.batch(np.arange(200), size=32, mean=recipe["mean"], std=recipe["std"])
    scores = found.build()(x).numpy()
    margin = np.sort(scores, axis=1)[:, -1] - np.sort(scores, axis=1)[:, -2]
    right = scores.argmax(axis=1) == test.labels[:200]
    k = int(np.argmax(np.where(right, margin, -np.inf)))
    e = np.exp(scores[k] - scores[k].max())
    path = tmp_path / "digit.png"
    Image.fromarray(test.images[k, 0]).save(path)
    return path, test.images[k, 0], int(test.labels[k]), e / e.sum()


def test_predict_gives_each_class_its_probability(said, trained, digit):
    path, _, label, probabilities = digit
    text = said("predict", trained / "best.safetensors", path)
    assert text.startswith(f"{path}: {label}\n")
    rows = re.findall(r"^  (\d) +([\d.]+)%", text, re.MULTILINE)
    assert [int(name) for name, _ in rows] == np.argsort(-probabilities, kind="stable").tolist()
    for name, share in rows:
        assert float(share) / 100 == pytest.approx(probabilities[int(name)], abs=2e-6)
    assert sum(float(share) for _, share in rows) == pytest.approx(100, abs=1e-3)


def test_predict_top_several_and_reference(said, trained, digit):
    path, _, label, _ = digit
    text = said(
        "predict", trained / "last.safetensors", path, path, "--top", 1, "--device", "reference"
    )
    assert len(text.splitlines()) == 4
    assert text.count(f"{path}: {label}\n") == 2


def test_predict_takes_pictures_of_other_sizes_and_kinds(said, trained, digit, tmp_path):
    _, pixels, label, _ = digit
    picture = Image.fromarray(pixels)
    picture.resize((112, 112), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    picture.convert("RGB").save(tmp_path / "color.png")
    picture.convert("P").save(tmp_path / "palette.png")
    wide = np.zeros((28, 60), np.uint8)
    wide[:, 16:44] = pixels
    Image.fromarray(wide).resize((240, 112)).save(tmp_path / "wide.png")
    Image.fromarray(pixels).resize((140, 140)).save(tmp_path / "photo.jpg", quality=95)
    for name in ("large.png", "color.png", "palette.png", "photo.jpg"):
        assert f": {label}\n" in said("predict", trained / "best.safetensors", tmp_path / name)
    said("predict", trained / "best.safetensors", tmp_path / "wide.png")  # small, but read


def test_predict_inverts_dark_figures_on_a_light_ground(said, trained, digit, tmp_path):
    path, pixels, label, _ = digit
    Image.fromarray(255 - pixels).save(tmp_path / "dark.png")
    model = trained / "best.safetensors"
    plain = said("predict", model, path).partition("\n")[2]
    text = said("predict", model, tmp_path / "dark.png")
    assert text.startswith(f"{tmp_path / 'dark.png'}: {label} (inverted: its border is light)\n")
    assert text.partition("\n")[2] == plain
    assert said("predict", model, tmp_path / "dark.png", "--invert").partition("\n")[2] == plain
    assert said("predict", model, tmp_path / "dark.png", "--no-invert").partition("\n")[2] != plain


@pytest.mark.parametrize("value", [0, 128, 255])
def test_predict_warns_of_a_blank_picture(said, trained, digit, tmp_path, value):
    noise = np.random.default_rng(0).integers(0, 3, (40, 40))
    for name, pixels in (("flat", noise * 0), ("paper", noise)):
        Image.fromarray(np.clip(pixels + value, 0, 255).astype(np.uint8)).save(tmp_path / "x.png")
        text = said("predict", trained / "best.safetensors", tmp_path / "x.png")
        assert "warning: a picture of one colour" in text.splitlines()[0], name
    assert "warning" not in said("predict", trained / "best.safetensors", digit[0])


def test_scores_that_are_not_finite_are_refused(refused, trained, digit, tmp_path):
    found = checkpoint.read(trained / "last.safetensors")
    bad = tmp_path / "bad.safetensors"
    for layer, value in (("conv2", np.nan), ("fc1", np.inf), ("fc3", -np.inf)):
        weights = {name: array.copy() for name, array in found.weights.items()}
        weights[f"{layer}.bias"][3] = value
        checkpoint.write(bad, checkpoint.Checkpoint(weights, found.metadata))
        for command in (["predict"], ["explain", "-o", tmp_path / "x.png"]):
            text = refused(*command, bad, digit[0])
            assert (
                f"predict: a score is not finite; first broken is the output of layer {layer}"
                in text
            )
        text = refused("evaluate", bad, "--limit", 20)
        assert f"first broken is the output of layer {layer} (" in text
    assert not (tmp_path / "x.png").exists()


def test_predict_passes_over_bad_pictures_if_asked(said, refused, trained, digit, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    model = trained / "best.safetensors"
    text = said("predict", model, tmp_path / "text.png", digit[0], tmp_path / "no", "--skip-bad")
    assert text.startswith("passed over 2 of 3 pictures: ")
    assert "text.png: not a picture" in text
    assert f"{digit[0]}: {digit[2]}\n" in text
    assert "passed over 1 of 1" in refused("predict", model, tmp_path / "text.png", "--skip-bad")


def test_predict_refuses_before_any_answer(trained, digit, tmp_path, capsys):
    path = digit[0]
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:60])
    for name, expected in (
        ("text.png", "not a picture"),
        ("cut.png", "damaged"),
        ("none.png", "no such file"),
    ):
        model = str(trained / "best.safetensors")
        assert main(["predict", model, str(path), str(tmp_path / name)]) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert expected in told.err
        assert told.err.count("\n") == 1


# ---- summary and filters of a checkpoint -------------------------------------------------------


def test_summary_of_a_checkpoint(said, refused, trained):
    assert "63,802" in said("summary", trained / "best.safetensors")
    text = refused("summary", trained / "best.safetensors", "--input", "3,32,32")
    assert "x has 3 channels, w expects 1" in text
    assert "--classes" in refused("summary", trained / "best.safetensors", "--classes", "3")


def test_filters_of_a_checkpoint(said, refused, trained, tmp_path):
    path = trained / "best.safetensors"
    out = tmp_path / "f.png"
    assert "6 panels" in said("filters", path, "-o", out)
    assert "96 panels" in said("filters", path, "-o", out, "--layer", "conv2")
    assert Image.open(out).size[0] > 400
    text = refused("filters", path, "-o", out, "--layer", "conv3")
    assert "unknown convolution 'conv3'; did you mean" in text


def test_a_moved_run_can_still_be_used(said, trained, tmp_path, digit):
    shutil.copy(trained / "best.safetensors", tmp_path / "model.safetensors")
    assert f": {digit[2]}\n" in said("predict", tmp_path / "model.safetensors", digit[0])


def test_a_resumed_run_draws_no_weights(said, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    before = said("evaluate", trained / "last.safetensors", "--limit", 100)
    monkeypatch.setattr(nn.init, "initialize", None)
    assert "test accuracy" in said("train", "--resume", tmp_path / "run")
    text = said("evaluate", tmp_path / "run" / "last.safetensors", "--limit", 100)
    assert text.partition("\n")[2] == before.partition("\n")[2]


def test_a_class_of_one_picture_is_said_once(tmp_path, capsys):
    for name, count in (("a", 1), ("b", 12)):
        (tmp_path / "p" / name).mkdir(parents=True)
        for k in range(count):
            Image.new("L", (9, 9), 20 * k).save(tmp_path / "p" / name / f"{k}.png")
    argv = ["train", "--data", str(tmp_path / "p"), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    told = capsys.readouterr()
    assert told.err == "gpuconv: p: there is one picture of a, which only training sees\n"
    (tmp_path / "p" / "b" / "0.png").write_bytes(b"")
    assert main([*argv, "--overwrite"]) == 2
    assert "--skip-bad" in capsys.readouterr().err
    assert main([*argv, "--overwrite", "--skip-bad"]) == 0
    assert "b/0.png: not a picture" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run" / "last.safetensors")]) == 0  # as in training
