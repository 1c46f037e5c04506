"""Runs launch configurations on DEVICE (tests/helpers/simulated.py: the simulator, or a GPU).

Outputs are poisoned before and stand between guard words; inputs must not change.
The arrays are NumPy's, in the kernels' own layout (channels last). Modules are compiled once a
process for each file and specialisation.
"""

from functools import cache

import numpy as np
from simulated import DEVICE, sim

from gpuconv.cuda import source
from gpuconv.cuda.launch_config import LIMITS, require_fits
from gpuconv.cuda.runtime import runtime
from gpuconv.ops import batch_norm2d_launch, conv2d_launch

F4 = np.float32
GUARD = 64  # floats before and after every output, which nobody may touch
POISON = 0xAB
ran: dict[str, int] = {}  # kernels and how often they ran, for the summary


@cache
def module(file, options, check):
    return sim.Module(source.text(file), options, name=file, check=check)


def asarray(host):
    """A NumPy array copied to the device, in C order."""
    return runtime(DEVICE).asarray(np.ascontiguousarray(host))


def asnumpy(array):
    return runtime(DEVICE).asnumpy(array)


def address(array):
    return runtime(DEVICE).address(array)


def run(config, inputs, outputs, numbers=None, order="forward", seed=0, check=False):
    """{name: array} of outputs = {name: (shape, dtype)}, after the configuration's launches.

    numbers: the kernels' numbers that no shape decides.
    Outputs and the workspace hold 0xAB before the first launch and stand between guard words.
    order, seed, check: of the simulator; a GPU has an order of its own.
    """
    held = {name: asarray(a) for name, a in inputs.items()}
    held["tickets"] = asarray(np.zeros(config.tickets, np.uint32))
    raw = {}
    wanted = {**outputs, "workspace": ((config.workspace,), np.float32)}
    for name, (shape, dtype) in wanted.items():
        count = int(np.prod(shape))
        nbytes = count * np.dtype(dtype).itemsize
        whole = np.full(nbytes + 8 * GUARD, POISON, np.uint8)
        raw[name] = asarray(whole)
        held[name] = raw[name][4 * GUARD : 4 * GUARD + nbytes]
    if config.tickets:
        held["tickets"] = asarray(np.zeros(config.tickets, np.uint32))
    for launch in config.launches:
        for limits in LIMITS.values():
            require_fits(launch, limits)
        start(launch, held, numbers, order, seed, check)
    assert not config.tickets or not asnumpy(held["tickets"]).any(), "tickets are left"
    found = {}
    for name, (shape, dtype) in wanted.items():
        whole = asnumpy(raw[name])
        nbytes = whole.size - 8 * GUARD
        assert (whole[: 4 * GUARD] == POISON).all(), f"{name}: written before its start"
        assert (whole[4 * GUARD + nbytes :] == POISON).all(), f"{name}: written past its end"
        found[name] = whole[4 * GUARD : 4 * GUARD + nbytes].view(dtype).reshape(shape)
    assert not asnumpy(held["tickets"]).any(), "tickets are left"
    for name, a in inputs.items():
        after = asnumpy(held[name])
        assert after.tobytes() == np.ascontiguousarray(a).tobytes(), f"{name} was changed"
    return found


def start(launch, held, numbers=None, order="forward", seed=0, check=False):
    """One launch over arrays of the device by name, its numbers as the signature has them.

    The arrays must have as many elements as the configuration says that the kernel reaches.
    """
    signature = source.kernels(launch.file, launch.defines)[launch.kernel]
    names = {p.name for p in signature.parameters if not p.pointer}
    scalars = {**launch.scalars, **{n: v for n, v in (numbers or {}).items() if n in names}}
    assert names == set(scalars), names ^ set(scalars)
    arguments = []
    for p in signature.parameters:
        if p.pointer:
            key, size = launch.arrays.get(p.name, p.name), launch.sizes[p.name]
            if p.name in ("step", "stop") and key not in held:  # this is no recorded step
                held = {**held, key: asarray(np.zeros(size, p.dtype))}
            array = held[key]
            assert size is None or size * p.dtype.itemsize == array.nbytes, p.name
            arguments.append(array)
        else:
            arguments.append(p.dtype.type(scalars[p.name]))
    ran[launch.kernel] = ran.get(launch.kernel, 0) + 1
    if DEVICE == "cuda":
        runtime(DEVICE).start(launch, arguments)
        return
    module(launch.file, launch.options, check).launch(
        launch.kernel, launch.grid, launch.block, arguments, launch.shared, order, seed
    )


def set_constant(patch, module, name, value):
    """A constant of launch configurations changed while `patch` lasts, none being cached."""
    patch.setattr(module, name, value)
    for owner in (conv2d_launch, batch_norm2d_launch):
        for key, function in list(vars(owner).items()):
            if key.startswith("config_") and hasattr(function, "__wrapped__"):
                patch.setattr(owner, key, function.__wrapped__)


def how_of(seed):
    """How a sweep's case is run: orders in turn, one of four with all checks, races too.

    Which one differs, so that whatever else goes by remainders of the seed meets the checks too.
    """
    order = ("forward", "reverse", "shuffled")[seed % 3]
    return {"order": order, "seed": seed, "check": seed % 4 == seed // 4 % 4}


def last(a):
    """NCHW to the kernels' NHWC, and OIHW to KRSC."""
    return np.ascontiguousarray(np.moveaxis(a, 1, -1))


def first(a):
    """The reverse of `last`."""
    return np.ascontiguousarray(np.moveaxis(a, -1, 1))


def gamma(terms):
    """The proved bound of a float32 sum of products: |error| <= gamma * sum of |products|."""
    u = 2.0**-24
    return terms * u / (1 - terms * u)


def assert_within(value, exact, bound):
    """|value - exact| <= bound, element by element; a NaN fails."""
    assert value.shape == exact.shape
    wrong = ~(np.abs(value - exact) <= bound)
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} elements, the first at {np.argwhere(wrong)[0]}: "
        f"{value[wrong][0]} for {exact[wrong][0]}"
    )
