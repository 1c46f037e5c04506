"""Runs that begin with weights from a file: a new head on request, frozen layers, bad names."""

import numpy as np
import own_network
import pytest

import gpuconv
from gpuconv import checkpoint, data, models, nn, optim
from gpuconv.cli import main
from gpuconv.cli import train as train_command


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    monkeypatch.setattr(train_command, "_draw", lambda *args: None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of gray pictures, 8x8."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for k, name in enumerate(("ant", "bee", "cat")):
            (folder / part / name).mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 80, (1, 8, 8)) + 80 * k
                data.save_image(folder / part / name / f"{n}.png", pixels.astype(np.uint8))
    return folder


@pytest.fixture
def train(tmp_path, capsys, pictures):
    """Run `gpuconv train` with these options; the checkpoint, or the line that says why not."""

    def run(*options, data=pictures):
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        fixed = ["--data", data, "--out", out, "--epochs", "1", "--batch", "8", "--gray"]
        code = main([str(o) for o in ("train", *fixed, "--augment", "none", *options)])
        told = capsys.readouterr()
        if code:
            assert (code, told.err.count("\n")) == (2, 1)
            return told.err
        run.said = told.out
        return checkpoint.read(out / "last.safetensors")

    return run


def small():
    return nn.Sequential(
        conv1=nn.Conv2d(1, 4, 3),
        bn=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(4, 4, 3),
        flat=nn.Flatten(),
        fc=nn.Linear(64, 10),
    )


def test_a_new_head_on_request_alone_and_frozen_layers_stay(train, tmp_path):
    model, path = small(), tmp_path / "small.safetensors"
    model.input_shape = (1, 8, 8)
    model.bn.running_mean.data[...] = 0.25
    gpuconv.save(model, path)
    text = train("--from", path)
    assert "gives 10 scores, the data has 3 classes; --classes 3 gives it a new head" in text
    ended = train("--from", path, "--classes", "3", "--freeze", "conv1,bn")
    assert f"weights of {path}, new: fc.weight, fc.bias" in train.said
    assert "frozen conv1, bn; 343 parameters train" in train.said  # 4 * 4 * 9 + 4 + 3 * 65
    was = model.state_dict()
    for name, array in ended.weights.items():
        same = array.shape == was[name].shape and (array == was[name]).all()
        assert same == name.startswith(("conv1", "bn")), name
    assert ended.weights["fc.weight"].shape == (3, 64)
    assert ended.metadata["classes"] == ["ant", "bee", "cat"]
    again = gpuconv.load(next(tmp_path.glob("run*/last.safetensors")))
    assert again.fc.out_features == 3


def test_the_same_classes_keep_their_head(train, tmp_path):
    model, path = small(), tmp_path / "small.safetensors"
    model.input_shape, model.fc = (1, 8, 8), nn.Linear(64, 3)
    gpuconv.save(model, path)
    ended = train("--from", path, "--lr", "1e-30", "--weight-decay", "0")
    assert np.allclose(ended.weights["fc.weight"], model.fc.weight.data, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--freeze", "fc4"], "unknown layer 'fc4'; did you mean 'fc"),
        (["--freeze", "relu1"], "freeze: relu1 has nothing to train"),
        (["--freeze", "conv1,conv2,fc1,fc2,fc3"], "--freeze leaves nothing to train"),
        (["--classes", "2"], "the data has 3 classes, --classes gives 2 scores"),
    ],
)
def test_what_cannot_be_frozen_or_is_too_few(train, options, words):
    assert words in train(*options)


