"""Work of optimisers over all parameters on a device: kernels/optim.cu, kernels/clip.cu.

A step, the moving average of the weights, and clipping by the gradients' norm. State arrays lie in
memory as their parameters do, so that element i of one belongs to element i of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby, pairwise
from operator import itemgetter
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
from gpuconv.cuda.recording import again, state
from gpuconv.strides import channels_last, in_c_order

if TYPE_CHECKING:
    from gpuconv.cuda.runtime import Runtime
    from gpuconv.optim.optimizer import Optimizer

CHUNK = 4096  # elements of a block: kernels/optim.cu
WORDS = 6  # of a tensor's row in the table: p, grad, three slots, count
TABLES = 16  # that are kept on a device
# What each kernel takes that may change from step to step, in its order.
NUMBERS: dict[str, tuple[str, ...]] = {
    "sgd": ("lr", "decay"),
    "sgd_momentum": ("lr", "decay", "momentum", "share"),
    "average": ("share",),
    **dict.fromkeys(
        ("adam", "adam_amsgrad"),
        ("keep", "decay", "share1", "beta2", "share2", "eps", "step_size", "root"),
    ),
}
OWN = {"sgd_momentum": NUMBERS["sgd_momentum"][3:], "adam": NUMBERS["adam"][6:]}
OWN["adam_amsgrad"] = OWN["adam"]  # numbers that depend on how many steps a parameter had


@lru_cache(maxsize=CACHED)
def config_optimizer(kernel: str, chunks: int, tensors: int) -> LaunchConfig:
    """A kernel of optim.cu over `chunks` chunks of so many tensors; the optimiser's own numbers
    (lr, decay, ...) no shape decides.
    """
    require_int32(kernel, chunks=chunks)
    grid = (min(max(chunks, 1), LOOP_BLOCKS), 1, 1)
    sizes = {"tensors": tensors * WORDS, "owner": chunks, "part": chunks, "stop": 1}
    sizes["step"] = len(NUMBERS[kernel])
    launch = Launch("optim.cu", kernel, grid, THREADS, (), {"chunks": chunks}, sizes)
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_clip(chunks: int, tensors: int) -> LaunchConfig:
    """square_sums, clip_factor and clip: the tensors, in place, from "max_norm", a number; "norm"
    gets their joint norm, "factor" what they are multiplied by, and the norm in float32.
    """
    require_int32("clip", chunks=chunks)
    grid = (min(max(chunks, 1), LOOP_BLOCKS), 1, 1)
    sizes = {"tensors": tensors * WORDS, "owner": chunks, "part": chunks}
    sizes |= {"partials": chunks, "norm": 1, "factor": 2}
    one = (1, 1, 1)
    return LaunchConfig(
        tuple(
            Launch("clip.cu", kernel, blocks, THREADS, (), {"chunks": chunks}, sizes)
            for kernel, blocks in (("square_sums", grid), ("clip_factor", one), ("clip", grid))
        )
    )


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
    """Update the chosen parameters, which are on a device and have a gradient: one launch for those
    of a group that have had as many steps.

    Raises TypeError or ValueError naming the parameter where a gradient or a state does not fit.
    """
    on = runtime_of(optimizer._name, [optimizer.params[i].data for i in chosen])
    with on.inside(optimizer.params[chosen[0]].data):
        rows = {i: _row(on, optimizer, i) for i in chosen}
        for _, alike in _in_step(optimizer, chosen):
            first = not optimizer._state[alike[0]]
            for i in alike:
                optimizer._state[i] = rows[i][1]
            _update(on, optimizer, alike, [rows[i][0] for i in alike], first)


def _in_step(optimizer: Optimizer, chosen: Sequence[int]) -> Iterator[tuple[Any, list[int]]]:
    """The parameters that take the same numbers: of one group, after as many steps."""

    def key(i: int) -> tuple[int, int, bool]:
        return optimizer._owner[i], optimizer.steps[i], not optimizer._state[i]

    for numbers, alike in groupby(sorted(chosen, key=key), key):
        yield numbers, list(alike)


def _update(
    on: Runtime, optimizer: Optimizer, alike: list[int], rows: list[list[Any]], first: bool
) -> None:
    """One launch for parameters that take the same numbers."""
    group = optimizer.param_groups[optimizer._owner[alike[0]]]
    kernel, shared = optimizer._kernel(group)
    fixed = {name: int(v) for name, v in shared.items() if isinstance(v, bool)}
    own = OWN.get(kernel, ())
    chosen = itemgetter(*NUMBERS[kernel][: len(NUMBERS[kernel]) - len(own)])
    before = optimizer.steps[alike[0]]

    def advance() -> tuple[float, ...]:
        now, numbers = optimizer._kernel(group)
        if now != kernel or not fixed.items() <= numbers.items():
            raise RuntimeError(f"{optimizer._name}: another kind of step than the recorded one")
        steps = optimizer.steps
        step = steps[alike[0]] + 1
        for i in alike:
            steps[i] = step
        more = optimizer._numbers(group, step, first and step == before + 1) if own else ()
        return tuple(map(float, (*chosen(numbers), *more)))

    numbers = dict(zip(NUMBERS[kernel], again(advance, partial(_snapshot, optimizer)), strict=True))
    _launch(on, kernel, rows, {**numbers, **fixed})


def _snapshot(optimizer: Optimizer) -> Any:
    return partial(optimizer.steps.__setitem__, slice(None), list(optimizer.steps))


def move_averages(pairs: Sequence[tuple[Any, Any]], share: Callable[[], float]) -> None:
    """average += (value - average) * share() for pairs (average, value), laid out alike."""
    on = runtime_of("EMA", [value for _, value in pairs])
    (number,) = again(lambda: (share(),), lambda: lambda: None)
    with on.inside(pairs[0][1]):
        _launch(on, "average", [list(pair) for pair in pairs], {"share": number})


def _launch(on: Runtime, kernel: str, rows: list[list[Any]], numbers: dict[str, Any]) -> None:
    tables = _tables(on, kernel, rows)
    config = config_optimizer(kernel, tables["owner"].size, len(rows))
    given = {"step": on.nought(np.float32, len(NUMBERS[kernel])), "stop": on.nought(np.uint32)}
    on.run(config, numbers, **tables, **given)


def clip(on: Runtime, gradients: Sequence[Any], max_norm: float) -> float:
    """Scale gradients, in place, as `clip_grad_norm` does; their norm before."""
    tables = _tables(on, "clip", [[g] for g in gradients])
    count = tables["owner"].size
    norm, factor = on.empty(1, np.float64), on.empty(2)
    arrays = {**tables, "norm": norm, "factor": factor, "partials": on.empty(count, np.float64)}
    on.run(config_clip(count, len(gradients)), {"max_norm": max_norm}, **arrays)
    if state.recorder is not None:
        state.recorder.note_norm(factor[1:2])
    return float(on.read(norm)[0])


def runtime_of(what: str, arrays: Sequence[Any]) -> Runtime:
    """The runtime of arrays on a device. TypeError for arrays of several."""
    from gpuconv.cuda.runtime import runtime

    names = {device_of(array) or "nowhere" for array in arrays}
    if len(names) > 1:
        raise TypeError(f"{what}: parameters on several devices: {sorted(names)}")
    return runtime(names.pop())


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


def _tables(on: Runtime, kernel: str, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The arrays' addresses and sizes as optim.cu takes them, on the device; no two arrays may
    share memory. Addresses repeat from step to step, so the tables are kept.
    """
    key = on.here(), tuple([(*map(on.address, row), row[0].size) for row in rows])
    known = on.tables
    found = known.pop(key, None)
    if found is None:
        _require_apart(kernel, [on.view(array) for row in rows for array in row])
        owner, part = chunks([row[0].size for row in rows])
        table = np.zeros((len(rows), WORDS), np.uint64)
        for number, (*addresses, count) in enumerate(key[1]):
            table[number, : len(addresses)] = addresses
            table[number, -1] = count
        found = {
            "tensors": on.constant(table),
            "owner": on.constant(np.asarray(owner, np.int32)),
            "part": on.constant(np.asarray(part, np.int32)),
        }
    elif state.recorder is not None:
        state.recorder.keep(found)
    while len(known) >= TABLES:
        known.pop(next(iter(known)))  # the one unused for longest
    known[key] = found
    return found


def _require_apart(kernel: str, views: list[Any]) -> None:
    """ValueError where two of the arrays share memory: one would be updated twice."""
    ordered = sorted(views, key=lambda view: view.address)
    for a, b in pairwise(ordered):
        if a.size and b.size and a.overlaps(b):
            raise ValueError(f"{kernel}: two of the optimiser's arrays overlap in memory")
