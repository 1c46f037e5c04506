"""The stages of the GPU check, each run in a process of its own by gpu_check.py.

A stage yields records, {"name", "ok", ...}; one that failed has "error", in one line, and "broken"
where the card's context may be gone: then the process ends, and a new one goes on with the item
after it (`skip` says how many records there are).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gpu_machine
import numpy as np

from gpuconv import data, models, nn, optim
from gpuconv.arrays import to_device, to_numpy
from gpuconv.bench import ceilings, workloads
from gpuconv.bench.cases import Case, in_precisions, standard
from gpuconv.bench.clock import Times
from gpuconv.bench.cuda import Clock
from gpuconv.bench.measure import NO_KERNEL, Row, measure, recorded, require_right
from gpuconv.cuda.runtime import runtime
from gpuconv.errors import DeviceError
from gpuconv.precision import as_floats
from gpuconv.train import Trainer

Record = dict[str, Any]
LENET_EPOCHS, LENET_FLOOR = 5, 0.988  # tests/train/test_floors.py: Adam and cross-entropy
QUICK_EPOCHS, QUICK_FLOOR = 1, 0.970
ROUNDS = 5  # of ours and PyTorch's in turn
SGEMM_SIDE = 8192
RIVAL = "cuda"  # where PyTorch runs; the tests have it run on the CPU
# Of the largest value: two results of sums of products, of the same numbers, which each rounds in
# the end as it stores them; one of the two may use Winograd's algorithm.
ALIKE = {"ieee": 2e-4, "tf32": 4e-3, "bf16": 2e-2, "fp16": 4e-3}


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def guarded(name: str, act: Callable[[], Record]) -> Record:
    """The record of `act`, or of what it raised."""
    try:
        return {"name": name, "ok": True} | act()
    except Exception as error:  # whatever it is, it belongs in the report
        return {"name": name, "ok": False, "error": one_line(error), "broken": _breaks(error)}


def _breaks(error: BaseException) -> bool:
    return isinstance(error, DeviceError) or "CUDA" in type(error).__name__


# ---- card ----------------------------------------------------------------------------------------


def card(options: Any, skip: int) -> Iterator[Record]:
    """What the card is, and what it can do at most."""
    clock = Clock(runtime("cuda"), options.flushed)
    steps: list[tuple[str, Callable[[], Record]]] = [
        ("card", lambda: _description(clock)),
        ("ceilings", lambda: _ceilings(clock, options)),
        ("state after the ceilings", lambda: {"values": gpu_machine.card_state()}),
        ("cuBLAS SGEMM", lambda: _sgemm(clock, options)),
    ]
    for name, act in steps[skip:]:
        yield guarded(name, act)


PROPERTIES = ("multiProcessorCount", "l2CacheSize", "totalGlobalMem", "sharedMemPerBlockOptin",
              "major", "minor")  # fmt: skip


def _description(clock: Clock) -> Record:
    values = {"name": clock.card}
    values |= {n: clock.properties[n] for n in PROPERTIES if n in clock.properties}
    return {"card": clock.card, "values": values | gpu_machine.cuda_versions(clock.on.cupy)}


def _ceilings(clock: Clock, options: Any) -> Record:
    found = clock.ceilings(options.seconds, options.rounds)
    said = {"copy": f"{found.bytes / 1e9:.1f} GB/s, {found.memory}"}
    said |= {"arithmetic": f"{found.flops / 1e12:.3f} TFLOP/s, {found.arithmetic}"}
    return {"ceilings": vars(found), "values": said}


def _sgemm(clock: Clock, options: Any) -> Record:
    """cuBLAS's float32 product where CuPy finds cuBLAS: another ceiling, and no failure of ours."""
    side = options.side or SGEMM_SIDE
    name, rng, cupy = f"cuBLAS SGEMM, {side} x {side}", np.random.default_rng(0), clock.on.cupy
    try:
        a, b = (cupy.asarray(rng.standard_normal((side, side), np.float32)) for _ in range(2))
        times = clock.calls([lambda: cupy.matmul(a, b)], options.seconds)
    except Exception as error:
        return {"values": {name: f"not measured: {one_line(error)}"}}
    return {"values": {name: f"{2 * side**3 / times.low / 1e12:.3f} TFLOP/s"}}


# ---- lenet ---------------------------------------------------------------------------------------


def lenet(options: Any, skip: int) -> Iterator[Record]:
    """Steps against the reference and against themselves, in each way that a device has to run
    them, then training to the floor.
    """
    acts: list[tuple[str, Callable[[], Record]]] = [
        (f"{options.steps} steps of LeNet", lambda: _first_steps(options.steps)),
        (f"{10 * options.steps} steps of LeNet, recorded", lambda: _each_way(10 * options.steps)),
        ("LeNet to its floor", lambda: _to_the_floor(options)),
    ]
    for name, act in acts[skip:]:
        yield guarded(name, act)


