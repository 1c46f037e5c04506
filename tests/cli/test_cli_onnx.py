"""`gpuconv onnx`, and an ONNX file in the place of a checkpoint."""

import sys

import numpy as np
import pytest

import gpuconv
from gpuconv import data, models
from gpuconv.cli.main import main

OWN = """
from gpuconv import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 5, rng=0), nn.Linear(4, 3, rng=1)

    def forward(self, x):
        return self.fc(nn.functional.relu(self.conv(x)).mean((2, 3)))
"""


@pytest.mark.onnx
def test_a_checkpoint_there_and_every_command_on_the_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.chdir(tmp_path)
    names = list("abcdefghij")
    scale = {"mean": [0.1307], "std": [0.3081]}
    gpuconv.save(
        models.lenet(seed=0), "net.safetensors", input=scale, classes=names, dark_border=True,
        image_shape=[1, 28, 28], settings={"data": "mnist", "epochs": 3}, epoch=2,
    )  # fmt: skip
    assert main(["onnx", "net.safetensors", "-o", "net.onnx"]) == 0
    assert capsys.readouterr().out.endswith("opset 20; the input x is (batch, 1, 32, 32)\n")
    data.save_image("digit.png", data.load("mnist", "test").images[0])
    for command in (
        ["predict", "{}", "digit.png"],
        ["evaluate", "{}", "--limit", "60"],
        ["summary", "{}"],
        ["explain", "{}", "--index", "3", "-o", "why.png"],
        ["patches", "{}", "--layer", "conv1", "--limit", "20", "-o", "patches.png"],
        ["filters", "{}", "-o", "filters.png"],
    ):
        found = []
        for file in ("net.safetensors", "net.onnx"):
            assert main([part.format(file) for part in command]) == 0
            found.append(capsys.readouterr().out.replace(file, "FILE"))
        if command[0] == "summary":  # functions are no layers, so they have no lines
            found = [text.partition("\n\n")[2] for text in found]
        if command[0] in ("predict", "summary", "filters"):
            assert found[0] == found[1]
    assert main(["show", "net.onnx", "--export", "page.html"]) == 0
    begin = ["--from", "net.onnx", "--freeze", "conv1", "--limit", "60", "--epochs", "1"]
    assert main(["train", *begin, "--batch", "20", "--model", "lenet", "--out", "run"]) == 0
    tuned, first = gpuconv.load("run/last.safetensors").state_dict(), models.lenet(seed=0)
    for name, value in first.state_dict().items():
        assert np.array_equal(value, tuned[name]) == name.startswith("conv1"), name


@pytest.mark.onnx
def test_a_network_of_ones_own(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx", reason="onnx is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(OWN)
    network = models.from_file("mynet.py:Net")
    gpuconv.save(network, "net.safetensors")
    own = ["--model", "mynet.py:Net"]
    assert main(["onnx", "net.safetensors", *own]) == 2
    assert "give its input_shape" in capsys.readouterr().err
    assert main(["onnx", "net.safetensors", *own, "--input", "1,9,8", "-o", "net.onnx"]) == 0
    again = gpuconv.load("net.onnx")
    x = np.random.default_rng(0).random((2, 1, 9, 8), dtype=np.float32)
    np.testing.assert_allclose(again(x).numpy(), network.eval()(x).numpy(), 1e-5, 1e-6)
    (tmp_path / "bad.onnx").write_text("no file of ONNX")
    for file in ("bad.onnx", "none.onnx"):
        assert main(["predict", file, "digit.png"]) == 2
        assert capsys.readouterr().err.startswith(f"gpuconv: {file}: ")


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.chdir(tmp_path)
    gpuconv.save(models.lenet(seed=None), "net.safetensors")
    (tmp_path / "net.onnx").write_bytes(b"")
    for command in (["onnx", "net.safetensors"], ["summary", "net.onnx"]):
        assert main(command) == 2
        assert "pip install 'gpuconv[onnx]'" in capsys.readouterr().err
