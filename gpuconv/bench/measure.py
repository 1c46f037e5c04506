"""`measure`: check a pass, time it, check it again. A wrong result gets no time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.arrays import device_of, to_device, to_numpy
from gpuconv.bench.ceilings import Ceilings
from gpuconv.bench.clock import Times, cpu_times
from gpuconv.bench.workloads import DATA, AnyWorkload
from gpuconv.errors import DeviceError
from gpuconv.ops.cost import Cost
from gpuconv.precision import as_floats, require_precision

MAX_SETS, MAX_BYTES = 256, 1 << 30
NO_KERNEL = "no kernel"  # a status begins so
CUDA_SETS = 8  # the cache is flushed besides


class WrongResult(ArithmeticError):
    """A result that is not the reference's: nothing was timed, or the times are void."""


@dataclass(frozen=True)
class Row:
    """One pass on one device. times None: not timed, `status` says why; else it is "ok".

    kernels: of a GPU, every launch by name, in order, with its own times where they were taken.
    """

    case: str
    label: str
    direction: str
    device: str
    cost: Cost
    status: str = "ok"
    times: Times | None = None
    kernels: list[tuple[str, Times | None]] = field(default_factory=list)

    @property
    def flops(self) -> float | None:
        """FLOP/s; None without times, or where only memory traffic is counted."""
        return self.cost.flops / self.times.median if self.times and self.cost.flops else None

    @property
    def bytes(self) -> float | None:
        """Bytes per second, of the least traffic."""
        return self.cost.bytes / self.times.median if self.times else None

    @property
    def under_ceiling(self) -> bool:
        """Whether the measured ceilings are its own: not for products of another precision."""
        return not (self.cost.flops and "precision=" in self.case)

    def share(self, ceilings: Ceilings) -> float | None:
        """The least time that the roofline allows, as a share of the time taken."""
        if self.times is None or not self.under_ceiling:
            return None
        return self.cost.seconds(ceilings.flops, ceilings.bytes) / self.times.median

    def record(self, ceilings: Ceilings) -> dict[str, Any]:
        """For JSON: seconds, counts, and rates a second."""
        found = asdict(self)
        found["kernels"] = [{"name": name, "times": times} for name, times in found["kernels"]]
        bound = self.cost.bound(ceilings.flops, ceilings.bytes) if self.under_ceiling else None
        rates = {"flops_per_s": self.flops, "bytes_per_s": self.bytes}
        return found | rates | {"share_of_ceiling": self.share(ceilings), "bound": bound}


def measure(
    workload: AnyWorkload,
    device: str,
    seconds: float,
    clock: Any = None,
    layout: str = "nhwc",
    each: bool = False,
) -> Row:
    """The pass on device "cpu" or "cuda", timed for about `seconds`.

    clock: a `cuda.Clock` for cuda. layout: of images in the card's memory; with "nchw" the
    conversion is part of the pass. each: time every launch by itself too. A wrong result, and an
    operation without kernels, give a row without times. Raises DeviceError for a device that has
    no times, or fails; ValueError for a precision that the device lacks.
    """
    require_precision("bench: precision", workload.case.precision, device)
    fields = str(workload.case), workload.case.label, workload.direction, device, workload.cost
    if device not in ("cpu", "cuda"):
        reason = "it exists to check results, and its times mean nothing"
        raise DeviceError(f"bench: device {device}: {reason}; use cpu or cuda")
    try:
        if device == "cpu":
            return Row(*fields, times=_on_cpu(workload, seconds))
        if not workload.kernels:
            return Row(*fields, status=NO_KERNEL)
        times, kernels = _on_cuda(workload, seconds, clock, layout, each)
        return Row(*fields, times=times, kernels=kernels)
    except NotImplementedError as error:  # of this card, or of this shape in 16 bits
        return Row(*fields, status=f"{NO_KERNEL}: {error}")
    except WrongResult as error:
        return Row(*fields, status=f"wrong: {error}")


def _on_cpu(workload: AnyWorkload, seconds: float) -> Times:
    count = _sets(workload, 2 * cache_bytes())
    calls = [workload.prepare(_arguments(workload, np.copy)) for _ in range(count)]
    first = _host(calls[0]())
    require_right(workload, first)
    times = cpu_times(calls, seconds)
    if workload.in_place:
        calls = [workload.prepare(_arguments(workload, np.copy))]
    _require_same(first, _host(calls[-1]()), "after the timing")
    return times


