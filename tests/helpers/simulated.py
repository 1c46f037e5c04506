"""What the tests of the runtimes share: the device they run on, moves, the bound.

DEVICE is sim unless GPUCONV_TEST_DEVICE says cuda, as `make gpu-check` does. Where the simulator
cannot run its tests are skipped; a GPU that was asked for and does not answer is an error.
"""

import os

import numpy as np
import pytest

from gpuconv.arrays import require, to_device, to_numpy


class _Elsewhere:
    """In place of the simulator where tests run on a GPU: what is about it is skipped."""

    def __getattr__(self, name):
        if name.startswith(("_", "pytest")):  # pytest asks every name of a module for these
            raise AttributeError(name)
        pytest.skip(f"is about the simulator's own {name}, and this runs on {DEVICE}")


DEVICE = os.environ.get("GPUCONV_TEST_DEVICE", "sim")
if DEVICE == "cuda":
    require(DEVICE)
    sim = _Elsewhere()
else:
    sim = pytest.importorskip("gpuconv.sim", reason="the simulator's packages are not installed")
    if sim.available():
        pytest.skip(sim.available(), allow_module_level=True)

UNIT = 2.0**-24  # rounding of one float32 operation


def on(device, *arrays):
    return tuple(to_device(a, device) if isinstance(a, np.ndarray) else a for a in arrays)


def single(*arrays):
    """float32 and the same numbers as float64; what is no float array passes."""
    low = tuple(a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in arrays)
    return low, tuple(a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in low)


def gamma(terms):
    """The relative error of a sum of `terms` products, each operation rounded once."""
    return terms * UNIT / (1 - terms * UNIT)


def assert_within(found, expected, bound):
    """Every element of a device's array within its own bound; NaN nowhere."""
    host = to_numpy(found)
    assert host.shape == expected.shape
    assert host.dtype == np.float32
    wrong = ~(np.abs(host - expected) <= bound)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} wrong, first at {np.argwhere(wrong)[0]}"