def test_weights_that_do_not_fit_are_named(train, tmp_path):
    path = tmp_path / "lenet.safetensors"
    state = models.lenet().state_dict()
    gpuconv.save(state, path)  # as another tool's: names and arrays alone
    assert "does not say how to build its network; give --model" in train("--from", path)
    text = train("--from", path, "--model", "lenet")
    assert "fc3.weight has shape (10, 100), this model's is (3, 100)" in text
    assert "--classes 3 puts a new head there" in text
    ended = train("--from", path, "--model", "lenet", "--classes", "3", "--freeze", "conv1.weight")
    assert (ended.weights["conv1.weight"] == state["conv1.weight"]).all()
    assert not (ended.weights["conv1.bias"] == state["conv1.bias"]).all()
    text = train("--from", path, "--model", "lenet5", "--size", "32", "--classes", "3")
    assert "of another architecture" in text
    state["conv1.weight"] = np.zeros((6, 3, 5, 5), np.float32)
    gpuconv.save(state, path)
    text = train("--from", path, "--model", "lenet", "--classes", "3")
    assert "conv1.weight has shape (6, 3, 5, 5), this model's is (6, 1, 5, 5)" in text
    assert "puts a new head" not in text


def test_a_file_of_ones_own_without_num_classes_gets_a_head(train, tmp_path):
    file = own_network.write(tmp_path)
    text = train("--model", f"{file}three", "--size", "28", "--classes", "4")
    assert "new head fc" in train.said
    assert text.weights["fc.weight"].shape == (4, 144)
    assert text.metadata["model"]["head"] == 4
    run = next(tmp_path.glob("run*"))
    again = gpuconv.load(run / "last.safetensors", f"{file}three")
    assert (again.fc.weight.data == text.weights["fc.weight"]).all()


def test_a_resumed_run_keeps_what_is_frozen(train, tmp_path, capsys):
    model, path = small(), tmp_path / "small.safetensors"
    model.input_shape = (1, 8, 8)
    gpuconv.save(model, path)
    train("--from", path, "--classes", "3", "--freeze", "conv1,bn")
    run = str(next(tmp_path.glob("run*")))
    assert main(["train", "--resume", run, "--epochs", "2", "--from", str(path)]) == 2
    assert "--from is for a new run" in capsys.readouterr().err
    path.unlink()  # its weights are in the run now
    assert main(["train", "--resume", run, "--epochs", "2"]) == 0
    ended = checkpoint.read(f"{run}/last.safetensors")
    assert (ended.weights["conv1.weight"] == model.conv1.weight.data).all()
    assert ended.weights["bn.num_batches_tracked"] == 0
    assert main(["train", "--resume", run, "--epochs", "3", "--freeze", ""]) == 0  # none
    ended = checkpoint.read(f"{run}/last.safetensors")
    assert not (ended.weights["conv1.weight"] == model.conv1.weight.data).any()
    assert ended.weights["bn.num_batches_tracked"] == 3


def test_freeze_in_python():
    """Against the loss of the frozen layers alone: nothing of them moves, the rest does."""
    model = small()
    model.freeze("conv1", "bn").train()
    assert not model.bn.training
    assert model.conv2.training
    before = {name: array.copy() for name, array in model.state_dict().items()}
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    for _ in range(2):
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(model(x), np.arange(5)).backward()
        optimizer.step()
    moved = {name for name, array in model.state_dict().items() if (array != before[name]).any()}
    assert moved == {"conv2.weight", "conv2.bias", "fc.weight", "fc.bias"}
    assert model.requires_grad_(True).train().bn.training
    with pytest.raises(ValueError, match="unknown layer 'fcc'; did you mean 'fc'"):
        model.freeze("conv1", "fcc")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.torch
@pytest.mark.slow
def test_torchvisions_format_from_a_pt_file(train, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {
        name: torch.tensor(a) for name, a in models.resnet18(in_channels=1).state_dict().items()
    }
    torch.save(state, tmp_path / "resnet18.pth")
    ended = train("--from", tmp_path / "resnet18.pth", "--model", "resnet18", "--classes", "3",
                  "--size", "32", "--freeze", "conv1,bn1,layer1,layer2,layer3")  # fmt: skip
    for name, array in ended.weights.items():
        if name.startswith(("conv1", "bn1", "layer1", "layer2", "layer3")):
            assert (array == state[name].numpy()).all(), name
    assert ended.weights["fc.weight"].shape == (3, 512)
    assert not (
        ended.weights["layer4.0.conv1.weight"] == state["layer4.0.conv1.weight"].numpy()
    ).all()
