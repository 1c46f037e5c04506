"""`make gpu-check` without a GPU: what it refuses, records and writes.

Measurements here are made up or a stand-in's; none is a GPU's, and none may look like one.
"""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import simulated  # noqa: F401  skips where the simulator cannot run
import standin_cupy

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu_check  # noqa: E402
import gpu_machine  # noqa: E402
import gpu_report  # noqa: E402
import gpu_stages  # noqa: E402

from gpuconv.arrays import to_device  # noqa: E402
from gpuconv.bench import workloads  # noqa: E402
from gpuconv.bench.cases import parse, standard  # noqa: E402
from gpuconv.cuda import cupy as cupy_runtime  # noqa: E402
from gpuconv.cuda import source  # noqa: E402
from gpuconv.cuda.runtime import runtime  # noqa: E402


@pytest.fixture
def standin(monkeypatch):
    standin_cupy.install(monkeypatch)
    yield standin_cupy
    runtime.cache_clear()


def options(**given):
    small = {"batch": 1, "seconds": 0.001, "only": "relu 1x64", "flushed": 4096, "quick": True}
    small |= {"side": 8, "rounds": 2, "steps": 2, "images": 64, "floor": 0.0}
    return Namespace(**small | given)


# ---- without a GPU -------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so_in_one_line_and_claims_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cupy_runtime, "problem", lambda: "no GPU answers: no driver; use cpu")
    monkeypatch.setattr(gpu_machine, "driver_cards", list)
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") == 1
    assert "no GPU here" in said.out
    assert said.err == ""
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_cupy_cannot_use_is_a_failure(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cupy_runtime, "problem", lambda: "CuPy is not installed: pip install ...")
    monkeypatch.setattr(gpu_machine, "driver_cards", lambda: ["Card 9000"])
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    assert "lists Card 9000, but CuPy is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- the report ----------------------------------------------------------------------------------


def synthetic(**given):
    """A report of made-up measurements: 1 TFLOP/s, 1 TB/s, one convolution, one failure of each."""
    case = "conv2d 2x3x9x8 4 3x3"
    times = {"median": 2e-6, "low": 1e-6, "high": 3e-6, "count": 9, "late": False}
    row = {
        **{"case": case, "label": "", "direction": "forward", "device": "cuda", "status": "ok"},
        **{"cost": {"flops": 1_000_000, "bytes": 1000}, "times": times},
        "kernels": [{"name": "conv2d_forward_simt", "times": times}],
    }
    lost = {
        **row,
        "case": "relu 9",
        "times": None,
        "status": "wrong: 1 of 9 elements",
        "kernels": [],
    }
    measured = {"flops": 1e12, "bytes": 1e12, "arithmetic": "FP32", "memory": "copy"}
    values = {"copy": "1 TB/s"}
    stages = {
        "card": [{"name": "ceilings", "ok": True, "ceilings": measured, "values": values}],
        "tests": [{"name": "test_a.py", "ok": True, "passed": 7, "skipped": 1, "seconds": 2.0}],
        "lenet": [{"name": "LeNet", "ok": True, "said": "99.00% of 10,000"}],
        "times": [{"name": case, "ok": True, "row": row}],
        "torch": [{"name": case, "ok": True, "ours": 2e-6, "theirs": 3e-6, "ratio": 1.5,
                   "spread": [1.4, 1.6]}],
    }  # fmt: skip
    if given.pop("failed", False):
        stages["times"].append(
            {"name": "relu 9", "ok": False, "error": lost["status"], "row": lost}
        )
        stages["tests"].append({"name": "test_b.py", "ok": False, "passed": 3, "skipped": 0,
                                "failed": 1, "seconds": 1.0, "error": "pytest ended with code 1",
                                "failures": ["test_x: assert 1 == 2"]})  # fmt: skip
    return {
        **{"date": "2001-02-03T04:05:06+00:00", "commit": "abc", "quick": False},
        "card": "Card 9000",
        **{"driver_cards": ["Card 9000"], "versions": {"cupy": "1"}, "seconds": 12.0},
        "kernels": ["conv2d_forward_simt", "relu_forward"],
        "stages": {name: {"records": records, "finished": True, "seconds": 1.0}
                   for name, records in stages.items()},
    } | given  # fmt: skip


