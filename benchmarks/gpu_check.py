"""Everything that only a GPU can show, in one command: `make gpu-check`.

Stages: the card and its ceilings; the kernels' sweeps on cuda against the reference; whole training
steps and epochs, PyTorch's beside them where it is installed; LeNet to its floor; every kernel's
times; PyTorch's beside these; one step under compute-sanitizer and ncu, where they are found. Each
stage runs in a process of its own with a share of --budget, so that what hangs, crashes or is wrong
is recorded and the rest goes on. The report is written after each stage, to benchmarks/results or
--out. Exit code 0: all passed, or there is no GPU and nothing is claimed; 1: something failed or
did not come to its end.

Nothing need be installed but CuPy, NumPy, Numba, SciPy and pytest:

    python3 benchmarks/gpu_check.py --quick --out results
    python3 benchmarks/gpu_check.py --budget 540 --only steps --only times
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import gpu_report  # noqa: E402
from gpu_report import STAGES, Record  # noqa: E402

# Of the time that is left when a stage begins: its part against those of the stages to come.
SHARES = {"card": 1, "tests": 40, "steps": 25, "lenet": 10, "times": 24, "torch": 18, "tools": 12}
BUDGET, QUICK_BUDGET = 540.0, 170.0  # seconds for all stages
CARD_LIMIT = 60.0  # seconds that the first stage may take; what a stage leaves, the next ones have
BROKEN = 3  # exit code of a stage that wants a new process
MOST_DEATHS = 3  # of a stage's processes in a row, without a record between them
GRACE = 15.0  # seconds between asking a process to end and ending it
TOLD = (
    "quick",
    "budget",
    "only",
    "batch",
    "seconds",
    "cases",
)  # of the options; no path of a machine
TESTS = re.compile(r"^from kernel_runs import|^from simulated import .*DEVICE", re.MULTILINE)


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    options.batch = options.batch or (8 if options.quick else 32)
    options.seconds = options.seconds or (0.05 if options.quick else 0.12)
    if options.stage:
        return run_stage(options)
    from gpu_machine import driver_cards

    from gpuconv.cuda.cupy import problem

    if found := problem():
        if cards := driver_cards():
            print(f"gpu-check: NVIDIA's driver lists {cards[0]}, but {found}", file=sys.stderr)
            return 1
        print("gpu-check: no GPU here: NVIDIA's driver lists no card; nothing was run or claimed")
        return 0
    try:
        for report in check(options):  # once for each stage: what ends early leaves a report too
            paths = gpu_report.write(report, Path(options.out))
    except (RuntimeError, OSError) as error:
        print(f"gpu-check: the report was not written: {error}", file=sys.stderr)
        return 1
    print("\n".join(["", gpu_report.text(report), *map(str, paths)]))
    return 0 if gpu_report.passed(report) else 1


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    add("--quick", action="store_true", help="small shapes, the default sweeps, one epoch")
    seconds = f"seconds for all (default: {BUDGET:.0f}; {QUICK_BUDGET:.0f})"
    add("--budget", "--limit", type=float, dest="budget", help=seconds)
    add("--only", action="append", choices=STAGES, help="a stage; may be repeated")
    add("--out", default=str(gpu_report.RESULTS), help="folder of the report")
    add("--batch", type=int, default=0, help="of the timed shapes (default: 32; 8 with --quick)")
    add("--seconds", type=float, default=0.0, help="of timing for each pass")
    hidden = argparse.SUPPRESS  # what a stage's own process is told, and the tests' small sizes
    add("--stage", help=hidden)
    add("--record", help=hidden)
    add("--skip", type=int, default=0, help=hidden)
    add("--cases", default="", help=hidden)
    add("--case-batch", type=int, default=0, help=hidden)
    add("--flushed", type=int, help=hidden)
    add("--side", type=int, default=0, help=hidden)
    add("--rounds", type=int, default=1024, help=hidden)
    add("--steps", type=int, default=20, help=hidden)
    add("--images", type=int, default=0, help=hidden)
    add("--floor", type=float, help=hidden)
    add("--tests", action="append", help=hidden)
    return made


def check(options: argparse.Namespace) -> Iterator[Record]:
    """All stages, one after another; after each the report as it then stands."""
    import gpu_machine

    from gpuconv.cuda import source
    from gpuconv.devices import processor

    began = time.monotonic()
    end = began + (options.budget or (QUICK_BUDGET if options.quick else BUDGET))
    chosen = [name for name in STAGES if name == "card" or name in (options.only or STAGES)]
    kernels = [name for file in source.files() for name in source.names(file)]
    report: Record = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": gpu_machine.commit(ROOT),
        "quick": options.quick,
        "options": {name: getattr(options, name) for name in TOLD},
        "driver_cards": gpu_machine.driver_cards(),
        "versions": gpu_machine.versions(),
        "processor": processor(),
        "state_before": gpu_machine.card_state(),
        "card": "unknown",
        "kernels": sorted(kernels),
        "stages": {},
    }
    for number, name in enumerate(chosen):
        left = end - time.monotonic()
        share = left * SHARES[name] / sum(SHARES[later] for later in chosen[number:])
        if name == "tests":
            stage = run_tests(options, share)
        else:
            stage = child(name, options, min(left, CARD_LIMIT) if name == "card" else share)
        report["stages"][name] = stage
        for record in stage["records"]:
            report["card"] = record.get("card", report["card"])
        bad = sum(not record["ok"] for record in stage["records"])
        state = "ok" if stage["finished"] and not bad else f"{bad} failed; {stage.get('why', '')}"
        count, seconds = len(stage["records"]), stage["seconds"]
        print(f"{name}: {count} records, {seconds:.0f} s, {state}", flush=True)
        report["state_after"] = gpu_machine.card_state()
        report["seconds"] = time.monotonic() - began
        yield report


# ---- a stage in a process of its own ------------------------------------------------------------


def run_stage(options: argparse.Namespace) -> int:
    """Inside that process: append each record to --record as one line of JSON."""
    import gpu_stages

    options.only = options.cases
    with open(options.record, "a", encoding="utf-8") as file:
        for record in gpu_stages.STAGES[options.stage](options, options.skip):
            broken = record.pop("broken", False)
            file.write(json.dumps(record) + "\n")
            file.flush()
            if broken:
                return BROKEN
    return 0


def child(name: str, options: argparse.Namespace, seconds: float) -> Record:
    """Run a stage, in as many processes as it breaks, until it ends or its time is over."""
    began, why, finished, deaths = time.monotonic(), "", False, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records"
        path.touch()
        while not finished and not why:
            left = seconds - (time.monotonic() - began)
            before = len(records_in(path))
            code, said = process(stage_command(name, options, path, before), left)
            found = records_in(path)
            deaths = 0 if len(found) > before else deaths + 1
            if code == 0:
                finished = True
            elif code is None:
                why = f"not finished in its {seconds:.0f} s"
            elif code != BROKEN:  # it died: the item it was at is to blame, and left out
                append(path, {"name": f"{name}, item {len(found) + 1}", "ok": False,
                              "error": f"the process ended with code {code}: {said}"})  # fmt: skip
                if deaths == MOST_DEATHS:
                    why = f"the process died {deaths} times in a row, {said}"
        records = records_in(path)
    spent = time.monotonic() - began
    return {"records": records, "finished": finished, "why": why, "seconds": spent}


def stage_command(name: str, options: argparse.Namespace, path: Path, skip: int) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--stage", name]
    command += ["--record", str(path)]
    command += ["--skip", str(skip), "--batch", str(options.batch)]
    command += ["--seconds", str(options.seconds)] + ["--quick"] * options.quick
    for option in ("cases", "case-batch", "flushed", "side", "rounds", "steps", "images", "floor"):
        value = getattr(options, option.replace("-", "_"))
        if value is not None and value != "":
            command += [f"--{option}", str(value)]
    return command


def process(command: list[str], seconds: float, **more: Any) -> tuple[int | None, str]:
    """(exit code, the last of what it said); None where its time was over and it was ended."""
    if seconds <= 0:
        return None, "no time was left"
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        running = subprocess.Popen(command, stdout=said, stderr=said, cwd=ROOT, **more)
        code: int | None
        try:
            code = running.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            end(running)
        said.seek(0)
        return code, " ".join(said.read()[-400:].split())


def end(running: subprocess.Popen[Any]) -> None:
    """Ask a process of ours to stop, as Ctrl-C does; end it if it does not."""
    running.send_signal(signal.SIGINT)
    try:
        running.wait(GRACE)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def append(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def records_in(path: Path) -> list[Record]:
    """The whole lines; a last one that a killed process left half is not one."""
    lines = path.read_text("utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


# ---- the kernels' tests -------------------------------------------------------------------------


def test_files() -> list[Path]:
    """The tests that run kernels on the device that GPUCONV_TEST_DEVICE names."""
    kernels = sorted((ROOT / "tests" / "kernels").glob("test_kernels_*.py"))
    named = [*kernels, ROOT / "tests" / "cuda" / "test_runtime_ops.py"]
    return [path for path in named if TESTS.search(path.read_text("utf-8"))]


def run_tests(options: argparse.Namespace, seconds: float) -> Record:
    """Each file of tests in a process of its own, side by side, on cuda."""
    from concurrent.futures import ThreadPoolExecutor

    began = time.monotonic()
    files = [ROOT / name for name in options.tests] if options.tests else test_files()
    workers = max(1, min(len(files), (os.cpu_count() or 2) // 2))
    with ThreadPoolExecutor(workers) as pool:
        ends = began + seconds
        records = list(pool.map(lambda path: run_file(path, options, ends), files))
    late = any(record.get("late") for record in records)
    why = f"not finished in its {seconds:.0f} s" if late else ""
    spent = time.monotonic() - began
    return {"records": records, "finished": not late, "why": why, "seconds": spent}


def run_file(path: Path, options: argparse.Namespace, ends: float) -> Record:
    """One file's record: how many passed, and the first lines of what failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
        command += [f"--junitxml={xml}", *([] if options.quick else ["-m", ""])]
        environment = {**os.environ, "GPUCONV_TEST_DEVICE": "cuda"}
        code, said = process(command, ends - GRACE - began, env=environment)
        counts, failures = outcomes(xml)
    spent = time.monotonic() - began
    record = {"name": path.name, "seconds": spent, "late": code is None, **counts}
    if code == 0:
        return record | {"ok": True}
    ended = "not finished in its time" if code is None else f"pytest ended with code {code}"
    record["failed"] = max(record["failed"], 1)
    return record | {"ok": False, "failures": failures[:20],
                     "error": ended if failures else f"{ended}: {said}"}  # fmt: skip


def outcomes(xml: Path) -> tuple[dict[str, int], list[str]]:
    """Counts of passed, skipped and failed tests, and a line for each failure, of pytest's XML."""
    counts, failures = {"passed": 0, "skipped": 0, "failed": 0}, []
    if not xml.exists():
        return counts, failures
    for case in ElementTree.parse(xml).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error")]
        if bad:
            text = " ".join((bad[0].get("message") or "").split())[:200]
            failures.append(f"{case.get('name')}: {text}")
        skipped = case.find("skipped") is not None
        counts["failed" if bad else "skipped" if skipped else "passed"] += 1
    return counts, failures


if __name__ == "__main__":
    sys.exit(main())
