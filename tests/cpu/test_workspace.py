"""Memory of the cpu path from one step to the next."""

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import numpy as np
from gpuconv import models, nn, optim

model, criterion = models.lenet(), nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
x = np.ones((128, 1, 32, 32), np.float32)
labels = np.zeros(128, np.int64)

def steps(count):
    for _ in range(count):
        optimizer.zero_grad()
        criterion(model(x), labels).backward()
        optimizer.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

before = steps(20)
print((steps(40) - before) / 40)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about the GNU C library")
def test_a_step_finds_its_memory_where_the_last_one_left_it():
    """Pages that the kernel has to hand out in each step: 440 before, each of 4 kB."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40


ROUNDS = """
import resource
import numpy as np
import gpuconv.cpu.workspace

def faults():
    arrays = [np.ones(5_000_000, np.float32) for _ in range(10)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about the GNU C library")
def test_the_arrays_of_a_deep_network_find_their_memory_too():
    """200 MB, far more than the 64 MB that glibc keeps by itself; a page has 2 MB at most."""
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 40
