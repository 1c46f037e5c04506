"""The kernels of kernels/ladder/ are right and clean, and docs/ladder.md shows what they do.

    python tests/kernels/test_kernels_ladder.py      writes the guide's tables anew

Each runs with all checks in three orders; its launch file compares the product with NumPy's in
float64.
"""

import re
import shutil
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "kernels")]

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import test_kernels_build as build  # noqa: E402
import test_kernels_lock as lock  # noqa: E402
from kernel_runs import F4, set_constant, sim  # noqa: E402

from gpuconv.ops import conv2d_launch, conv2d_launch_mma  # noqa: E402
from gpuconv.ops.conv2d_launch import Conv2dShape  # noqa: E402
from gpuconv.sim import checking, facts, spec  # noqa: E402

LADDER = ROOT / "kernels" / "ladder"
LAUNCH = str(LADDER / "launch.py")
GUIDE = ROOT / "docs" / "ladder.md"
NAMES = spec.load_names(LAUNCH)[1]
RUNGS, SIZES = NAMES["RUNGS"], (NAMES["M"], NAMES["N"], NAMES["K"])
PLAIN = "swizzled, `SWIZZLE=0`"
SHIPPED = {"conv_simt": None, "conv_mma, tf32": "tf32", "conv_mma, bf16": "bf16"}
KERNELS = [*RUNGS, *SHIPPED]
KERNELS.insert(KERNELS.index("swizzled"), PLAIN)
QUICK = "tensor_cores"  # in the default run
ARCHITECTURES = ("sm_80", "sm_89")
HEADS = {
    "counts": ("instructions", "sectors", "shared wavefronts", "conflicts", "barriers"),
    "facts": ("registers", "shared bytes", "warps, sm_80", "warps, sm_89", "main loop"),
}


@cache
def row(kernel):
    """{table: what the guide shows of a kernel}"""
    total, found = shipped(kernel) if kernel in SHIPPED else rung(kernel)
    unit = np.prod(SIZES) / 32
    each = total["instructions"], lock.sectors(total), total["shared_wavefronts"]
    counts = [f"{count / unit:.2f}" for count in (*each, total["shared_conflicts"])]
    (first, shared, _), *_ = found
    held = [f"{occupancy.warps}, {occupancy.limiter}" for _, _, occupancy in found]
    return {
        "counts": [*counts, f"{total['barriers']:,}"],
        "facts": [str(first.registers), f"{shared:,}", *held, mix(first.loop)],
    }


def mix(loop):
    """A main loop in words: arithmetic, loads and copies of operands, all others."""
    named = [name for name in ("FFMA", "HMMA", "LDG", "LDS", "LDSM", "LDGSTS") if name in loop]
    others = sum(count for name, count in loop.items() if name not in named)
    return ", ".join([*(f"{loop[name]} {name}" for name in named), f"{others} others"])


def rung(kernel):
    """(counts, (facts, bytes of shared memory, occupancy) of each architecture)"""
    path = str(LADDER / f"{kernel.split(',')[0]}.cu")
    options = ["-DSWIZZLE=0"] if kernel == PLAIN else []
    words = {"options": options, "count": True, "architectures": ARCHITECTURES}
    report = checking.require_clean(path, LAUNCH, **words)
    (counters,) = report.counters.values()
    return counters.total(), [(one, one.shared, held) for one, held, _ in report.facts]


def shipped(kernel):
    """As `rung`, of a kernel of the library: the product is a linear layer's, in tiles of 128x128,
    which it would not take for so few rows.
    """
    (rows, across, deep), form = SIZES, conv2d_launch_mma.FORMATS.get(SHIPPED[kernel])
    conv, rng = Conv2dShape.linear(rows, deep, across), np.random.default_rng(13)
    x, w = (rng.standard_normal((n, deep), F4) for n in (rows, across))
    with pytest.MonkeyPatch.context() as patch:
        if form is None:
            set_constant(patch, conv2d_launch, "TARGET_BLOCKS", 4)
            config = conv2d_launch.config_forward(conv, False, False)
        else:
            patch.setattr(conv2d_launch_mma, "TILES", (((128, 128), 0),))
            config = conv2d_launch_mma.config_forward.__wrapped__(conv, form, False, False)
    dtype = F4 if form is None else form.dtype
    if dtype != F4:
        x, w = (a.astype(dtype) for a in (x, w))  # any bits: they are counted, not compared
    inputs = {"x": x, "w" if form is None else "filters": w, "b": w.ravel()}
    (total,) = lock.totals(config, inputs, {"y": ((rows, across), dtype)}).values()
    (launch,) = config.launches
    found = []
    for arch in ARCHITECTURES:
        one = facts.facts(build.cubin(launch.file, launch.defines, arch), arch)[launch.kernel]
        shared = one.shared + launch.shared
        held = facts.occupancy(arch, one.registers, shared, launch.block)
        found.append((one, shared, held))
    return total, found


def line(table, kernel):
    return "| " + " | ".join([kernel, *row(kernel)[table]]) + " |"


def release():
    return f"NVRTC {sim.compile.compiler_version()}"


@pytest.mark.parametrize(
    "kernel", [pytest.param(k, marks=() if k == QUICK else pytest.mark.slow) for k in KERNELS]
)
def test_the_guide_shows_what_a_kernel_does(kernel):
    lines = [line(table, kernel) for table in HEADS]
    text = GUIDE.read_text("utf-8")
    if release() not in text:
        pytest.skip(f"{GUIDE.name} has nothing of {release()}")
    for one in lines:
        assert one in text, "if that is meant: python tests/kernels/test_kernels_ladder.py"


def test_the_guide_shows_all_kernels_and_no_others():
    text = GUIDE.read_text("utf-8")
    for table in HEADS:
        block = re.search(rf"<!-- {table} -->\n(.*?)\n<!-- end -->", text, re.S)[1]
        assert [one.split(" | ")[0][2:] for one in block.splitlines()[2:]] == KERNELS
    assert {path.stem for path in LADDER.glob("*.cu")} == set(RUNGS)
    assert re.findall(r'--8<-- "kernels/ladder/(\w+)\.cu"', text) == list(RUNGS)


ORDERING = re.compile(r"^ *(?:__syncthreads|wait_for_copies<1>)\(\);.*\n", re.M)
WITHOUT = [
    (kernel, number)
    for kernel in RUNGS
    for number, _ in enumerate(ORDERING.findall((LADDER / f"{kernel}.cu").read_text("utf-8")))
]


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "number"), WITHOUT)
def test_no_barrier_and_no_wait_can_be_left_out(kernel, number, tmp_path):
    shutil.copytree(LADDER.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "ladder" / f"{kernel}.cu"
    text = path.read_text("utf-8")
    found = list(ORDERING.finditer(text))[number]
    path.write_text(text[: found.start()] + text[found.end() :], "utf-8")
    with pytest.raises(AssertionError, match=r"race|async|copy"):
        checking.require_clean(str(path), LAUNCH)


def write():
    """The guide's tables, for the installed release."""
    text = re.sub(r"NVRTC [\d.]+\d", release(), GUIDE.read_text("utf-8"))
    for table, heads in HEADS.items():
        head = ["| kernel | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        lines = "\n".join([*head, *(line(table, kernel) for kernel in KERNELS)])
        block = re.compile(rf"(?<=<!-- {table} -->\n).*?(?=<!-- end -->)", re.S)
        text = block.sub(lambda _, lines=lines: lines + "\n", text)
    GUIDE.write_text(text, "utf-8")


if __name__ == "__main__":
    write()
