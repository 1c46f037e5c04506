"""The cpu path needs neither CuPy nor the simulator's packages, and other devices say what they
need.
"""

import subprocess
import sys

SCRIPT = r"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cupy", "cuda"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Absent())
import numpy as np
import gpuconv

model = gpuconv.models.lenet()
model(np.zeros((1, 1, 32, 32), np.float32)).sum().backward()
assert not {"gpuconv.sim", "gpuconv.cuda.cupy", "gpuconv.cuda.sim"} & set(sys.modules)
for device in ("cuda", "sim"):
    try:
        model.to(device)
    except gpuconv.errors.DeviceError as error:
        print(error)
assert model.device == "cpu"
"""


def test_cpu_alone():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cuda, sim = done.stdout.splitlines()
    assert cuda.startswith("device cuda: CuPy is not installed: pip install 'gpuconv[cuda12]'")
    assert sim.startswith("device sim: the simulator needs NVRTC: pip install 'gpuconv[sim]'")
