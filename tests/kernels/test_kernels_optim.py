"""The optimisers' kernels against the CPU's loops: equal bits."""

import numpy as np
import pytest
from kernel_runs import F4, address, asarray, asnumpy, start

from gpuconv.nn import Parameter
from gpuconv.optim import SGD, Adam, AdamW
from gpuconv.optim.device import chunks, config_optimizer

COUNTS = [1, 3, 4, 400, 4095, 4096, 4097, 9001]


class Tensors:
    """Parameters, gradients and three slots on the device, and the tables of optim.cu."""

    def __init__(self, arrays, misaligned):
        self.shift = 1 if misaligned else 0  # one float past a multiple of 16 bytes
        self.raw = [[self._between(a) for a in row] for row in arrays]
        owner, part = chunks([row[0].size for row in arrays])
        self.counts = [row[0].size for row in arrays]
        self.owner, self.part = (asarray(np.array(a, np.int32)) for a in (owner, part))
        self.number = len(owner)

    def _between(self, a):
        """On the device, between words that nobody may touch."""
        return asarray(np.concatenate([np.full(self.shift + 4, 7, F4), a, np.full(4, 7, F4)]))

    def _held(self, tensor, slot):
        begin = self.shift + 4
        return self.raw[tensor][slot][begin : begin + self.counts[tensor]]

    def load(self, slot, arrays):
        for row, a in zip(self.raw, arrays, strict=True):
            row[slot] = self._between(a)

    def step(self, kernel, **scalars):
        (launch,) = config_optimizer(kernel, self.number, len(self.counts)).launches
        held = {"tensors": self.table(), "owner": self.owner, "part": self.part}
        start(launch, held, scalars)

    def table(self):
        table = [
            [address(self._held(i, slot)) for slot in range(5)] + [count]
            for i, count in enumerate(self.counts)
        ]
        return asarray(np.array(table, np.uint64))

    def values(self, slot):
        for row in self.raw:
            whole = asnumpy(row[slot])
            assert (whole[:4] == 7).all()
            assert (whole[-4:] == 7).all()
        return [asnumpy(self._held(i, slot)) for i in range(len(self.counts))]


def draw():
    rng = np.random.default_rng(51)
    return [rng.standard_normal(n).astype(F4) for n in COUNTS], [
        [rng.standard_normal(n).astype(F4) for n in COUNTS] for _ in range(3)
    ]


def compare(optimizer, kernel, own, scalars, slots, misaligned):
    """Three steps of the CPU's optimiser and of the kernel."""
    start, gradients = draw()
    zeros = [[np.zeros(a.size, F4) for _ in range(3)] for a in start]
    device = Tensors([[a, a, *z] for a, z in zip(start, zeros, strict=True)], misaligned)
    params = [Parameter(a.copy()) for a in start]
    cpu = optimizer(params)
    for step, grads in enumerate(gradients):
        device.load(1, grads)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        cpu.step()
        device.step(kernel, **scalars, **own(step))
    for value, p in zip(device.values(0), params, strict=True):
        np.testing.assert_array_equal(value, p.data)
    for slot in range(slots):
        for value, state in zip(device.values(2 + slot), cpu._state, strict=True):
            np.testing.assert_array_equal(value, state[cpu.slots[slot]])


@pytest.mark.parametrize("misaligned", [False, True])
def test_sgd(misaligned):
    scalars = {"lr": 0.05, "decay": 0.01}
    compare(lambda p: SGD(p, 0.05, weight_decay=0.01), "sgd", lambda _: {}, scalars, 0, misaligned)


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize(("nesterov", "dampening"), [(False, 0.0), (True, 0.0), (False, 0.3)])
def test_momentum(nesterov, dampening, misaligned):
    scalars = {"lr": 0.05, "decay": 0.01, "momentum": 0.9, "nesterov": int(nesterov)}
    compare(
        lambda p: SGD(p, 0.05, 0.9, nesterov, 0.01, dampening),
        "sgd_momentum",
        lambda step: {"share": 1.0 if step == 0 else 1.0 - dampening},
        scalars,
        1,
        misaligned,
    )


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_adam(kind, amsgrad, misaligned):
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
        lambda p: kind(p, lr, (b1, b2), eps, decay, amsgrad),
        "adam_amsgrad" if amsgrad else "adam",
        lambda step: {
            "step_size": lr / (1 - b1 ** (step + 1)),
            "root": (1 - b2 ** (step + 1)) ** 0.5,
        },
        scalars,
        3 if amsgrad else 2,
        misaligned,
    )
