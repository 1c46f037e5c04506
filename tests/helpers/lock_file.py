"""kernels.lock: what every kernel takes and does, for each release of NVRTC.

"counts": of each case, of each kernel, what the simulator counts (tests/kernels/test_kernels_lock).
"registers": of each specialisation, of each kernel, registers / blocks that a multiprocessor holds
at once, for each of "architectures". More than is recorded fails a test, registers above SLACK and
fewer blocks too; what is meant to change is recorded anew by

    python tests/kernels/test_kernels_lock.py [FILE.cu ...]
"""

import json
from functools import cache
from pathlib import Path

from gpuconv.sim import compile
from gpuconv.sim.facts import PROCESSORS, occupancy

PATH = Path(__file__).resolve().parents[2] / "kernels.lock"
ARCHITECTURES = [arch for arch in PROCESSORS if arch != "sm_75"]
# NVRTC does not always make the same code of the same text: conv_small.cu for windows of 5x5 and 8
# filters took 89 or 91 registers, from one compilation to the next.
SLACK = 2


@cache
def record():
    """What is recorded, by release."""
    return json.loads(PATH.read_text("utf-8"))


def of_release():
    """What is recorded of the installed release; nothing of one that is not."""
    nothing = {"architectures": ARCHITECTURES, "counts": {}, "registers": {}}
    return record().get(compile.compiler_version(), nothing)


def taken(arch, usage, threads):
    """{kernel: (registers, blocks)} of a cubin's {kernel: (registers, stack, shared, local)}, where
    its blocks have {kernel: threads}.
    """
    return {
        kernel: (count, occupancy(arch, count, shared, threads[kernel]).blocks)
        for kernel, (count, _, shared, _) in usage.items()
    }


def name(file, defines):
    return " ".join([file, *(f"{macro}={value}" for macro, value in defines)])


def require(file, defines, arch, usage, threads):
    """AssertionError for a kernel that takes more than is recorded of it."""
    held = of_release()
    recorded = held["registers"].get(name(file, defines), {}) if arch in ARCHITECTURES else {}
    for kernel, (count, blocks) in taken(arch, usage, threads).items():
        if kernel in recorded:
            cells = dict(zip(held["architectures"], recorded[kernel].split(), strict=True))
            most, least = map(int, cells[arch].split("/"))
            more = (
                f"{kernel} on {arch}: {count}/{blocks} registers and blocks; recorded {cells[arch]}"
            )
            assert count <= most + SLACK, more
            assert blocks >= least, more


def write(counts, registers, names):
    """Record the installed release.

    registers: (specialisation, architecture, what `taken` gives). Of other specialisations among
    `names`, which give the order, what is recorded stays, as does every other release.
    """
    kept = {special: dict(kernels) for special, kernels in of_release()["registers"].items()}
    cells = {}
    for special, _, found in registers:
        for kernel, (count, blocks) in found.items():
            cells.setdefault(special, {}).setdefault(kernel, []).append(f"{count}/{blocks}")
    kept |= {s: {kernel: " ".join(row) for kernel, row in k.items()} for s, k in cells.items()}
    mine = {
        "architectures": ARCHITECTURES,
        "counts": dict(sorted(counts.items())),
        "registers": {special: kept[special] for special in names if special in kept},
    }
    PATH.write_text(_text({**record(), compile.compiler_version(): mine}), "utf-8")


def _text(held, depth=0):
    """JSON with a line for each case and each specialisation."""
    if depth == 3 or not isinstance(held, dict):
        return json.dumps(held)
    indent = " " * (depth + 1)
    lines = [f'{indent}"{key}": {_text(held[key], depth + 1)}' for key in held]
    end = "\n" if depth == 0 else ""
    return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}" + end
