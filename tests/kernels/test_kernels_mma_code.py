"""Machine code of the loops on tensor cores: facts about the compiler, nothing here runs."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product

import pytest
import test_kernels_build as build

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# Of a warp's part of a tile: mma for each load of operands from shared memory; and other
# instructions (neither such loads nor copies) for each mma.
GATES = {(64, 64): (4.0, 1.3), (64, 32): (8 / 3, 1.4), (32, 32): (2.0, 2.0)}
TF32_WEIGHT = 2.2  # both operands are rounded, an instruction for a number
TILES = ((128, 256), (128, 128), (128, 64), (64, 64))
SLOW = pytest.mark.slow


def loops():
    """(file, macros, gate of loads, gate of others) of every main loop."""
    for (form, element, width), tile in product(build.FORMATS, TILES):
        macros = {"ELEMENT": element, "FORMAT": form, "TILE": tile[0], "TILE_N": tile[1]}
        macros["VEC"] = width
        warp = 32 if tile[0] == 64 else 64, 32 if tile[1] == 64 else 64
        for backward in (0, 1):
            more = {"BACKWARD": backward, "MOMENTS": 0, "VEC_OUT": width}
            yield "conv_mma.cu", {**macros, **more}, *GATES[warp]
        for whole in (1, 0) if tile[1] < 256 else ():
            more = {"BIAS": 1, "WHOLE": whole, "UNIFORM": whole}
            loads, others = GATES[warp]
            if form == "TF32":  # its warps are 64x64
                loads, others = GATES[64, 64][0], TF32_WEIGHT
            yield "conv_mma_weight.cu", {**macros, **more}, loads, others


def parameters():
    for file, macros, *gates in loops():
        for arch in ARCHITECTURES:
            chosen = macros["FORMAT"] == "BF16" and macros["TILE_N"] == 128 and arch == "sm_120"
            chosen = chosen and not macros.get("BACKWARD") and macros.get("WHOLE") != 0
            marks = () if chosen else SLOW
            name = f"{file} {macros['FORMAT']} {macros['TILE']}x{macros['TILE_N']} {arch}"
            name += " backward" * macros.get("BACKWARD", 0)
            name += " several taps" * (macros.get("UNIFORM") == 0)
            yield pytest.param(file, macros, *gates, arch, marks=marks, id=name)


def main_loop(code):
    """The instructions of the basic block with the most mma, and how many mma are elsewhere."""
    blocks, now = [], []
    targets = set(re.findall(r"`\((\.L\w+)\)", code))  # shuffles have labels that none jumps to
    for line in code.splitlines():
        found = re.match(r"\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+ )?\s*([A-Z][\w.]*)", line)
        if line.split(":")[0] in targets:
            blocks.append(now)
            now = []
        elif found:
            # what no lane executes is what the assembler puts before some barriers and copies
            now.append("nothing" if found[1] in ("@!PT ", "@!UPT ") else found[2])
            if found[2] in ("BRA", "EXIT", "RET"):
                blocks.append(now)
                now = []
    loop = max([*blocks, now], key=lambda block: sum(op.startswith("HMMA") for op in block))
    others = sum(op.startswith("HMMA") for block in blocks for op in block) - sum(
        op.startswith("HMMA") for op in loop
    )
    return loop, others


@pytest.mark.parametrize(("file", "macros", "loads", "others", "arch"), list(parameters()))
def test_the_main_loop(file, macros, loads, others, arch):
    """One basic block, 16-byte copies alone, few instructions for each mma."""
    defines = tuple((name, str(value)) for name, value in macros.items())
    (code,) = build.disassembly(build.cubin(file, defines, arch)).values()
    loop, elsewhere = main_loop(code)
    counts = Counter(op.split(".")[0] for op in loop)
    mma, copies = counts["HMMA"], [op for op in loop if op.startswith("LDGSTS")]
    assert elsewhere == 0
    assert mma in (32, 64, 128)
    assert copies
    assert all(".128" in op for op in copies)
    assert not counts["LDL"] + counts["STL"]
    operands = counts["LDSM"] + sum(op.startswith("LDS.") and ".128" in op for op in loop)
    assert mma / operands >= loads * 0.999, counts
    rest = counts.total() - mma - counts["LDSM"] - counts["LDS"] - len(copies) - counts["nothing"]
    assert rest / mma <= others, counts
