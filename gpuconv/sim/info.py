"""What a launch needs to know about a lowered module; kept with the machine code in the cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpuconv.sim.counting import Access, Executed
from gpuconv.sim.program import Variable


@dataclass
class Kernel:
    """A lowered kernel: its parameters and how it must be launched."""

    name: str
    parameters: list[Variable]
    parameter_bytes: int
    static_shared: int  # as declared
    placed_shared: int  # as laid out, with the gaps of checked mode
    dynamic_shared: bool
    coroutine: bool  # it has collectives, so each of its threads is a coroutine
    serial: bool  # its result depends on the order of blocks, which then run one by one
    talks: bool  # its blocks may read what others wrote, by atomic or volatile reads or fences
    together: (
        int  # blocks that a worker has under way at once, at most; 1 if none waits for another
    )
    flush: bool  # it runs in the processor's flush-to-zero mode
    max_threads: int
    local_bytes: int
    shared_names: list[tuple[str, int, int]]
    copies: bool  # it has cp.async
    # bytes that a record of race detection stands for: by argument, -1 for other global memory, -2
    # for shared memory
    granules: dict[int, int]
    workspace: bool  # it asks for the memory by which the blocks of a grid synchronise

    def shared_places(self, total: int) -> list[tuple[int, int]]:
        """Address and size of each shared variable; `total` bytes include the dynamic one."""
        places = [(begin, size) for _, begin, size in self.shared_names]
        if self.dynamic_shared:
            places.append((self.placed_shared, total - self.placed_shared))
        return places


@dataclass
class Info:
    """All of a lowered module but its machine code."""

    kernels: dict[str, Kernel] = field(default_factory=dict)
    sites: list[tuple[str, int, str]] = field(default_factory=list)  # file, line, PTX instruction
    arguments: list[int] = field(default_factory=list)  # which one a site accesses; -1 for unknown
    variables: dict[str, int] = field(default_factory=dict)  # name to size in bytes
    constants: set[str] = field(default_factory=set)  # those in constant memory
    # counted mode: instructions, their memory accesses, and the instructions of each segment
    executed: list[Executed] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    segments: list[list[int]] = field(default_factory=list)
