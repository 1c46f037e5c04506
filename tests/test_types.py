"""Type checkers see the signatures of operations, models and layers, and what a call returns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SNIPPET = """\
import numpy as np
import gpuconv
from gpuconv import models, nn, ops

x, w = np.zeros((1, 1, 8, 8), np.float32), np.zeros((2, 1, 3, 3), np.float32)
ops.conv2d(x, w, stride=(1, 2), padding="same")
ops.conv2d(x, w, strides=1)  # wrong
ops.conv2d.reference(x, w, strides=1)  # wrong
ops.max_pool2d(x, "2")  # wrong
models.resnet18(num_classes=10, seed=None, recompute=True)
models.resnet18(num_class=10)  # wrong
models.lenet(seed="0")  # wrong
nn.Conv2d(1, 2, 3, padding=1)
nn.Conv2d(1, 2, 3, strides=1)  # wrong
gpuconv.load("x.safetensors", device="cpu")  # wrong
"""
NETWORK = """\
from gpuconv import models, nn
from gpuconv.nn import functional as F

class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return self.norm(self.conv(x))

class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), nn.ReLU())
        self.block = Block()
        self.fc = nn.Linear(3, 2)

    def features(self, x: nn.Tensor) -> nn.Tensor:
        return self.blocks(x)

    def inner(self, x: nn.Tensor) -> nn.Tensor:
        return self.block(x)

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.features(self.inner(x)), 1).flatten(1))

class Two(nn.Module):
    def forward(self, x: nn.Tensor) -> tuple[nn.Tensor, nn.Tensor]:
        return x, x

def outputs(x: nn.Tensor) -> nn.Tensor:
    models.lenet().conv1.weight.grad = None
    nn.CrossEntropyLoss()(Net()(x), [0]).backward()
    Net()(x).backwards()  # wrong
    return Two()(x)  # wrong
"""


@pytest.mark.slow  # .ci/run runs it by name
@pytest.mark.parametrize(("snippet", "options"), [(SNIPPET, ()), (NETWORK, ("--strict",))])
def test_what_mypy_finds_wrong(tmp_path, snippet, options):
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(snippet)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-color-output", *options, "script.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    lines = enumerate(snippet.splitlines(), 1)
    assert found == {n for n, line in lines if line.endswith("# wrong")}, done.stdout + done.stderr


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "gpuconv" / "py.typed").exists()
