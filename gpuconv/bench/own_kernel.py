"""A user's own kernel: timed on a card, counted in the simulator. `gpuconv bench --kernel`.

The launch file (gpuconv/sim/spec.py) makes the arrays, starts the kernel and tests what it wrote:
it runs once for each set of arrays before the timing, and once more after it. FLOP in the file is
the number of floating-point operations of one launch; bytes are those of all arrays, each once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpuconv.bench.ceilings import Ceilings
from gpuconv.bench.clock import Times
from gpuconv.bench.measure import CUDA_SETS
from gpuconv.sim import Module, SimError, available, spec, to_ptx
from gpuconv.sim.render import COUNTED, table
from gpuconv.sim.signature import plain_name
from gpuconv.sim.spec import Launched, Launches, Runner, Source, SpecError

CUPY_OPTIONS = ("-std=c++17",)  # to which CuPy adds -ftz=true


@dataclass(frozen=True)
class OwnKernel:
    """A kernel of a file, and how it is launched. flop: of one launch, None where nobody says."""

    source: Source
    name: str
    launches: Launches
    flop: float | None

    @classmethod
    def read(cls, kernel: str, launch: str) -> OwnKernel:
        """kernel: "file.cu:name". Raises ValueError and OSError for files that are wrong."""
        path, colon, name = kernel.rpartition(":")
        if not (colon and path.endswith(".cu") and name):
            raise ValueError(f"bench: --kernel takes FILE.cu:NAME, got {kernel!r}")
        source = Source.read(path)
        if name not in source.signatures:
            there = ", ".join(source.signatures) or "none"
            raise ValueError(f"bench: no kernel {name!r} in {path}, it has: {there}")
        launches, names = spec.load_names(launch)
        return cls(source, name, launches, names.get("FLOP"))

    def chosen(self, run: Runner) -> Launched:
        """The first launch of this kernel among those of a run."""
        for one in run.launches:
            if plain_name(one.kernel) == self.name:
                return one
        raise SpecError(f"the launch file never launches {self.name}")


def counts(kernel: OwnKernel) -> str:
    """What the launch file's launches of the kernel do, counted in the simulator, as a table."""
    try:
        module = kernel.source.module(count=True)
        run = Runner(kernel.source, module.kernels, partial(_simulate, module))
        kernel.launches(run)
    except SimError as error:
        raise ValueError(str(error)) from error
    symbol = kernel.chosen(run).kernel
    return f"{kernel.name}: {COUNTED}\n{table(module.counters(symbol))}"


def _simulate(module: Module, one: Launched) -> None:
    module.launch(one.kernel, one.grid, one.block, one.args, one.shared)


@dataclass(frozen=True)
class Timed:
    """Times of one launch, its operations (None: unknown), the bytes of its arrays."""

    times: Times
    flop: float | None
    bytes: int

    def share(self, ceilings: Ceilings) -> float:
        """The least time that the ceilings allow, as a share of the time taken."""
        least = max((self.flop or 0) / ceilings.flops, self.bytes / ceilings.bytes)
        return least / self.times.median


def timed(kernel: OwnKernel, clock: Any, seconds: float) -> Timed:
    """Time the kernel on the card of a `cuda.Clock` for about `seconds`.

    Each run uses the next of several sets of arrays, after the L2 cache has been flushed. Raises
    SpecError where the launch file's own tests fail, before the timing or after it.
    """
    on = clock.on
    options = (*CUPY_OPTIONS, *kernel.source.options())
    module = on.cupy.RawModule(code=kernel.source.text, options=options, backend="nvrtc")
    start, names = partial(_start, module), _symbols(kernel.source)

    def prepared() -> Launched:
        run = Runner(kernel.source, names, start, on)
        kernel.launches(run)
        return kernel.chosen(run)

    sets = [prepared() for _ in range(CUDA_SETS)]
    calls: list[Callable[[], None]] = [partial(start, one) for one in sets]
    arrays = {id(a): a.nbytes for a in sets[0].args if hasattr(a, "nbytes") and a.shape}
    times = clock.calls(calls, seconds)
    on.synchronize()
    prepared()
    return Timed(times, kernel.flop, sum(arrays.values()))


def _symbols(source: Source) -> list[str]:
    """The compiler's names of the kernels; those of the source, right for extern "C", where the
    simulator's compiler is not installed.
    """
    if available():
        return list(source.signatures)
    return re.findall(r"\.entry\s+(\w+)", to_ptx(source.text, source.options(), name=source.path))


def _start(module: Any, one: Launched) -> None:
    parameters = one.signature.parameters if one.signature else ()
    args = [
        parameter.dtype.type(value) if parameter.dtype and not parameter.pointer else value
        for parameter, value in zip(parameters, one.args, strict=True)
    ]
    shape = [(n,) if isinstance(n, int | np.integer) else tuple(n) for n in (one.grid, one.block)]
    grid, block = (n + (1,) * (3 - len(n)) for n in shape)
    module.get_function(one.kernel)(grid, block, tuple(args), shared_mem=one.shared)