def test_a_report_says_what_was_measured(tmp_path):
    report = synthetic()
    paths = gpu_report.write(report, tmp_path)
    stem = "2001-02-03-0405-card-9000"
    assert [path.name for path in paths] == [f"{stem}.json", f"{stem}.md"]
    assert json.loads(paths[0].read_text()) == report
    text = paths[1].read_text()
    assert text.startswith("# GPU check: Card 9000, 2001-02-03\n\nEverything passed.")
    # 1e6 flops in 2 us are 0.5 TFLOP/s, half of the ceiling; 1000 bytes 0.5 GB/s.
    row = "2.00 us | 100% | 0.500 | 0.5 | 50% | arithmetic |"
    assert f"| conv2d 2x3x9x8 4 3x3 | forward | cuda | {row}" in text
    assert "1 of 2 kernels were launched and timed. Not among these: relu_forward." in text
    assert "| conv2d 2x3x9x8 4 3x3 | 2.00 us | 3.00 us | 1.50x | 1.40 to 1.60 |" in text
    assert "| tests | 7 | 0 |" in text
    assert "Failed:" not in text
    assert gpu_report.passed(report)


def test_a_report_says_what_failed(tmp_path):
    report = synthetic(failed=True)
    text = gpu_report.write(report, tmp_path)[1].read_text()
    assert "**Not everything passed**" in text
    assert "| tests | 10 | 1 |" in text
    assert "- test_b.py: pytest ended with code 1\n  - test_x: assert 1 == 2" in text
    assert "| relu 9 | forward | cuda | - | - | - | - | - | wrong: 1 of 9 elements |" in text
    assert not gpu_report.passed(report)


def test_a_stage_that_did_not_end_is_no_pass():
    report = synthetic()
    report["stages"]["times"] |= {"finished": False, "why": "not finished in its 9 s"}
    assert not gpu_report.passed(report)
    assert "not finished in its 9 s" in gpu_report.text(report)
    del report["stages"]["card"]
    assert "ceilings were not measured" in gpu_report.text(report)


def test_no_report_of_a_stand_in_among_the_results(monkeypatch, tmp_path):
    """The driver is asked, not CuPy: RESULTS takes no card that it does not list."""
    assert gpu_report.RESULTS == ROOT / "benchmarks" / "results"
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path / "results")
    for cards in ([], ["Another card"], ["stand-in"]):
        monkeypatch.setattr(gpu_report, "driver_cards", lambda cards=cards: cards)
        for folder in (tmp_path / "results", tmp_path / "results" / "deeper"):
            with pytest.raises(RuntimeError, match="NVIDIA's driver lists no card 'stand-in'"):
                gpu_report.write(synthetic(card="stand-in"), folder)
    assert not (tmp_path / "results").exists()
    text = gpu_report.text(synthetic(card="stand-in"))
    assert "**Made by a stand-in, without a GPU: no figure here is a measurement.**" in text
    monkeypatch.setattr(gpu_report, "driver_cards", lambda: ["Card 9000"])
    assert gpu_report.write(synthetic(), tmp_path / "results")[0].exists()


# ---- the stages, over the stand-in ---------------------------------------------------------------


def test_times_of_passes_and_kernels(standin):
    records = list(gpu_stages.times(options(), 0))
    passes = ["relu 1x64x56x56 forward", "relu 1x64x56x56 backward"]
    passes += [name.replace("56 ", "56 precision=bf16 ") for name in passes]
    assert [r["name"] for r in records] == passes
    assert all(r["ok"] and r["row"]["times"]["median"] > 0 for r in records)
    assert [k["name"] for r in records for k in r["row"]["kernels"]] == [
        "relu_forward",
        "relu_backward",
    ] * 2
    assert len(list(gpu_stages.times(options(), 3))) == 1
    json.dumps(records)


def test_a_failure_is_a_record_and_the_rest_goes_on(standin, monkeypatch):
    def broken(launch, arguments):
        started(launch, arguments)
        if launch.kernel == "relu_forward":
            arguments[0]._array.fill(7.0)

    started = runtime("cuda").start
    monkeypatch.setattr(runtime("cuda"), "start", broken)
    wrong, right, *_ = gpu_stages.times(options(), 0)
    assert not wrong["ok"]
    assert wrong["error"].startswith("wrong: ")
    assert wrong["row"]["times"] is None
    assert right["ok"]
    standin.failing.add("launch")
    records = list(gpu_stages.times(options(), 0))
    assert [(r["ok"], r["broken"]) for r in records] == [(False, True)] * 4
    assert "DeviceError: the GPU failed at kernel relu_forward" in records[0]["error"]


