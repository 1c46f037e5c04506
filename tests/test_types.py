"""Type checkers see the signatures of operations, models and layers: wrong arguments are errors."""

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


@pytest.mark.slow  # .ci/run runs it by name
def test_wrong_arguments_are_errors(tmp_path):
    pytest.importorskip("mypy")
    script = tmp_path / "script.py"
    script.write_text(SNIPPET)
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n"
    )
    command = [sys.executable, "-m", "mypy", "--no-color-output", "script.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    lines = enumerate(SNIPPET.splitlines(), 1)
    assert found == {n for n, line in lines if line.endswith("# wrong")}, done.stdout + done.stderr


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "gpuconv" / "py.typed").exists()
