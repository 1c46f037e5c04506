"""What a launch must know about a lowered module, kept beside the machine code in the cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field


@dataclass
class Parameter:
    """One kernel parameter as PTX declares it; `pointer`: True, False, or None where the code does
    not tell.
    """

    name: str
    type: str
    offset: int
    size: int
    array: bool
    pointer: bool | None


@dataclass
class Kernel:
    """What a launch must know about a lowered kernel."""

    name: str
    parameters: list[Parameter]
    parameter_bytes: int
    static_shared: int  # as declared
    placed_shared: int  # as laid out: with checks there are gaps
    dynamic_shared: bool
    coroutine: bool
    serial: bool
    flush: bool
    max_threads: int
    local_bytes: int
    shared_names: list[tuple[str, int, int]]
    granule: int  # bytes of its narrowest access, at most 4


@dataclass
class Info:
    """Everything but the machine code: kept beside it in the cache."""

    kernels: dict[str, Kernel] = field(default_factory=dict)
    sites: list[tuple[str, int, str]] = field(default_factory=list)
    variables: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_json(data: dict) -> Info:
        kernels = {}
        for name, kernel in data["kernels"].items():
            parameters = [Parameter(**p) for p in kernel.pop("parameters")]
            kernels[name] = Kernel(parameters=parameters, **kernel)
        return Info(kernels, [tuple(site) for site in data["sites"]], data["variables"])