def test_the_cards_stage_measures_and_a_missing_cublas_is_no_failure(standin):
    records = list(gpu_stages.card(options(), 0))
    assert [r["name"] for r in records][:2] == ["card", "ceilings"]
    assert all(r["ok"] for r in records)
    assert records[0]["card"] == "stand-in"
    assert records[1]["ceilings"]["flops"] > 0
    assert [r["name"] for r in gpu_stages.card(options(), 3)] == [records[3]["name"]]
    assert records[-1]["values"]["cuBLAS SGEMM, 8 x 8"].startswith("not measured: AttributeError")


def test_lenets_stage_compares_repeats_and_has_a_floor(standin):
    steps, each_way, floor = gpu_stages.lenet(options(steps=1), 0)
    assert steps["ok"]
    assert "repeated bit for bit" in steps["said"]
    assert "as a graph: equal losses and weights" in each_way["said"]
    assert floor["ok"]
    (missed,) = gpu_stages.lenet(options(floor=1.01), 2)
    assert not missed["ok"]
    assert "the floor is 101.0%" in missed["error"]


def test_nvidias_tools_are_used_where_they_are_found(monkeypatch, tmp_path):
    """The tools' places in the command, their exit codes and summaries; the tools are scripts."""
    monkeypatch.setattr(gpu_stages, "PLACES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {r["said"].split(" was ")[-1] for r in gpu_stages.tools(options(), 0)} == {"not found"}
    scripts = {
        "compute-sanitizer": "echo == ERROR SUMMARY: 0 errors\n[ $2 != racecheck ] || exit 9",
        "ncu": "echo '  Duration   us  3.2'\necho Grid Size 4; exit 1",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    memory, race, *_, profile = gpu_stages.tools(options(), 0)
    assert memory == {"name": "compute-sanitizer, memcheck", "ok": True,
                      "said": "ERROR SUMMARY: 0 errors"}  # fmt: skip
    assert not race["ok"]
    assert profile["lines"] == ["Duration us 3.2", "Grid Size 4"]


def test_one_step_under_a_tool_is_a_step(standin):
    losses, _ = gpu_stages.lenet_steps("cuda", np.float32, 1)
    assert "lenet_steps('cuda', numpy.float32, 1)" in gpu_stages.ONE_STEP
    assert 2 < losses[0] < 3


# What only a network's step launches: the stage of whole steps has it.
OF_STEPS = {"average", "begin_step", "note_batch", "note_loss"} | {
    f"batch_norm2d_relu_max_pool2d_{part}" for part in ("forward", "backward", "backward_sums")
}


def test_the_standard_set_launches_every_kernel(monkeypatch):
    """Recorded, not run: what a new kernel lacks is a shape in gpuconv/bench/cases.py."""
    on, launched = runtime("sim"), set()
    monkeypatch.setattr(on, "start", lambda launch, arguments: launched.add(launch.kernel))
    for case, direction, layout in gpu_stages.items(options(only="")):
        workload = gpu_stages.workload_of(case, direction)
        last = layout == "nhwc"
        arguments = [to_device(a, "sim", weights=last) if isinstance(a, np.ndarray) else a
                     for a in workload.arguments]  # fmt: skip
        if workload.kernels:
            workload.prepare(tuple(arguments))()
    every = {name for file in source.files() for name in source.names(file)}
    assert launched == every - OF_STEPS


# ---- the processes -------------------------------------------------------------------------------

SCRIPT = """
import json, os, signal, sys, time
path, skip = sys.argv[1], int(sys.argv[2])
def record(ok, **more):
    with open(path, "a") as file:
        file.write(json.dumps({"name": f"item {skip}", "ok": ok, **more}) + "\\n")
"""


def staged(monkeypatch, script, seconds=60.0):
    def command(name, options, path, skip):
        return [sys.executable, "-c", SCRIPT + script, str(path), str(skip)]

    monkeypatch.setattr(gpu_check, "stage_command", command)
    return gpu_check.child("times", options(), seconds)


def test_a_broken_context_costs_one_record(monkeypatch):
    stage = staged(monkeypatch, "record(skip != 1); sys.exit(3 if skip < 3 else 0)")
    assert [r["ok"] for r in stage["records"]] == [True, False, True, True]
    assert stage["finished"]


def test_a_crash_is_recorded_and_the_next_item_comes(monkeypatch):
    script = "record(True) if skip != 1 else os.kill(os.getpid(), signal.SIGSEGV)\n"
    stage = staged(monkeypatch, script + "sys.exit(3 if skip < 2 else 0)")
    assert [r["ok"] for r in stage["records"]] == [True, False, True]
    assert "times, item 2" in stage["records"][1]["name"]
    assert "ended with code -11" in stage["records"][1]["error"]


def test_a_stage_that_cannot_begin_is_given_up(monkeypatch):
    stage = staged(monkeypatch, "sys.exit('no module named so')")
    assert [r["ok"] for r in stage["records"]] == [False] * 3
    assert not stage["finished"]
    assert "died 3 times in a row, no module named so" in stage["why"]


def test_what_hangs_is_ended_and_what_it_had_is_kept(monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 0.1)
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN); record(True); time.sleep(600)"
    stage = staged(monkeypatch, ignore, 1.0)
    assert [r["ok"] for r in stage["records"]] == [True]
    assert not stage["finished"]
    assert stage["why"] == "not finished in its 1 s"


def test_a_half_written_record_is_none(tmp_path):
    path = tmp_path / "records"
    path.write_text('{"name": "a", "ok": true}\n{"name": "b", "o')
    assert [r["name"] for r in gpu_check.records_in(path)] == ["a"]


def test_files_of_tests_run_on_cuda_and_are_counted(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text(
        "import os, pytest\n"
        "def test_device(): assert os.environ['GPUCONV_TEST_DEVICE'] == 'cuda'\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no')\ndef test_skipped(): pass\n"
    )
    record = gpu_check.run_file(path, options(), gpu_check.time.monotonic() + 90)
    assert (record["passed"], record["failed"], record["skipped"]) == (1, 1, 1)
    assert not record["ok"]
    assert record["error"] == "pytest ended with code 1"
    assert record["failures"][0].startswith("test_bad: ")


def test_the_sweeps_of_every_kernel_are_among_the_tests():
    names = {path.name for path in gpu_check.test_files()}
    assert names >= {
        "test_kernels_conv.py", "test_kernels_dense.py", "test_kernels_optim.py",
        "test_kernels_pool.py", "test_kernels_bias_relu_pool.py", "test_runtime_ops.py",
    }  # fmt: skip
    assert "test_kernels_build.py" not in names


def test_all_of_it_over_the_stand_in(tmp_path):
    """The command, its processes and its report, in the order that a GPU's run has."""
    (tmp_path / "cupy.py").write_text(
        "import sys, standin_cupy\nsys.modules['cupy'] = standin_cupy\n"
    )
    (tmp_path / "test_one.py").write_text(
        "import numpy as np\nfrom simulated import DEVICE, sim\n"
        "from gpuconv import ops\nfrom gpuconv.arrays import to_device, to_numpy\n"
        "def test_relu():\n"
        "    y = ops.relu(to_device(np.float32([-1, 2]), DEVICE))\n"
        "    assert DEVICE == 'cuda' and (to_numpy(y) == [0, 2]).all()\n"
        "def test_the_simulator(): assert sim.available()\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--quick", "--batch", "1"]
    command += ["--out", str(out), "--only", "tests", "--only", "times", "--seconds", "0.001"]
    command += ["--cases", "relu 1x64", "--flushed", "4096", "--side", "8", "--rounds", "2"]
    command += ["--tests", str(tmp_path / "test_one.py")]
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "tests" / "helpers")])
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (report,) = (json.loads(path.read_text()) for path in out.glob("*.json"))
    assert report["card"] == "stand-in"
    assert str(tmp_path) not in json.dumps(report)
    assert str(ROOT) not in json.dumps(report)
    assert set(report["stages"]) == {"card", "tests", "times"}
    assert report["stages"]["tests"]["records"][0]["passed"] == 1
    assert report["stages"]["tests"]["records"][0]["skipped"] == 1
    assert len(report["stages"]["times"]["records"]) == 4
    (text,) = (path.read_text() for path in out.glob("*.md"))
    assert "no figure here is a measurement" in text