def _first_steps(steps: int) -> Record:
    (ours, state), (again, same) = (lenet_steps("cuda", np.float32, steps) for _ in range(2))
    exact, _ = lenet_steps("reference", np.float64, steps)
    if ours != again or any(state[n].tobytes() != same[n].tobytes() for n in state):
        raise ArithmeticError("two runs gave different bits")
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, exact, strict=True))
    if not worst <= 1e-3:
        raise ArithmeticError(f"losses differ from the reference's by {worst:.1e} of them")
    return {"said": f"repeated bit for bit; losses within {worst:.1e} of the float64 reference's"}


def lenet_steps(device: str, dtype: Any, steps: int) -> tuple[list[float], dict[str, np.ndarray]]:
    images, losses = data.load("mnist"), []
    model, loss = models.lenet(seed=0).to(device, dtype), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        chosen = list(range(32 * step, 32 * step + 32))
        x = images.batch(chosen, size=(32, 32)).astype(dtype)
        optimizer.zero_grad()
        scores = model(to_device(x, device))
        value = loss(scores, to_device(images.labels[chosen], device))
        losses.append(float(value))
        value.backward()
        optimizer.step()
    return losses, {name: to_numpy(array) for name, array in model.state_dict().items()}


WAYS = ("one by one", "as recorded launches", "as a graph")


def _each_way(steps: int) -> Record:
    """Training with shifted images, Adam and clipped gradients gives equal bits in each way."""
    found = {way: _trained(way, steps) for way in WAYS}
    for way in WAYS[1:]:
        if found[way] != found[WAYS[0]]:
            raise ArithmeticError(f"steps {way} give other bits than steps {WAYS[0]}")
    return {"said": f"{', '.join(WAYS)}: equal losses and weights, bit for bit"}


def _trained(way: str, steps: int) -> tuple[float, dict[str, bytes]]:
    """The mean loss of so many steps, and the weights. DeviceError where no graph is made."""
    model, on = models.lenet(seed=0).to("cuda"), runtime("cuda")
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, seed=0, progress=False,
                      clip_norm=1.0, graph=way != WAYS[0])  # fmt: skip
    images = data.load("mnist").subset(slice(0, 32 * steps))
    loader = data.Loader(images, 32, seed=0, augment=data.Shift(2), size=32)
    notes: list[str] = []
    replay_of, before = on.replay_of, on.debug

    def noted(recorder: Any) -> Any:
        replay, note = replay_of(recorder)
        notes.append(note)
        return replay, note

    on.replay_of, on.debug = noted, way == WAYS[1]
    try:
        history = trainer.fit(loader, None, 1)
    finally:
        on.replay_of, on.debug = replay_of, before
    if way == WAYS[2] and (not notes or any(notes)):
        raise DeviceError(f"no graph was made: {notes}")
    weights = {name: to_numpy(a).tobytes() for name, a in model.state_dict().items()}
    return history[-1]["loss"], weights


def _to_the_floor(options: Any) -> Record:
    """Adam and cross-entropy at batch 64, as tests/train/test_floors.py trains on the CPU."""
    epochs, floor = (QUICK_EPOCHS, QUICK_FLOOR) if options.quick else (LENET_EPOCHS, LENET_FLOOR)
    if options.floor is not None:
        floor = options.floor
    learn, test = (data.load("mnist", split) for split in ("train", "test"))
    if options.images:
        learn, test = (each.subset(slice(0, options.images)) for each in (learn, test))
    model, loss = models.lenet(seed=0).to("cuda"), nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    trainer = Trainer(model, loss, optimizer, seed=0, progress=False)
    pixels = learn.images / 255
    scale: dict[str, Any] = {"size": 32, "mean": pixels.mean(), "std": pixels.std()}
    batch = min(64, len(learn))
    loader = data.Loader(learn, batch, seed=0, **scale)
    tests = data.Loader(test, min(500, len(test)), shuffle=False, **scale)
    began = time.perf_counter()
    history = trainer.fit(loader, tests, epochs)
    seconds = time.perf_counter() - began
    accuracy = history[-1]["validation_accuracy"]
    if not accuracy >= floor:
        raise ArithmeticError(f"{accuracy:.2%} after {epochs} epochs, the floor is {floor:.1%}")
    said = f"{accuracy:.2%} of {len(test):,} test images after {epochs} epochs, "
    said += f"the floor is {floor:.1%}; {seconds:.1f} s"
    return {"said": said, "accuracy": accuracy, "train_seconds": seconds, "epochs": epochs}


