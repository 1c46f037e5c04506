"""The optimisers' kernels, run by the simulator, against the CPU's loops: equal bits."""

import numpy as np
import pytest
from kernel_runs import F4, module, ran, sim

from gpuconv.nn.layer import Parameter
from gpuconv.optim import SGD, Adam, AdamW
from gpuconv.runtime import plan_dense, source

COUNTS = [1, 3, 4, 400, 4095, 4096, 4097, 9001]


class Tensors:
    """Parameters, gradients and two slots on the device, and the tables of optim.cu."""

    def __init__(self, arrays, misaligned):
        shift = 1 if misaligned else 0  # one float past a multiple of 16 bytes
        self.raw = [
            [
                sim.asarray(np.concatenate([np.full(shift + 4, 7, F4), a, np.full(4, 7, F4)]))
                for a in row
            ]
            for row in arrays
        ]
        self.held = [
            [raw[shift + 4 : shift + 4 + a.size] for raw, a in zip(raws, row, strict=True)]
            for raws, row in zip(self.raw, arrays, strict=True)
        ]
        table = [[a.ptr for a in row] + [row[0].size] for row in self.held]
        owner, part = plan_dense.chunks([row[0].size for row in self.held])
        self.tensors = sim.asarray(np.array(table, np.uint64))
        self.owner, self.part = (sim.asarray(np.array(a, np.int32)) for a in (owner, part))
        self.number = len(owner)

    def step(self, kernel, numbers, **scalars):
        (launch,) = plan_dense.optimizer(kernel, self.number, **scalars).launches
        held = {
            "tensors": self.tensors,
            "numbers": sim.asarray(np.array(numbers, F4)),
            "owner": self.owner,
            "part": self.part,
        }
        signature = source.kernels(launch.file)[kernel]
        arguments = [
            held[p.name] if p.pointer else p.dtype.type(launch.scalars[p.name])
            for p in signature.parameters
        ]
        ran[kernel] = ran.get(kernel, 0) + 1
        module(launch.file, (), False).launch(kernel, launch.grid, launch.block, arguments)

    def values(self, slot):
        for raws in self.raw:
            whole = sim.asnumpy(raws[slot])
            assert (whole[:4] == 7).all()
            assert (whole[-4:] == 7).all()
        return [sim.asnumpy(row[slot]) for row in self.held]


def draw():
    rng = np.random.default_rng(51)
    return [rng.standard_normal(n).astype(F4) for n in COUNTS], [
        [rng.standard_normal(n).astype(F4) for n in COUNTS] for _ in range(3)
    ]


def compare(optimizer, kernel, numbers, scalars, slots, misaligned):
    """Three steps of the CPU's optimiser and of the kernel."""
    start, gradients = draw()
    zeros = [[np.zeros(a.size, F4) for _ in range(2)] for a in start]
    device = Tensors([[a, a, *z] for a, z in zip(start, zeros, strict=True)], misaligned)
    params = [Parameter(a.copy()) for a in start]
    cpu = optimizer(params)
    for step, grads in enumerate(gradients):
        for p, g, row in zip(params, grads, device.held, strict=True):
            p.grad = g
            sim.memory._bytes(row[1]).view(F4)[...] = g
        cpu.step()
        device.step(kernel, [numbers(step)] * len(params), **scalars)
    for value, p in zip(device.values(0), params, strict=True):
        np.testing.assert_array_equal(value, p.data)
    for slot in range(slots):
        for value, state in zip(device.values(2 + slot), cpu._state, strict=True):
            np.testing.assert_array_equal(value, state[slot])


@pytest.mark.parametrize("misaligned", [False, True])
def test_sgd(misaligned):
    scalars = {"lr": 0.05, "decay": 0.01}
    compare(
        lambda p: SGD(p, 0.05, weight_decay=0.01), "sgd", lambda _: (0, 0), scalars, 0, misaligned
    )


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize(("nesterov", "dampening"), [(False, 0.0), (True, 0.0), (False, 0.3)])
def test_momentum(nesterov, dampening, misaligned):
    scalars = {"lr": 0.05, "decay": 0.01, "momentum": 0.9, "nesterov": int(nesterov)}
    compare(
        lambda p: SGD(p, 0.05, 0.9, nesterov, 0.01, dampening),
        "sgd_momentum",
        lambda step: (1.0 if step == 0 else 1.0 - dampening, 0),
        scalars,
        1,
        misaligned,
    )


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_adam(kind, misaligned):
    lr, (b1, b2), eps, decay = 1e-2, (0.9, 0.99), 1e-8, 0.02
    decoupled = kind is AdamW
    scalars = {
        "keep": 1 - lr * decay if decoupled else 1.0,
        "decay": 0.0 if decoupled else decay,
        "share1": 1 - b1,
        "beta2": b2,
        "share2": 1 - b2,
        "eps": eps,
    }
    compare(
        lambda p: kind(p, lr, (b1, b2), eps, decay),
        "adam",
        lambda step: (lr / (1 - b1 ** (step + 1)), (1 - b2 ** (step + 1)) ** 0.5),
        scalars,
        2,
        misaligned,
    )