# ---- PyTorch beside ours -------------------------------------------------------------------------

RIVALLED = [
    "conv2d 2x4x9x8 6 3x2 stride=2x1 padding=1 groups=2",
    "linear 5x7 3",
    "relu 3x4x5x6",
    "max_pool2d 2x3x9x8 3x2 stride=2 padding=1",
    "avg_pool2d 2x3x9x8 2x3",
    "tanh 3x4x5x6",
    "sigmoid 3x4x5x6",
    "softmax 4x5",
    "add 2x3",
    "batch_norm2d 3x4x5x6",
]
RIVALLED += [f"{words} precision=bf16" for words in RIVALLED if "softmax" not in words]
RIVALLED += ["conv2d 2x4x9x8 6 3x2 precision=tf32", "linear 5x7 3 precision=fp16"]  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("words", RIVALLED)
def test_rivals_compute_what_we_do(words):
    """On PyTorch's CPU build: every call that the comparison on a GPU makes."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    import gpu_torch

    case = parse(words)
    near = {"bf16": 2**-8, "fp16": 2**-11}.get(case.precision, 0) + 1e-5
    for workload in workloads.of_case(case):
        found = gpu_torch.rival(workload, "cpu")()
        expected = [exact for exact, _ in workload.expected()]
        for one, exact in zip(found, expected, strict=workload.case.op == "conv2d"):
            if exact.dtype == np.float64 and one.shape == exact.shape:
                np.testing.assert_allclose(one.float().numpy(), exact, atol=near * abs(exact).max())
        assert tuple(found[0].shape) == expected[0].shape


@pytest.mark.torch
def test_the_comparison_itself_over_the_stand_in(standin, monkeypatch):
    """Its steps and not its figures: PyTorch on the CPU beside the simulator."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import gpu_torch

    (said,) = gpu_stages.torch(options(), 0)
    assert said["ok"]
    assert "sees no GPU" in said["said"]
    real = gpu_torch.rival
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_torch, "rival", lambda workload, device: real(workload, "cpu"))
    version, *records = gpu_stages.torch(options(), 0)
    assert "channels-last" in version["said"]
    assert [r["name"].split()[-1] for r in records] == ["forward", "backward"] * 2
    assert all(r["ok"] and r["ratio"] > 0 and r["ours"] > 0 for r in records)
    assert len(list(gpu_stages.torch(options(), 4))) == 1
    wrong = {"forward": lambda: (torch.zeros(1, 64, 56, 56),)}
    monkeypatch.setattr(gpu_torch, "rival", lambda workload, device: wrong["forward"])
    for record in list(gpu_stages.torch(options(), 1)):
        assert not record["ok"]
        assert "PyTorch's result differs from ours and the reference's" in record["error"]


