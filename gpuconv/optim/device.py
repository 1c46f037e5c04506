"""A step of an optimiser over all parameters on a device, in one launch: kernels/optim.cu.

State arrays lie in memory as their parameters do, so that element i of one belongs to element i of
the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.arrays import device_of, to_device
from gpuconv.cuda.launch_config import (
    CACHED,
    LOOP_BLOCKS,
    THREADS,
    Launch,
    LaunchConfig,
    ceil_div,
    require_int32,
)
from gpuconv.strides import channels_last, in_c_order

if TYPE_CHECKING:
    from gpuconv.cuda.runtime import Runtime
    from gpuconv.optim.optimizer import Optimizer

CHUNK = 4096  # elements of a block: kernels/optim.cu
WORDS = 6  # of a tensor's row in the table: p, grad, three slots, count


@lru_cache(maxsize=CACHED)
def config_optimizer(kernel: str, chunks: int, tensors: int) -> LaunchConfig:
    """A kernel of optim.cu ("sgd", "sgd_momentum", "adam", "adam_amsgrad") over `chunks` chunks of
    so many tensors; the optimiser's own numbers (lr, decay, ...) no shape decides.
    """
    require_int32(kernel, chunks=chunks)
    grid = (min(max(chunks, 1), LOOP_BLOCKS), 1, 1)
    tables = {"tensors": tensors * WORDS, "numbers": 2 * tensors}
    sizes = {**tables, "owner": chunks, "part": chunks}
    launch = Launch("optim.cu", kernel, grid, THREADS, (), {"chunks": chunks}, sizes)
    return LaunchConfig((launch,))


def chunks(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """(owner, part) of every chunk of tensors of these sizes, as optim.cu's kernels take them."""
    owner: list[int] = []
    part: list[int] = []
    for tensor, count in enumerate(counts):
        parts = ceil_div(count, CHUNK)
        owner += [tensor] * parts
        part += range(parts)
    return owner, part


def step(optimizer: Optimizer, chosen: Sequence[int]) -> None:
    """Update the chosen parameters, which are on a device and have a gradient: one launch for each
    group and kernel.

    Raises TypeError or ValueError naming the parameter where a gradient or a state does not fit.
    """
    from gpuconv.cuda.runtime import runtime

    names = {device_of(optimizer.params[i].data) or "nowhere" for i in chosen}
    if len(names) > 1:
        raise TypeError(f"{optimizer._name}: parameters on several devices: {sorted(names)}")
    on = runtime(names.pop())
    with on.inside(optimizer.params[chosen[0]].data):
        rows = {i: _row(on, optimizer, i) for i in chosen}
        for k, group in enumerate(optimizer.param_groups):
            of_group = [i for i in chosen if optimizer._owner[i] == k]
            if not of_group:
                continue
            kernel, scalars = optimizer._kernel(group)
            numbers = []
            for i in of_group:
                first = not optimizer._state[i]
                optimizer.steps[i] += 1
                own = optimizer._numbers(group, optimizer.steps[i], first)
                numbers.append((*own, 0.0, 0.0)[:2])
                optimizer._state[i] = rows[i][1]
            _update(on, kernel, [rows[i][0] for i in of_group], numbers, scalars)


def like(own: Any, array: np.ndarray) -> Any:
    """A copy of a NumPy array on the device of `own`, laid out in memory as `own` is."""
    host = np.asarray(array, own.dtype)
    return to_device(host, device_of(own) or "cpu", weights=not _c_order(own))


def _row(on: Runtime, optimizer: Optimizer, i: int) -> tuple[list[Any], dict[str, Any]]:
    """p, grad and the state arrays of one parameter, float32, of one shape, dense, in one order;
    and the state arrays by name.
    """
    p, name = optimizer.params[i], optimizer._named(i)
    grad: Any = p.grad
    if device_of(grad) != device_of(p.data):
        raise TypeError(f"{name} is on {device_of(p.data)}, its grad on {device_of(grad)}")
    if grad.shape != p.data.shape:
        raise ValueError(f"{name} has shape {p.data.shape}, its grad {grad.shape}")
    for what, array in ((name, p.data), (f"{name}'s grad", grad)):
        if array.dtype != np.float32:
            raise TypeError(f"{what} must be float32, got {array.dtype}")
    if not (_c_order(p.data) or channels_last(p.data)):
        p.data = on.contiguous(p.data)
    last = not _c_order(p.data)
    grad = on.as_nchw(on.as_nhwc(grad)) if last else on.contiguous(grad)
    state = dict(optimizer._state[i])
    used = optimizer._slots(optimizer.param_groups[optimizer._owner[i]])
    for slot in used:
        if slot not in state:
            state[slot] = like(p.data, np.zeros(p.data.shape, np.float32))
    for array in state.values():
        if device_of(array) != device_of(p.data) or array.shape != p.data.shape:
            raise ValueError(
                f"{name} became {device_of(p.data)} x {p.data.shape}, its state is "
                f"{device_of(array)} x {array.shape}; make the optimiser after model.to()"
            )
    return [p.data, grad, *(state[slot] for slot in used)], state


def _c_order(array: Any) -> bool:
    return in_c_order(array.shape, array.strides, array.dtype.itemsize)


def _update(
    on: Runtime,
    kernel: str,
    rows: list[list[Any]],
    numbers: list[tuple[float, ...]],
    scalars: dict[str, float],
) -> None:
    """Launch over a table of the arrays' addresses; no two arrays may share memory."""
    counts = [row[0].size for row in rows]
    _require_apart(kernel, [on.view(array) for row in rows for array in row])
    owner, part = chunks(counts)
    table = np.zeros((len(rows), WORDS), np.uint64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = [on.address(array) for array in row]
        table[number, -1] = counts[number]
    tables: dict[str, np.ndarray] = {
        "tensors": table,
        "numbers": np.asarray(numbers, np.float32),
        "owner": np.asarray(owner, np.int32),
        "part": np.asarray(part, np.int32),
    }
    scalars = {name: int(v) if isinstance(v, bool) else v for name, v in scalars.items()}
    config = config_optimizer(kernel, len(owner), len(rows))
    on.run(config, scalars, **{name: on.asarray(array) for name, array in tables.items()})


def _require_apart(kernel: str, views: list[Any]) -> None:
    """ValueError where two of the arrays share memory: one would be updated twice."""
    ordered = sorted(views, key=lambda view: view.address)
    for a, b in pairwise(ordered):
        if a.size and b.size and a.overlaps(b):
            raise ValueError(f"{kernel}: two of the optimiser's arrays overlap in memory")