def _on_cuda(
    workload: AnyWorkload, seconds: float, clock: Any, layout: str, each: bool
) -> tuple[Times, list[tuple[str, Times | None]]]:
    def prepared() -> tuple[Any, list[Any], Any]:
        moved = _arguments(workload, lambda a: to_device(a, "cuda", weights=layout == "nhwc"))
        return recorded(clock.on, workload, moved)

    made = [prepared() for _ in range(min(max(2, _sets(workload, 2 * clock.cache)), CUDA_SETS))]
    first = _host(made[0][0])
    require_right(workload, first)
    for outputs, *_ in made[1:]:
        _require_same(first, _host(outputs), "in another set of buffers")
    if not workload.in_place:
        for outputs, *_ in made:
            for array in outputs:
                if device_of(array):
                    clock.poison(array)
    sets = [launches for _, launches, _ in made]
    times = clock.times(sets, seconds)
    kernels: list[tuple[str, Times | None]] = []
    for number, (launch, _) in enumerate(sets[0]):
        alone = len(sets[0]) == 1
        own = times if alone else None
        if each and not alone:
            own = clock.times([[one[number]] for one in sets], seconds / len(sets[0]))
        kernels.append((launch.kernel, own))
    for outputs, *_ in [prepared()] if workload.in_place else made:
        _require_same(first, _host(outputs), "after the timing")
    return times, kernels


def recorded(
    on: Any, workload: AnyWorkload, arguments: tuple[Any, ...]
) -> tuple[Any, list[Any], Any]:
    """(what the pass returns, the launches it consists of, the call), on runtime `on`.

    The launches hold their arrays, so that starting them again writes the same results. The call
    must be kept as long: an optimiser's launches hold addresses of arrays that only it keeps alive.

    The half of a backward pass that gives dx is what the whole launches beyond the other half.
    WrongResult where nothing was launched.
    """
    launches: list[Any] = []
    others: list[Any] = []
    call = workload.prepare(arguments)
    try:
        on.recorded = launches
        outputs = call()
        if workload.direction == DATA:
            on.recorded = others
            at = list(workload.op.parameters).index("need_dx")  # type: ignore[union-attr]
            workload.run((*arguments[:at], False, *arguments[at + 1 :]))  # type: ignore[union-attr]
    finally:
        on.recorded = None
    for other, _ in others:
        plain = [launch for launch, _ in launches]
        if other in plain:
            del launches[plain.index(other)]
    if not launches:
        raise WrongResult("no kernel was launched")
    return outputs, launches, call


def require_right(workload: AnyWorkload, found: Sequence[Any]) -> None:
    """Raise WrongResult unless every element is within its bound of the reference, without NaN."""
    expected = workload.expected()
    if len(found) != len(expected):
        raise WrongResult(f"{len(found)} results, {len(expected)} expected")
    for number, (one, (exact, bound)) in enumerate(zip(found, expected, strict=True)):
        host = as_floats(np.asarray(one))
        if host.shape != exact.shape:
            raise WrongResult(f"result {number} has shape {host.shape}, not {exact.shape}")
        wrong = ~(np.abs(host.astype(np.float64) - exact) <= bound)
        if wrong.any():
            where = tuple(map(int, np.argwhere(wrong)[0]))
            raise WrongResult(
                f"{wrong.sum()} of {wrong.size} elements of result {number}, the first at {where}: "
                f"{host[where]} for {exact[where]}"
            )


def cache_bytes() -> int:
    """The size of the CPU's largest cache, from Linux; else 32 MiB."""
    sizes = [32 << 20]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) << 10)
    return max(sizes)


def _sets(workload: AnyWorkload, minimum: int) -> int:
    """How many sets of buffers are together larger than the cache, at most MAX_SETS."""
    one = max(workload.cost.bytes, 1)
    return int(max(1, min(-(-minimum // one), MAX_SETS, MAX_BYTES // one)))


def _arguments(workload: AnyWorkload, each: Callable[[np.ndarray], Any]) -> tuple[Any, ...]:
    return tuple(each(a) if isinstance(a, np.ndarray) else a for a in workload.arguments)


def _host(found: Sequence[Any]) -> list[np.ndarray]:
    return [np.array(to_numpy(one)) for one in found]


def _require_same(first: Sequence[Any], again: Sequence[Any], when: str) -> None:
    """WrongResult unless arrays have the same bytes: a pass gives the same bits each time."""
    for number, (a, b) in enumerate(zip(first, again, strict=True)):
        if np.asarray(a).tobytes() != np.asarray(b).tobytes():
            raise WrongResult(f"result {number} has other bits {when}")