# ---- steps ---------------------------------------------------------------------------------------


def steps(options: Any, skip: int) -> Iterator[Record]:
    """Whole training steps, and epochs of LeNet, beside PyTorch's where it sees the card."""
    import gpu_steps

    clock = Clock(runtime("cuda"), options.flushed)
    library, why = _pytorch()
    if library:
        import gpu_steps_torch as rival
    modes = tuple(gpu_steps.MODES) if library else ()
    images = data.load("mnist").subset(slice(0, options.images or None))

    def step(name: str, batch: int) -> Record:
        mine = partial(gpu_steps.ours, name, batch, "cuda", clock.on.synchronize)
        rivals = {m: partial(rival.theirs, name, batch, m, RIVAL) for m in modes}
        return {"sides": gpu_steps.compare(mine, rivals, 10 * options.seconds)}

    def epoch() -> Record:
        rivals = {m: partial(rival.their_epochs, m, RIVAL, images) for m in modes}
        return {"sides": gpu_steps.compare_epochs("cuda", images, rivals)}

    cases = [case for case in gpu_steps.CASES if options.only in case[0]]
    cases = cases[:1] if options.quick else cases
    acts: list[tuple[str, Callable[[], Record]]] = [
        (f"{name}, batch {options.case_batch or batch}, a step",
         partial(step, name, options.case_batch or batch)) for name, batch in cases
    ]  # fmt: skip
    acts.insert(1, (f"lenet, batch {gpu_steps.EPOCH_BATCH}, an epoch of MNIST", epoch))
    acts.append(("PyTorch", lambda: {"said": why}))
    for name, act in acts[skip:]:
        yield guarded(name, act)


def _pytorch() -> tuple[Any, str]:
    """(PyTorch where it sees a card, else None, what to say of it)."""
    try:
        import torch as library
    except Exception as error:  # an import can fail in many ways, and PyTorch is not required
        return None, f"not compared: {one_line(error)}"
    if not library.cuda.is_available():
        return None, f"{library.__version__} sees no GPU"
    return library, f"PyTorch {library.__version__}, cuDNN {library.backends.cudnn.version()}"


# ---- times ---------------------------------------------------------------------------------------


def items(options: Any) -> list[tuple[Case, str, str]]:
    """(case, pass, layout) of all that is timed: the standard set in every precision, and one case
    in NCHW, whose conversion is the layout kernel's.
    """
    every = standard(options.batch) + in_precisions(options.batch)
    # at the beginning of a word, so that "relu" is not leaky_relu too
    chosen = [case for case in every if f" {options.only}" in f" {case}"]
    found = [
        (case, direction, "nhwc") for case in chosen for direction, _ in workloads.counted(case)
    ]
    found += [(case, "forward", "nchw") for case in chosen if case.op == "conv2d"][:1]
    return found


def workload_of(case: Case, direction: str) -> workloads.AnyWorkload:
    passes = () if direction == "step" else (direction,)
    (found,) = workloads.of_case(case, passes)
    return found


def times(options: Any, skip: int) -> Iterator[Record]:
    """Every pass of the standard set, checked, timed and checked, with each of its kernels."""
    clock = Clock(runtime("cuda"), options.flushed)
    for case, direction, layout in items(options)[skip:]:
        name = f"{case} {direction}{' from NCHW' if layout == 'nchw' else ''}"

        def act(case: Case = case, direction: str = direction, layout: str = layout) -> Record:
            workload = workload_of(case, direction)
            row = measure(workload, "cuda", options.seconds, clock, layout, each=True)
            return {"row": _plain(row), **_outcome(row)}

        yield guarded(name, act)


def _outcome(row: Row) -> Record:
    """A wrong result is a failure; an operation without kernels is not one of a GPU's."""
    wrong = not row.status.startswith(("ok", NO_KERNEL))
    return {"ok": not wrong, **({"error": row.status} if wrong else {})}


def _plain(row: Row) -> Record:
    found = row.record(ceilings.Ceilings(1.0, 1.0, "", ""))
    for derived in ("share_of_ceiling", "bound"):  # of ceilings that the report knows
        del found[derived]
    return found


# ---- torch ---------------------------------------------------------------------------------------


