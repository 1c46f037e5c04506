"""What the compiler says of a kernel on an architecture: registers, spills, occupancy, its loops.

A cubin is built for a real architecture and read with NVIDIA's cuobjdump and nvdisasm. Nothing
runs. `roofline` adds what a named card needs at least for counted work.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gpuconv.sim.errors import SimError

# Of a multiprocessor: threads, blocks, bytes of shared memory. CUDA Programming Guide 13,
# "Technical Specifications per Compute Capability".
PROCESSORS = {
    "sm_75": (1024, 16, 64 << 10),
    "sm_80": (2048, 32, 164 << 10),
    "sm_86": (1536, 16, 100 << 10),
    "sm_89": (1536, 24, 100 << 10),
    "sm_90a": (2048, 32, 228 << 10),
    "sm_100": (2048, 32, 228 << 10),
    "sm_120": (1536, 24, 100 << 10),
}
REGISTERS = 65536  # of a multiprocessor
OF_SYSTEM = 1024  # bytes of a block's shared memory that CUDA takes for itself, from sm_80 on
_LEAVE_OUT = ("sm_75", "sm_80", "sm_86", "sm_89")  # these are not among the bytes in a cubin
_UNIT = 256  # registers of a warp are given in such units, and warps in fours
# Peak FP32 TFLOP/s without tensor cores and GB/s of device memory, from NVIDIA's data sheets.
CARDS = {
    "t4": ("sm_75", 8.1, 320),
    "a100": ("sm_80", 19.5, 1555),
    "a10": ("sm_86", 31.2, 600),
    "rtx3090": ("sm_86", 35.6, 936),
    "l4": ("sm_89", 30.3, 300),
    "rtx4090": ("sm_89", 82.6, 1008),
    "h100": ("sm_90a", 66.9, 3350),
    "h200": ("sm_90a", 66.9, 4800),
    "rtx5090": ("sm_120", 104.8, 1792),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that a multiprocessor holds at once, the most warps it can hold, and what
    limits them: "threads", "blocks", "registers" or "shared memory".
    """

    blocks: int
    warps: int
    most: int
    limiter: str


@dataclass(frozen=True)
class Facts:
    """A kernel on one architecture. shared: static bytes; spills: loads and stores of local memory
    in the machine code; loop: opcodes of the main loop, counted; instructions: of the whole kernel.
    """

    kernel: str
    arch: str
    registers: int
    stack: int
    shared: int
    spills: int
    instructions: int
    loop: dict[str, int]


def tool(name: str) -> str:
    """The path of a CUDA command ("cuobjdump", "nvdisasm").

    Raises SimError, naming the package, where it is not installed.
    """
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations or () if spec else ():
        for path in Path(root).glob(f"*/bin/{name}*"):
            if path.stem == name:
                return str(path)
    if found := shutil.which(name):
        return found
    raise SimError(f"{name} is not installed: pip install nvidia-cuda-{name}")


def facts(cubin: bytes, arch: str) -> dict[str, Facts]:
    """The facts of every kernel in a cubin, by name. Raises SimError without NVIDIA's tools."""
    code = disassembly(cubin)
    found = {}
    for kernel, (registers, stack, shared, _) in resources(cubin).items():
        if shared and arch not in _LEAVE_OUT:
            shared -= OF_SYSTEM
        opcodes = Counter(re.findall(_OPCODE, code[kernel], re.M))
        spills = sum(count for name, count in opcodes.items() if name in ("LDL", "STL"))
        cycles = [loop for loop in loops(code[kernel]) if loop[2].total() > 1]  # code ends in one
        counts = dict(_main_loop(cycles).most_common()) if cycles else {}
        total = sum(opcodes.values())
        found[kernel] = Facts(kernel, arch, registers, stack, shared, spills, total, counts)
    return found


