"""Work of optimisers over all parameters on a device: kernels/optim.cu, clip.cu, scaler.cu.

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

from gpuconv.arrays import contiguous, device_of, to_device
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
    from gpuconv.autograd import Parameter
    from gpuconv.cuda.runtime import Runtime
    from gpuconv.optim.loss_scale import LossScaler
    from gpuconv.optim.optimizer import Optimizer

CHUNK = 4096  # elements of a block: kernels/optim.cu
WORDS = 6  # of a tensor's row in the table: p, grad, three slots, count
TABLES = 16  # that are kept on a device
SCALER_WORDS = 5  # of a LossScaler's state
# What each kernel takes that may change from step to step, in its order.
NUMBERS: dict[str, tuple[str, ...]] = {
    "sgd": ("lr", "decay"),
    "sgd_momentum": ("lr", "decay", "momentum", "share"),
    "average": ("share",),
    **dict.fromkeys(
        ("adam", "adam_amsgrad"),
        ("keep", "decay", "share1", "beta2", "share2", "eps", "step_size", "root"),
    ),
    "momentum_numbers": ("lr", "decay", "momentum", "share", "attempts"),
    "adam_numbers": ("keep", "decay", "share1", "beta2", "share2", "eps", "lr", "attempts"),
}
# What makes those numbers on the device that depend on how many steps were not skipped.
TIMED = {
    "sgd_momentum": "momentum_numbers",
    **dict.fromkeys(("adam", "adam_amsgrad"), "adam_numbers"),
}
OWN = {"sgd_momentum": NUMBERS["sgd_momentum"][3:], "adam": NUMBERS["adam"][6:]}
OWN["adam_amsgrad"] = OWN["adam"]  # numbers that depend on how many steps a parameter had
OWN |= {"momentum_numbers": ("share", "attempts"), "adam_numbers": ("lr", "attempts")}


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


@lru_cache(maxsize=CACHED)
def config_unscale(chunks: int, tensors: int, growth: int) -> LaunchConfig:
    """unscale and turn_scale of scaler.cu."""
    require_int32("unscale", chunks=chunks)
    sizes = {"tensors": tensors * WORDS, "owner": chunks, "part": chunks}
    sizes |= {"state": SCALER_WORDS, "found": 1, "skip": 1, "stop": 1}
    grid = (min(max(chunks, 1), LOOP_BLOCKS), 1, 1)
    first = Launch("scaler.cu", "unscale", grid, THREADS, (), {"chunks": chunks}, sizes)
    turn = Launch("scaler.cu", "turn_scale", (1, 1, 1), 32, (), {"growth": growth}, sizes)
    return LaunchConfig((first, turn))


@lru_cache(maxsize=CACHED)
def config_numbers(kernel: str) -> LaunchConfig:
    """adam_numbers or momentum_numbers: "numbers", from the numbers that no shape decides."""
    made = next(len(NUMBERS[name]) for name, by in TIMED.items() if by == kernel)
    sizes = {"numbers": made, "state": SCALER_WORDS, "step": len(NUMBERS[kernel])}
    return LaunchConfig((Launch("scaler.cu", kernel, (1, 1, 1), 32, (), {}, sizes),))


def chunks(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """(owner, part) of every chunk of tensors of these sizes, as optim.cu's kernels take them."""
    owner: list[int] = []
    part: list[int] = []
    for tensor, count in enumerate(counts):
        parts = ceil_div(count, CHUNK)
        owner += [tensor] * parts
        part += range(parts)
    return owner, part


def step(optimizer: Optimizer, chosen: Sequence[int], scaler: LossScaler | None = None) -> None:
    """Update the chosen parameters, which are on a device and have a gradient: one launch for those
    of a group that have had as many steps. scaler: decides whether anything changes.

    Raises TypeError or ValueError naming the parameter where a gradient or a state does not fit.
    """
    on = runtime_of(optimizer._name, [optimizer.params[i].data for i in chosen])
    with on.inside(optimizer.params[chosen[0]].data):
        rows = {i: _row(on, optimizer, i) for i in chosen}
        for _, alike in _in_step(optimizer, chosen):
            first = not optimizer._state[alike[0]]
            for i in alike:
                optimizer._state[i] = rows[i][1]
            _update(on, optimizer, alike, [rows[i][0] for i in alike], first, scaler)


def _in_step(optimizer: Optimizer, chosen: Sequence[int]) -> Iterator[tuple[Any, list[int]]]:
    """The parameters that take the same numbers: of one group, after as many steps."""

    def key(i: int) -> tuple[int, int, bool]:
        return optimizer._owner[i], optimizer.steps[i], not optimizer._state[i]

    for numbers, alike in groupby(sorted(chosen, key=key), key):
        yield numbers, list(alike)


