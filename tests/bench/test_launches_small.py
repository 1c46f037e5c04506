"""Small networks' training steps: how many launches, of how many blocks, with how little waste. The
gates are on what benchmarks/launches.py counts from configurations; the simulator confirms that.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from counted import COUNTER
from simulated import DEVICE

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import launches

if DEVICE != "sim":
    pytest.skip("launches are counted on the simulator's arrays", allow_module_level=True)

from gpuconv import sim
from gpuconv.cuda import source
from gpuconv.cuda.runtime import runtime

# Whose work is no more than that of their blocks: scores, of one block; and rows or features so few
# that there are not as many tiles or rows.
FEW_BLOCKS = {"cross_entropy_and_gradient", "sgd_momentum", "linear_small_backward"}


def step(name, batch):
    found = launches.training_step(launches.network(name), batch)
    needed = sum(one.launch.multiply_adds for one in found)
    return found, sum(launches.executed(one.launch) for one in found) / needed


@pytest.mark.parametrize(("batch", "most"), [(64, 45e-6), (128, 45e-6), (512, 90e-6)])
def test_lenets_step_is_few_launches_of_many_blocks(batch, most):
    found, waste = step("lenet", batch)
    assert len(found) <= 10
    assert waste <= 1.6
    assert sum(map(launches.seconds, found)) <= most
    for one in found:
        if one.launch.kernel not in FEW_BLOCKS:
            rows = batch if one.launch.kernel == "linear_chain_forward" else 100
            assert one.blocks >= min(100, rows), one.launch.kernel
        assert launches.executed(one.launch) <= 2 * one.launch.multiply_adds or (
            one.launch.kernel == "linear_small_backward"  # ten features in tiles of 16 by 32
            and one.launch.multiply_adds <= 2000 * batch
        )


@pytest.mark.parametrize("name", ["lenet5", "tinyvgg"])
def test_networks_like_it_waste_little_too(name):
    for batch in (64, 512):
        assert step(name, batch)[1] <= 2.0


def test_needed_are_three_passes_of_each_layer():
    """Forward, to the input but of the first layer, and to the weights."""
    found, _ = step("lenet", 64)
    layers = [28 * 28 * 6 * 25, 10 * 10 * 16 * 150, 400 * 120, 120 * 100, 100 * 10]
    needed = sum(one.launch.multiply_adds for one in found)
    assert needed == 64 * (3 * sum(layers) - layers[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet", "tinyvgg"])
def test_the_simulator_executes_as_many(name):
    """By block, counted at every multiply-add: not more than the configurations say, and in the
    longest block just that, but for rows past the last.
    """
    model = launches.network(name)
    images = np.random.default_rng(0).standard_normal((40, *model.input_shape), np.float32)
    run, device = launches.step_of(model.to("sim"), images), runtime("sim")
    device.recorded = []
    try:
        run()
        steps = device.recorded
    finally:
        device.recorded = None
    for launch, arguments in steps:
        by_block = executed_by_block(launch, arguments)
        assert by_block.sum() <= launches.executed(launch), launch.kernel
        longest = launches.cycles(launch) * launches.LANES * launches.ISSUED
        longest *= launches.SMALL.get(launch.kernel, 1.0)
        assert by_block.max() <= round(longest), launch.kernel
        assert by_block.max() >= 0.9 * longest, launch.kernel


def executed_by_block(launch, arguments):
    """One more run, by a kernel that counts."""
    text = COUNTER.replace("executed;", "executed[65536];").replace(
        "atomicAdd(&executed, 1ull)",
        "++executed[blockIdx.x]",  # a block runs on one core
    )
    module = sim.Module(text + source.text(launch.file), launch.options, name=launch.file)
    module.launch(launch.kernel, launch.grid, launch.block, arguments, launch.shared)
    try:
        return sim.asnumpy(module.variable("executed", np.uint64)).astype(np.int64)
    except ValueError:  # a kernel without a single fmaf
        return np.zeros(1, np.int64)
