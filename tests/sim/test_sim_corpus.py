"""A corpus of kernels, each with one fault, that must be found; and their correct twins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from corpus import (
    corpus_async,
    corpus_global,
    corpus_memory,
    corpus_shared,
    corpus_sync,
    corpus_users,
)

sim = pytest.importorskip("gpuconv.sim", reason="the simulator's dependencies are not installed")
if sim.available():
    pytest.skip(sim.available(), allow_module_level=True)
from gpuconv.sim.compile import include_paths  # noqa: E402

ORDERS = [("forward", 0), ("reverse", 0), ("shuffled", 1), ("shuffled", 2)]
PARTS = (
    corpus_shared.CASES, corpus_global.CASES, corpus_memory.CASES, corpus_sync.CASES,
    corpus_async.CASES, corpus_users.CASES,
)  # fmt: skip
CASES = {name: case for part in PARTS for name, case in part.items()}
QUICK = {
    "no barrier between a write and a read",
    "a vote in the place of a warp's barrier",
    "all lanes store the same value",
    "a look-back scan without the writer's fence",
    "a lock released without a fence",
    "a work list whose items belong to two takers",
    "exactly inside another array",
    "a width that is no power of two",
    "volatile sums within a warp",
    "an endless loop",
    "a pipeline that waits for one group too few",
    "a counter that a block sets back for the next launch",
    "an atomic operation made of compare-and-swap, and a plain read",
}


def marks(name):
    lacks = CASES[name].headers and not has("nv/target")
    skip = pytest.mark.skipif(lacks, reason="nvidia-cuda-cccl is not installed")
    return skip if name in QUICK else (skip, pytest.mark.slow)


def has(header):
    return any((Path(folder) / header).exists() for folder in include_paths())


SELECTED = [pytest.param(name, marks=marks(name)) for name in CASES]


def arrays():
    return (sim.zeros(1024), sim.asarray(np.arange(1024, dtype=np.float32)),
            sim.zeros(1024, np.int32), sim.zeros(1024, np.uint8), 1000)  # fmt: skip


def findings(module, case, order, seed):
    """All that one launch finds, warnings too."""
    args = case.args(sim) if case.args else arrays()
    try:
        return module.launch(
            "k", case.grid, case.block, args, shared=case.shared, order=order, seed=seed,
            timeout=case.timeout,
        )  # fmt: skip
    except sim.KernelError as error:
        return list(error.findings)


def test_the_corpus_is_large():
    assert len(CASES) >= 60
    assert len(CASES) == sum(map(len, PARTS))
    assert CASES.keys() >= QUICK
    guide = Path(__file__).parents[2] / "docs" / "check-kernels.md"
    assert f"{len(CASES)} more kernels" in guide.read_text()


@pytest.mark.parametrize("name", SELECTED)
def test_the_fault_is_found_in_every_order(name):
    """It is found by kind, by line and by argument; nothing else is found."""
    case = CASES[name]
    module = sim.Module(case.source(True), name="k.cu", check=True)
    for order, seed in ORDERS:
        found = findings(module, case, order, seed)
        assert found, (order, seed)
        for one in found:
            assert one.kind in case.kind.split(), one.message
            assert one.file == "k.cu"
            assert one.line in case.lines(), one.message
            if one.other is not None:
                assert int(one.other.line.removeprefix("k.cu:")) in case.lines(), one.message
            assert one.argument == case.argument, one.message
            assert "\n" not in one.message


@pytest.mark.parametrize("name", SELECTED)
def test_the_correct_twin_gives_no_report(name):
    case = CASES[name]
    module = sim.Module(case.source(False), name="k.cu", check=True)
    for order, seed in ORDERS:
        assert findings(module, case, order, seed) == [], (order, seed)
