"""A network of one's own, from a file with its own `forward`, by commands alone."""

import base64
import json
import re

import numpy as np
import own_network
import pytest

import gpuconv
from gpuconv import checkpoint, data, models, nn, optim, train
from gpuconv.cli import main
from gpuconv.cli import train as train_command
from gpuconv.page.opening import _run_session
from gpuconv.train.evaluate import probabilities


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(train_command, "_draw", lambda *args: None)


@pytest.fixture
def said(capsys):
    def run(*argv, warned=""):
        assert main([str(argument) for argument in argv]) == 0
        told = capsys.readouterr()
        assert (warned in told.err) if warned else not told.err
        return told.out

    return run


@pytest.fixture
def refused(capsys):
    def run(*argv):
        assert main([str(argument) for argument in argv]) == 2
        told = capsys.readouterr()
        assert told.err.count("\n") == 1
        return told.err

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """ "PATH/mynet.py:", to be followed by a function."""
    return own_network.write(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder of IDX files: 60 training and 20 test digits."""
    folder = tmp_path_factory.mktemp("digits")
    for split, stem, count in (("train", "train", 60), ("test", "t10k", 20)):
        some = data.load("mnist", split, limit=count)
        data.write_idx(folder / f"{stem}-images-idx3-ubyte", some.images[:, 0])
        data.write_idx(folder / f"{stem}-labels-idx1-ubyte", some.labels.astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def quick(digits):
    """Options of a short run."""
    return ["--data", digits, "--epochs", "2", "--batch", "20", "--validation", "0.2"]


@pytest.fixture(scope="module")
def run(file, quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", "--model", f"{file}build", "--out", str(folder), *map(str, quick)]) == 0
    return folder


@pytest.fixture(scope="module")
def digit(tmp_path_factory):
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    data.save_image(path, data.load("mnist", "test").images[0])
    return path


@pytest.mark.slow
def test_train_and_resume(said, refused, file, run, tmp_path, quick):
    whole = checkpoint.read(run / "last.safetensors")
    assert whole.metadata["model"]["name"] == "mynet.py:build"
    assert whole.metadata["model"]["arguments"] == {"in_channels": 1, "num_classes": 10}
    assert whole.metadata["input"]["input_shape"] == [1, 28, 28]
    first = tmp_path / "first"
    said("train", "--model", f"{file}build", "--out", first, *quick, "--epochs", "1",
         "--schedule", "none")  # fmt: skip
    text = refused("train", "--resume", first)
    assert "was built by" in text
    assert f"add --model {file}build" in text
    said("train", "--resume", first, "--model", f"{file}build", "--epochs", "2")
    said("train", "--model", f"{file}build", "--out", tmp_path / "both", *quick,
         "--schedule", "none")  # fmt: skip
    ended, both = (
        checkpoint.read(tmp_path / name / "last.safetensors") for name in ("first", "both")
    )
    assert all((ended.weights[name] == both.weights[name]).all() for name in both.weights)
    assert "add --model" in refused("train", "--resume", first, "--model", "lenet")


def test_every_command_takes_it(said, refused, file, run, digit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    best, by = run / "best.safetensors", ("--model", f"{file}build")
    text = said("evaluate", best, *by, "--limit", "20")
    model = gpuconv.load(best, f"{file}build")
    images = data.load("mnist", "test", limit=20)
    scale = checkpoint.read(best).metadata["input"]
    x = data.to_float(images.images, 28, scale["mean"], scale["std"])
    with gpuconv.no_grad():
        scores = model(x).numpy().astype(np.float64)
    right = int((scores.argmax(axis=1) == images.labels).sum())
    assert f"accuracy  {right / 20:.2%} ({right} of 20)" in text
    text = said("predict", best, digit, *by, "--top", "1")
    share = np.exp(scores[0] - scores[0].max())
    assert f"{share.max() / share.sum():.4%}"[:5] in text
    assert f"digit.png: {scores[0].argmax()}\n" in text
    said("explain", best, digit, *by, "-o", "why.png")
    said("patches", best, *by, "--filters", "0", "-o", "parts.png")
    said("filters", best, *by, "-o", "learned.png")
    assert "halve  Halve" in said("summary", best, *by)
    said("show", best, *by, "--export", "page.html")
    for name in ("why.png", "parts.png", "learned.png", "page.html"):
        assert (tmp_path / name).stat().st_size > 1000
    monkeypatch.setattr("gpuconv.models.own._run", {})  # as in a new process
    for command in (["evaluate"], ["predict", digit], ["summary"], ["show"], ["filters"]):
        text = refused(command[0], best, *command[1:])
        assert "built by mynet.py:build, whose code runs only if you name it: add --model" in text


def test_untrained_by_its_name(said, refused, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "fc     Linear" in said("summary", f"{file}build", "--input", "1,28,28")
    assert "does not know its input" in refused("summary", f"{file}build")
    said("filters", f"{file}build", "-o", "first.png")
    said("show", f"{file}build", "--input", "1,28,28", "--export", "page.html")
    assert "give --input C,H,W" in refused("show", f"{file}build")
    text = said("bench", f"{file}build", "--input", "1,28,28", "--device", "sim", "--batch", "2")
    assert "conv2d 2x1x28x28 4 5x5" in text


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("number", "mynet.py:number: returned int, expected a gpuconv.nn.Module"),
        ("fails", r"raised ZeroDivisionError: division by zero \(.*mynet.py line 40\)"),
        ("needs", "needs an argument width; give it a default"),
        ("biuld", "unknown function 'biuld'; did you mean 'build'"),
        ("NUMBER", "unknown function 'NUMBER'"),
        ("broken", "mynet.py line 49: AttributeError: .*conv3"),
        ("three", "gives 3 scores, the data has 10 classes; --classes 10 gives it a new head"),
        ("", "name the function too that builds the network: .*mynet.py:build"),
    ],
)
def test_functions_that_build_no_network(refused, file, function, words, tmp_path, quick):
    text = refused("train", "--model", f"{file}{function}", "--out", tmp_path / "run", *quick)
    assert re.search(words, text), text


def test_files_that_do_not_run(refused, tmp_path):
    def text_of(content):
        (tmp_path / "net.py").write_text(content)
        return refused("summary", f"{tmp_path}/net.py:build", "--input", "1,8,8")

    assert "line 2: invalid syntax" in text_of("\ndef build(:\n")
    assert "raised ModuleNotFoundError: No module named 'nowhere'" in text_of("import nowhere\n")
    assert "raised SystemExit" in text_of("raise SystemExit('no')\n")
    assert "there is no such file" in refused("summary", f"{tmp_path}/none.py:build")


def test_a_network_of_gpuconvs_layers_needs_its_file_only_once(said, file, tmp_path, digit, quick):
    said("train", "--model", f"{file}plain", "--out", tmp_path / "run", *quick)
    best = tmp_path / "run" / "best.safetensors"
    assert checkpoint.read(best).metadata["model"]["name"] == "Sequential"
    assert "digit.png: " in said("predict", best, digit)
    said("train", "--resume", tmp_path / "run", "--epochs", "3")


def test_a_changed_file_is_named(said, refused, tmp_path, digit, quick):
    file = own_network.write(tmp_path)
    run = tmp_path / "run"
    by = ("--model", f"{file}build")
    said("train", *by, "--out", run, *quick, "--epochs", "1")
    (tmp_path / "mynet.py").write_text(own_network.FILE + "\n# a comment\n")
    changed = f"mynet.py is not the file that it was when {run}/best.safetensors was written"
    said("predict", run / "best.safetensors", digit, *by, warned=changed)
    text = refused("train", "--resume", run, *by)
    assert "the file that builds it is not what it was" in text
    assert "has changed since" in said("train", "--resume", run, *by, "--epochs", "2")
    (tmp_path / "mynet.py").write_text(own_network.FILE.replace("width=4", "width=5"))
    command = ["predict", str(run / "best.safetensors"), str(digit), *by]
    assert main(command) == 2


def test_nothing_of_a_checkpoint_runs(tmp_path, monkeypatch):
    """Not even where the file lies in the working directory."""
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    monkeypatch.chdir(tmp_path)
    spec = {"name": "evil.py:build", "sha256": "0" * 64, "arguments": {}}
    settings = {"model": "evil.py:build", "spec": spec}
    metadata = {"model": spec, "settings": settings, "image_shape": [1, 8, 8]}
    metadata["input"] = {"input_shape": [1, 8, 8]}
    checkpoint.write("last.safetensors", checkpoint.Checkpoint({}, metadata))
    for use in (gpuconv.load, lambda path: gpuconv.train.stored_config(".")):
        with pytest.raises(ValueError, match="whose code runs only if you name it"):
            use("last.safetensors")


def test_the_same_seed_gives_the_same_weights_and_the_functions_own_stay(file, tmp_path):
    one, two, other = (models.from_file(f"{file}build", seed=seed) for seed in (1, 1, 2))
    assert (one.conv1.weight.data == two.conv1.weight.data).all()
    assert not (one.conv1.weight.data == other.conv1.weight.data).any()
    assert not (one.conv1.weight.data[0] == one.conv2.weight.data[0, 0, 0, 0]).all()
    (tmp_path / "given.py").write_text(
        "from gpuconv import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, seed):\n"
        "        super().__init__()\n        self.fc = nn.Linear(2, 2, rng=seed)\n"
    )
    drawn = models.from_file(f"{tmp_path}/given.py:Net", seed=3).fc.weight.data
    assert (drawn == nn.Linear(2, 2, rng=3).weight.data).all()


def test_a_replaced_head_is_rebuilt(file, tmp_path):
    model = models.from_file(f"{file}build", num_classes=10)
    assert models.replace_head(model, 3) == "fc"
    assert model.spec["head"] == 3
    path = tmp_path / "head.safetensors"
    gpuconv.save(model, path, classes=["a", "b", "c"])
    again = gpuconv.load(path, f"{file}build")
    assert (again.fc.weight.data == model.fc.weight.data).all()
    assert (gpuconv.load(path).fc.weight.data == model.fc.weight.data).all()  # its file has run
    model.conv2 = nn.Identity()
    assert model.spec is None
    assert json.dumps(checkpoint.read(path).metadata)


@pytest.mark.parametrize("function", ["build", "plain"])
def test_a_run_on_the_page(file, function):
    """`train --show`: a network of the page's own, with the run's weights and the first ones."""
    config = train.run_config(model=f"{file}{function}", limit=60, epochs=1)
    prepared = train.prepare(config)
    session, *_ = _run_session(prepared)
    assert session.graph.model is not prepared.trainer.model
    weights = next(iter(prepared.trainer.model.state_dict().values()))
    for when in ("start", "now"):
        sent = session.filters(1, when)["values"]["f4"]
        assert (np.frombuffer(base64.b64decode(sent), np.float32) == weights.ravel()).all()


def test_probabilities_of_a_forward_that_ends_with_softmax():
    """Where softmax is a function, or a layer that is not the last one made."""

    class Net(nn.Module):
        def __init__(self, ends):
            super().__init__()
            self.softmax, self.fc, self.ends = nn.Softmax(), nn.Linear(4, 3, rng=0), ends

        def forward(self, x):
            y = self.fc(x.flatten(1)) + 0 * float(x.numpy().max())  # asks for values
            return {"function": nn.functional.softmax, "layer": self.softmax}.get(
                self.ends, nn.Identity()
            )(y)

    x = np.random.default_rng(0).standard_normal((2, 1, 2, 2)).astype(np.float32)
    scores = x.reshape(2, 4) @ Net("").fc.weight.data.T + Net("").fc.bias.data
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    for ends in ("function", "layer", ""):
        assert np.allclose(probabilities(Net(ends), x, 2), shares, atol=1e-6)


def test_a_trainers_checkpoint_reads_pictures_as_the_run_did(said, tmp_path):
    """Padded, not scaled, and inverted where the border is light, as `gpuconv train` has it."""
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(16, 10, rng=0))
    digits = data.load("mnist", "train", limit=60)
    loader = data.Loader(digits, 20, size=32, mean=0.1, std=0.3)
    train.Trainer(model, "cross_entropy", optim.SGD(model.parameters(), 0.1), out=tmp_path).fit(
        loader
    )
    data.save_image(tmp_path / "light.png", 255 - digits.images[0])
    last = tmp_path / "last.safetensors"
    text = said("predict", last, tmp_path / "light.png")
    assert "(inverted: its border is light)" in text
    x = data.to_float(digits.images[:1], 32, 0.1, 0.3)
    share = probabilities(gpuconv.load(last), x, 1)[0]
    for k in range(10):
        assert re.search(rf"^  {k} +{share[k]:.4%} ", text, re.MULTILINE), text
