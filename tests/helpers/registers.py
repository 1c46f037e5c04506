"""The record of what every kernel takes on every architecture: tests/data/registers.tsv.

A line for each specialisation and kernel; under each architecture registers / blocks that a
multiprocessor holds at once. More than SLACK registers above that or fewer blocks fail a test; what
is meant to change is recorded anew by

    python tests/kernels/test_kernels_registers.py FILE ...
"""

from functools import cache
from pathlib import Path

from gpuconv.sim.facts import PROCESSORS, occupancy

PATH = Path(__file__).resolve().parents[1] / "data" / "registers.tsv"

ARCHITECTURES = [arch for arch in PROCESSORS if arch != "sm_75"]
# NVRTC does not always make the same code of the same text: conv_small.cu for windows of 5x5 and 8
# filters took 89 or 91 registers, from one compilation to the next.
SLACK = 2


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


@cache
def record():
    """{(specialisation, kernel, architecture): (registers, blocks)}"""
    head, *rows = (line.split("\t") for line in PATH.read_text("utf-8").splitlines())
    return {
        (special, kernel, arch): tuple(map(int, cell.split("/")))
        for special, kernel, *cells in rows
        for arch, cell in zip(head[2:], cells, strict=True)
    }


def require(file, defines, arch, usage, threads):
    """AssertionError for a kernel that takes more than is recorded of it."""
    for kernel, found in taken(arch, usage, threads).items() if arch in ARCHITECTURES else ():
        count, held = record().get((name(file, defines), kernel, arch), found)
        more = f"{kernel} on {arch}: {found} registers and blocks; recorded {count, held}"
        assert found[0] <= count + SLACK, more
        assert found[1] >= held, more


def write(found, names):
    """Record these (specialisation, architecture, what `taken` gives); of other specialisations
    among `names`, which give the order, what is recorded stays.
    """
    rows = {}
    for (special, kernel, arch), cell in (record() if PATH.exists() else {}).items():
        if special in names:
            rows.setdefault((special, kernel), {})[arch] = cell
    for special, arch, cells in found:
        for kernel, cell in cells.items():
            rows.setdefault((special, kernel), {})[arch] = cell
    lines = [("specialisation", "kernel", *ARCHITECTURES)]
    for key in sorted(rows, key=lambda key: names.index(key[0])):
        lines.append(
            (*key, *(f"{count}/{held}" for count, held in map(rows[key].get, ARCHITECTURES)))
        )
    PATH.write_text("".join("\t".join(line) + "\n" for line in lines), "utf-8")