def _update(
    on: Runtime,
    optimizer: Optimizer,
    alike: list[int],
    rows: list[list[Any]],
    first: bool,
    scaler: LossScaler | None,
) -> None:
    """One launch for parameters that take the same numbers."""
    group = optimizer.param_groups[optimizer._owner[alike[0]]]
    kernel, shared = optimizer._kernel(group)
    fixed = {name: int(v) for name, v in shared.items() if isinstance(v, bool)}
    maker = None if scaler is None else TIMED.get(kernel)
    names, own = NUMBERS[maker or kernel], OWN.get(maker or kernel, ())
    chosen = itemgetter(*names[: len(names) - len(own)])
    before = optimizer.steps[alike[0]]

    def advance() -> tuple[float, ...]:
        now, numbers = optimizer._kernel(group)
        if now != kernel or not fixed.items() <= numbers.items():
            raise RuntimeError(f"{optimizer._name}: another kind of step than the recorded one")
        steps = optimizer.steps
        step = steps[alike[0]] + 1
        for i in alike:
            steps[i] = step
        more: tuple[float, ...] = ()
        if maker is not None and scaler is not None:
            more = optimizer._untimed(group), step + scaler.skipped
        elif own:
            more = optimizer._numbers(group, step, first and step == before + 1)
        return tuple(map(float, (*chosen(numbers), *more)))

    numbers = dict(zip(names, again(advance, partial(_snapshot, optimizer)), strict=True))
    stop = None if scaler is None else scaler.skip
    if maker is None or scaler is None:
        _launch(on, kernel, rows, {**numbers, **fixed}, stop=stop)
        return
    made, zeros = on.empty(len(NUMBERS[kernel])), on.nought(np.float32, len(names))
    on.run(config_numbers(maker), numbers, numbers=made, state=scaler.state, step=zeros)
    nothing = dict.fromkeys(NUMBERS[kernel], 0.0)
    _launch(on, kernel, rows, {**nothing, **fixed}, made, stop)


def _snapshot(optimizer: Optimizer) -> Any:
    return partial(optimizer.steps.__setitem__, slice(None), list(optimizer.steps))


def move_averages(
    pairs: Sequence[tuple[Any, Any]],
    share: Callable[[], float],
    scaler: LossScaler | None = None,
) -> None:
    """average += (value - average) * share() for pairs (average, value), laid out alike; nothing
    where the scaler skips the step.
    """
    on = runtime_of("EMA", [value for _, value in pairs])
    (number,) = again(lambda: (share(),), lambda: lambda: None)
    with on.inside(pairs[0][1]):
        stop = None if scaler is None else scaler.skip
        _launch(on, "average", [list(pair) for pair in pairs], {"share": number}, stop=stop)


def _launch(
    on: Runtime,
    kernel: str,
    rows: list[list[Any]],
    numbers: dict[str, Any],
    step: Any = None,
    stop: Any = None,
) -> None:
    tables = _tables(on, kernel, rows)
    config = config_optimizer(kernel, tables["owner"].size, len(rows))
    given = {
        "step": on.nought(np.float32, len(NUMBERS[kernel])) if step is None else step,
        "stop": on.nought(np.uint32) if stop is None else stop,
    }
    on.run(config, numbers, **tables, **given)


def clip(on: Runtime, gradients: Sequence[Any], max_norm: float, noted: bool = True) -> float:
    """Scale gradients, in place, as `clip_grad_norm` does; their norm before. noted: whether one
    that is not finite stops a recorded step.
    """
    tables = _tables(on, "clip", [[g] for g in gradients])
    count = tables["owner"].size
    norm, factor = on.empty(1, np.float64), on.empty(2)
    arrays = {**tables, "norm": norm, "factor": factor, "partials": on.empty(count, np.float64)}
    on.run(config_clip(count, len(gradients)), {"max_norm": max_norm}, **arrays)
    if noted and state.recorder is not None:
        state.recorder.note_norm(factor[1:2])
    return float(on.read(norm)[0])


def unscale(on: Runtime, chosen: Sequence[Parameter], scaler: LossScaler) -> None:
    """`LossScaler.unscale` of parameters on a device."""
    with on.inside(scaler.state):
        make_dense(chosen)
        tables = _tables(on, "unscale", [[p.grad] for p in chosen])
        config = config_unscale(tables["owner"].size, len(chosen), scaler.growth)
        words = {"state": scaler.state, "found": scaler.found, "skip": scaler.skip}
        on.run(config, **tables, **words, stop=on.nought(np.uint32))


def make_dense(chosen: Sequence[Parameter]) -> None:
    """Give gradients memory that kernels go through: in C order, or channels-last."""
    for p in chosen:
        if not channels_last(p.grad):
            p.grad = contiguous(p.grad)


def runtime_named(device: str) -> Runtime:
    """The runtime of "sim" or "cuda"."""
    from gpuconv.cuda.runtime import runtime

    return runtime(device)


def runtime_of(what: str, arrays: Sequence[Any]) -> Runtime:
    """The runtime of arrays on a device. TypeError for arrays of several."""
    names = {device_of(array) or "nowhere" for array in arrays}
    if len(names) > 1:
        raise TypeError(f"{what}: parameters on several devices: {sorted(names)}")
    return runtime_named(names.pop())


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
