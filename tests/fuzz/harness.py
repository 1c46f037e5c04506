"""Run hostile inputs, each in a process of its own, and judge what comes of each.

Right is an answer (code 0) or a refusal (code 2 and one line on stderr), within SECONDS and BYTES,
without a traceback and without a change of the input's files.

The processes are forked from one that has imported and compiled everything, so that an input takes
milliseconds; one input in a hundred gets a fresh interpreter.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 5.0
BYTES = 1 << 30  # beyond the idle process and what the input's files hold once decompressed
LINE = 1000  # characters of a refusal
ADDRESS_SPACE = 6 << 30  # beyond the idle process's: a safety net, three times what may be used
KILLED_AFTER = 60.0
TRIES = 3  # of an input that took too long: a busy machine is not its fault
CONTROLS = {chr(c) for c in (*range(32), *range(127, 160))} - set("\n\t")
FRESH_EVERY = 100


@dataclass(frozen=True)
class Case:
    """One input.

    name: its kind and number, from which it is made again. files: by their paths in the folder
    that is the current one while gpuconv runs. argv: gpuconv's arguments. held: bytes that the
    files hold once decompressed. writes: how the paths begin that a run may change once it has gone
    on. encoding: of stdout.
    """

    name: str
    files: dict[str, bytes]
    argv: list[str]
    held: int = 0
    writes: str = ""
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Outcome:
    """What came of an input; `problem` is empty where it is as it should be."""

    name: str
    answered: bool
    seconds: float
    memory: int  # beyond the idle process
    problem: str = ""
    shown: str = field(default="", repr=False)  # the command and the end of what it said


def run(case: Case, fresh: bool = False) -> Outcome:
    """Run an input, again where it took too long, and judge it. fresh: in a new interpreter."""
    for _ in range(TRIES):
        with tempfile.TemporaryDirectory(prefix="gpuconv-fuzz-") as place:
            outcome = _run_in(Path(place), case, fresh)
        if outcome.seconds <= SECONDS:
            break
    return outcome


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """The files of a case, in a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _run_in(place: Path, case: Case, fresh: bool) -> Outcome:
    folder = place / "in"
    (place / "out").mkdir()  # where commands write that must write something
    write_files(folder, case.files)
    before = contents(folder)
    idle = _fresh_idle() if fresh else 0
    begun = time.monotonic()
    child = os.fork()
    if not child:
        _become(case, place, fresh)
    status, usage, seconds, killed = _wait(child, begun)
    idle = idle or int((place / "idle").read_text())
    memory = max(0, usage.ru_maxrss * 1024 - idle)
    out, err = ((place / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    code = os.waitstatus_to_exitcode(status)
    problem = _problem_of_end(code, killed, out, err)
    if not problem and seconds > SECONDS:
        problem = f"took {seconds:.1f} s"
    if not problem and memory > BYTES + case.held:
        problem = f"took {memory >> 20} MB"
    changed = {name for name, _ in contents(folder).items() ^ before.items()}
    if case.writes and (code == 0 or "resumed" in out):
        changed = {name for name in changed if not name.startswith(case.writes)}
    if not problem and changed:
        problem = f"changed {', '.join(sorted(changed)[:4])}"
    shown = f"$ gpuconv {' '.join(case.argv)}\n{out[-300:]}{err[-1500:]}(code {code})"
    return Outcome(case.name, code == 0, seconds, memory, problem, shown)


def _problem_of_end(code: int, killed: bool, out: str, err: str) -> str:
    """What is wrong with an exit code and what was said, or nothing."""
    lines = err.splitlines()
    if killed:
        return f"had to be killed after {KILLED_AFTER:.0f} s"
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    if "Traceback" in out + err:
        return "traceback"
    if odd := sorted(CONTROLS.intersection(out + err)):
        return f"control characters in the output: {odd!r}"
    if code not in (0, 2):
        return f"exit code {code}"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("gpuconv: ")):
        return f"{len(lines)} lines on stderr instead of one"
    if any(not line.startswith("gpuconv: ") for line in lines):
        return "lines on stderr that are not gpuconv's"
    if any(len(line) > LINE for line in lines):
        return f"a line of {max(map(len, lines))} characters"
    if "Unable to allocate" in err or "MemoryError" in err:
        return "asked for more memory than there is"
    return ""


@functools.cache
def _fresh_idle() -> int:
    """What a fresh interpreter takes for a command that reads nothing: bytes."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "in").mkdir()
        child = os.fork()
        if not child:
            case = Case("idle", {}, ["summary", "lenet"])
            _become(case, Path(place), fresh=True)
        return _wait(child, time.monotonic())[1].ru_maxrss * 1024


def _wait(child: int, begun: float) -> tuple[int, resource.struct_rusage, float, bool]:
    """The end of a process: its status, its usage, the seconds until then without those that it
    waited for a free core, and whether it had to be killed.
    """
    watched = select.poll()
    descriptor = os.pidfd_open(child)
    watched.register(descriptor, select.POLLIN)
    ended = watched.poll(max(0.0, begun + KILLED_AFTER - time.monotonic()) * 1000)
    os.close(descriptor)
    waited = int(Path(f"/proc/{child}/schedstat").read_text().split()[1]) / 1e9
    seconds = time.monotonic() - begun - waited
    if not ended:
        os.kill(child, signal.SIGKILL)
        seconds = KILLED_AFTER
    _, status, usage = os.wait4(child, 0)
    return status, usage, max(seconds, 0.0), not ended


def _become(case: Case, place: Path, fresh: bool) -> None:
    """Turn this forked process into gpuconv with the case's arguments; never returns."""
    code = 1
    try:
        os.chdir(place / "in")
        for number, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, place / "stdout", os.O_WRONLY | os.O_CREAT),
            (2, place / "stderr", os.O_WRONLY | os.O_CREAT),
        ):
            os.dup2(os.open(name, flags, 0o644), number)
        used, resident = (int(n) for n in Path("/proc/self/statm").read_text().split()[:2])
        page = resource.getpagesize()
        (place / "idle").write_text(str(resident * page))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if fresh:
            _fresh(case)
        most = used * page + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        code = _main(case)
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(code)


def _fresh(case: Case) -> None:
    import gpuconv

    root = str(Path(gpuconv.__file__).parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "PYTHONIOENCODING": case.encoding,
    }
    serves = case.argv[0] == "show" and "--export" not in case.argv
    argv = [*case.argv, *(["--export", "../out/x.html"] if serves else [])]
    command = [sys.executable, "-m", "gpuconv", *argv]
    os.execve(sys.executable, command, environment)


def _main(case: Case) -> int:
    """`main` of the command line, as a terminal's user has it."""
    import gpuconv.page
    from gpuconv.cli.main import main

    warnings.resetwarnings()  # those of the tests
    warnings.simplefilter("default")
    gpuconv.page.serve = lambda *_: None  # `show` ends where it would begin to serve
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), case.encoding)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), case.encoding, "backslashreplace", write_through=True
    )
    code = main(case.argv)
    sys.stdout.flush()
    return code