def _main_loop(found: list[tuple[int, int, Counter[str]]]) -> Counter[str]:
    """The opcodes of the loop with the most arithmetic, or of one inside that has half of it; where
    none does arithmetic, of the longest.
    """

    def math(loop: tuple[int, int, Counter[str]]) -> int:
        kinds = ("FFMA", "HMMA", "DFMA", "HFMA")
        return sum(count for name, count in loop[2].items() if name.startswith(kinds))

    begin, end, counts = max(found, key=lambda loop: (math(loop), loop[2].total()))
    most = math((begin, end, counts))
    inside = [one for one in found if begin <= one[0] and one[1] <= end and 2 * math(one) >= most]
    return min((one[2] for one in inside), key=Counter.total) if most else counts


def resources(cubin: bytes) -> dict[str, tuple[int, int, int, int]]:
    """{kernel: (registers, stack, shared, local)} of a cubin."""
    text = _run("cuobjdump", cubin, "--dump-resource-usage")
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    return {name: tuple(map(int, numbers)) for name, *numbers in rows}  # type: ignore[misc]


def disassembly(cubin: bytes) -> dict[str, str]:
    """{kernel: its machine code as text} of a cubin."""
    text = _run("nvdisasm", cubin, "-c")
    return dict(re.findall(r"\.text\.(\w+):(.*?)(?:\.section|\Z)", text, re.S))


def _run(name: str, cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool(name), option, file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SimError(f"{name} failed: {' '.join((done.stderr or done.stdout).split())[:200]}")
    return done.stdout


# Not those under @!PT, which never execute: ptxas puts such loads before some barriers.
_OPCODE = r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P(?!T )\w+ )?\s*([A-Z][A-Z0-9_]*)"


def loops(code: str) -> list[tuple[int, int, Counter[str]]]:
    """(begin, end, opcodes counted) of each backward branch in a kernel's machine code."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    found = []
    for line in code.splitlines():
        if label := re.match(r"^(\.L\w+):", line):
            labels[label[1]] = len(opcodes)
        elif opcode := re.match(_OPCODE, line):
            opcodes.append(opcode[1])
            target = re.search(r"`\((\.L\w+)\)", line)
            if opcode[1] == "BRA" and target and target[1] in labels:
                begin = labels[target[1]]
                found.append((begin, len(opcodes), Counter(opcodes[begin:])))
    return found


def occupancy(arch: str, registers: int, shared: int, threads: int) -> Occupancy:
    """How many blocks of `threads` threads a multiprocessor holds, by CUDA's occupancy rules.

    shared: bytes that a block asks for, without OF_SYSTEM.
    """
    most_threads, most_blocks, bytes_ = PROCESSORS[arch]
    taken = shared + (OF_SYSTEM if arch != "sm_75" else 0)
    warps = -(-threads // 32)
    of_registers = REGISTERS // (-(-max(registers, 1) * 32 // _UNIT) * _UNIT) // 4 * 4 // warps
    limits = {  # of equal ones the first is named
        "threads": most_threads // (warps * 32),
        "blocks": most_blocks,
        "shared memory": bytes_ // taken if taken else most_blocks,
        "registers": of_registers,
    }
    limiter = min(limits, key=lambda name: limits[name])
    held = limits[limiter]
    return Occupancy(held, held * warps, most_threads // 32, limiter)


def roofline(card: str, flop: int, moved: int) -> tuple[float, str]:
    """The least seconds that a card needs for counted work, and what binds: an estimate.

    It takes the data sheet's FP32 rate and bandwidth. moved: bytes. Raises ValueError, naming the
    cards, for an unknown one.
    """
    if card not in CARDS:
        raise ValueError(f"no card {card!r}, there are: {', '.join(CARDS)}")
    _, teraflops, gigabytes = CARDS[card]
    compute, memory = flop / (teraflops * 1e12), moved / (gigabytes * 1e9)
    return max(compute, memory), "arithmetic" if compute > memory else "memory"