@pytest.mark.torch
def test_what_has_a_rival_is_in_the_standard_set():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    import gpu_torch

    passes = {(case.op, d) for case in standard(1) for d, _ in workloads.counted(case)}
    assert set(gpu_torch.RIVALS) <= passes
    covered = {
        (parse(words).op, w.direction)
        for words in RIVALLED
        for w in workloads.of_case(parse(words))
    }
    assert set(gpu_torch.RIVALS) <= covered


@pytest.mark.torch
def test_steps_beside_pytorch_over_the_stand_in(standin, monkeypatch):
    """Its comparison and not its figures: PyTorch on the CPU beside the simulator."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    import gpu_steps

    small = options(only="lenet", case_batch=2, images=8, seconds=1e-4)
    shorter = {"SETS": 2, "FIRST": 2, "WARM": 1, "ROUNDS": 1, "EPOCHS": 1, "EPOCH_BATCH": 4}
    shorter["PRECISIONS"] = ("ieee", "fp16")
    shorter["MODES"] = {"strict": "ieee", "fp16": "fp16"}
    for name, value in shorter.items():
        monkeypatch.setattr(gpu_steps, name, value)
    alone = list(gpu_stages.steps(small, 0))
    assert [r["ok"] for r in alone] == [True] * 3
    assert [[side.get("mode") for side in r["sides"]] for r in alone[:2]] == [
        [None, "unrecorded", None], [None, None],
    ]  # fmt: skip
    assert all(side["ours"] > 0 for r in alone[:2] for side in r["sides"])
    assert "sees no GPU" in alone[2]["said"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_stages, "RIVAL", "cpu")
    step, epoch, version = gpu_stages.steps(small, 0)
    for record, beside in ((step, ["unrecorded"]), (epoch, [])):
        assert record["ok"], record
        modes = [side.get("mode") for side in record["sides"]]
        assert modes == [None, *beside, "strict", None, "fp16"]
        assert all(side["ratio"] > 0 for side in record["sides"] if "mode" in side), record
    assert version["said"].startswith("PyTorch 2")
    report = synthetic()
    report["stages"]["steps"] = {"records": [step, epoch], "finished": True, "seconds": 1.0}
    assert "| lenet, batch 2, a step, fp16 | PyTorch, fp16 | " in gpu_report.text(report)
    for wrong in ([1.0, 2.1], [1.0, float("nan")]):
        with pytest.raises(ArithmeticError, match="the loss of step 2 is"):
            gpu_steps.alike(wrong, [1.0, 2.0], 0.01)