def torch(options: Any, skip: int) -> Iterator[Record]:
    """Ours and PyTorch's in turn, over the same numbers, where PyTorch sees the card."""
    library, said = _pytorch()
    if library is None:
        yield {"name": "PyTorch", "ok": True, "said": said}
        return
    import gpu_torch

    clock = Clock(runtime("cuda"), options.flushed)
    if skip < 1:
        yield {"name": "PyTorch", "ok": True, "said": f"{said}, channels-last"}
    pairs = [(c, d) for c, d, layout in items(options) if layout == "nhwc"]
    pairs = [(c, d) for c, d in pairs if (c.op, d) in gpu_torch.RIVALS and not c.activation]
    for case, direction in pairs[max(skip - 1, 0) :]:

        def act(case: Case = case, direction: str = direction) -> Record:
            workload = workload_of(case, direction)
            theirs = gpu_torch.rival(workload, "cuda")
            gpu_torch.precise(case.precision)
            return beside(clock, workload, theirs, options.seconds)

        yield guarded(f"{case} {direction}", act)


def beside(clock: Clock, workload: Any, theirs: Any, seconds: float) -> Record:
    """Rounds of ours and theirs in turn, once both have given the same; ratio above 1: we are
    faster.
    """
    on = clock.on
    moved = [to_device(a, "cuda", weights=True) if isinstance(a, np.ndarray) else a
             for a in workload.arguments]  # fmt: skip
    outputs, launches, _call = recorded(on, workload, tuple(moved))
    ours = [as_floats(np.asarray(to_numpy(one))) for one in outputs]
    require_right(workload, ours)
    near = ALIKE[workload.case.precision]
    for mine, other in zip(ours, theirs(), strict=False):
        host = other.detach().cpu()
        host = (host.float() if host.is_floating_point() else host).numpy()
        if host.shape == mine.shape and mine.dtype.kind == "f":
            if not np.abs(mine - host).max() <= near * np.abs(host).max():
                raise ArithmeticError("PyTorch's result differs from ours and the reference's")
        elif host.shape != mine.shape:
            raise ArithmeticError(f"PyTorch's result has shape {host.shape}, ours {mine.shape}")

    def start() -> None:
        for launch, arguments in launches:
            on.start(launch, arguments)

    mine_times: list[Times] = []
    their_times: list[Times] = []
    for _ in range(ROUNDS):
        mine_times.append(clock.calls([start], seconds / ROUNDS))
        their_times.append(clock.calls([theirs], seconds / ROUNDS))
    ratios = sorted(b.median / a.median for a, b in zip(mine_times, their_times, strict=True))
    return {
        "ours": float(np.median([t.median for t in mine_times])),
        "theirs": float(np.median([t.median for t in their_times])),
        "ratio": float(np.median(ratios)),
        "spread": [ratios[0], ratios[-1]],
        "late": any(t.late for t in (*mine_times, *their_times)),
    }


# ---- tools ---------------------------------------------------------------------------------------

PLACES = "/usr/local/cuda/bin:/opt/nvidia/nsight-compute"  # beside PATH
ONE_STEP = "import gpu_stages, numpy; gpu_stages.lenet_steps('cuda', numpy.float32, 1)"
CHECKS = ("memcheck", "racecheck", "synccheck", "initcheck")
NCU = ["--launch-count", "3", "--section", "SpeedOfLight", "--section", "Occupancy"]


def tools(options: Any, skip: int) -> Iterator[Record]:
    """One step of LeNet under NVIDIA's checkers and profiler, where they are found."""
    runs = [("compute-sanitizer", check, ["--tool", check, "--error-exitcode", "9"])
            for check in CHECKS]  # fmt: skip
    runs.append(("ncu", "profile", NCU))
    for tool, word, arguments in runs[skip:]:
        yield guarded(f"{tool}, {word}", partial(_under, tool, arguments))


def _under(tool: str, arguments: list[str]) -> Record:
    """Raises ChildProcessError for what a checker reports; a profiler may be forbidden."""
    found = shutil.which(tool, path=os.pathsep.join([os.environ.get("PATH", ""), PLACES]))
    if found is None:
        return {"said": f"{tool} was not found"}
    here = Path(__file__).resolve().parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [found, *arguments, sys.executable, "-c", ONE_STEP],
        capture_output=True, text=True, errors="replace", env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    lines = [" ".join(line.strip("= ").split()) for line in done.stdout.splitlines()]
    lines = [line for line in lines if line]
    if tool == "ncu":
        return {"said": f"ended with code {done.returncode}", "lines": lines[-60:]}
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), "no summary")
    if done.returncode:
        raise ChildProcessError(f"{summary}: {' '.join(lines[:4])} {done.stderr[-200:]}")
    return {"said": summary}


STAGES: dict[str, Callable[[Any, int], Iterator[Record]]] = {
    "card": card,
    "steps": steps,
    "lenet": lenet,
    "times": times,
    "torch": torch,
    "tools": tools,
}
