"""Times training and inference on the CPU against each rival at its best, in turn.

    python benchmarks/compare_best.py                        every network; about 15 minutes
    python benchmarks/compare_best.py --only resnet50        networks whose name holds this text
    python benchmarks/compare_best.py --only lenet --what train

Rivals: PyTorch eager in NCHW and in channels_last (torch.no_grad in inference), ONNX Runtime and
OpenVINO in float32, latency mode for one image. Inference is `model.compile()`, and beside it the
network itself. Batches: training at 8, LeNet at 64 and 128; inference at 16 and 1.

Before anything is timed, results are compared with float64's: the relative error of the scores, or
of the gradients of all weights together, is shown for each side, and one that is off stops the
script. Each side runs once a round, in turn; which goes first changes. A turn begins with a pause:
other sides' threads, which wait for more work in a loop on a core that this one needs, go to sleep
(ResNet-18 on one image took OpenVINO 33 ms after ONNX Runtime's turn, with the pause 19). What
takes less than 50 ms runs for 50 ms before the 50 ms that count: a core that slept is slow at
first, and the others' arrays fill the caches. Shown are medians and the ratio of the best rival's
median to ours: above 1 we are faster.

Needs torch, onnx, onnxruntime and openvino; what is missing is left out, and said.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_steps import MOMENTUM, RATE, batch, network

import gpuconv
from gpuconv import nn, no_grad, optim
from gpuconv.onnx import export

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
import torch_twin

TRAIN = {"lenet": (64, 128)}  # batches; 8 for the others
NAMES = ("lenet", "alexnet", "googlenet", "resnet18", "resnet50", "densenet121", "vgg16")
FLOORS = {("lenet", "train"): 2.0, ("vgg16", "train"): 1.4}  # of the ratio
SHORT, PAUSE = 0.05, 0.3  # seconds; see above
# Relative, in norm. A gradient differs by more: a ReLU whose input is almost 0 falls either way.
LARGEST_ERROR = {"train": 0.05, "infer": 1e-4}
OURS = ("gpuconv", "gpuconv, not compiled")
Side = Callable[[], np.ndarray]


def twin_of(model: nn.Module, last: bool) -> torch_twin.Twin:
    """The network in PyTorch; last: with its filters in channels_last."""
    twin = torch_twin.Twin(model)
    for tensor in twin.tensors.values() if last else ():
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return twin


def images(x: np.ndarray, last: bool) -> torch.Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.from_numpy(x).contiguous(memory_format=layout)


# ---- training: a side does one step and returns all gradients --------------------------------


def our_step(name: str, x: np.ndarray, labels: np.ndarray) -> Side:
    model, loss = network(name), nn.CrossEntropyLoss()
    update = optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)

    def run() -> np.ndarray:
        update.zero_grad()
        loss(model(x), labels).backward()
        update.step()
        return [p.grad for p in model.parameters()]

    return run


def torch_step(name: str, x: np.ndarray, labels: np.ndarray, last: bool, dtype: Any) -> Side:
    model = network(name).to(dtype=dtype)
    twin, x = twin_of(model, last), images(x.astype(dtype), last)
    trained = [twin.of(p) for p in model.parameters()]
    update = torch.optim.SGD(trained, lr=RATE, momentum=MOMENTUM)
    classes = torch.from_numpy(labels)

    def run() -> np.ndarray:
        update.zero_grad()
        torch_twin.loss(twin(x), classes).backward()
        update.step()
        return [t.grad for t in trained]

    return run


def training(name: str, size: int) -> tuple[dict[str, Side], Side]:
    """(the sides, PyTorch in float64)."""
    x, labels = batch(network(name).input_shape or (), size)
    sides = {
        "gpuconv": our_step(name, x, labels),
        "PyTorch": torch_step(name, x, labels, False, np.float32),
        "PyTorch, channels_last": torch_step(name, x, labels, True, np.float32),
    }
    return sides, torch_step(name, x, labels, False, np.float64)


# ---- inference: a side returns the scores ----------------------------------------------------


def inference(name: str, size: int) -> tuple[dict[str, Side], Side]:
    """(the sides, PyTorch in float64)."""
    model = network(name)
    x, _ = batch(model.input_shape or (), size)
    for _ in range(3):  # running statistics of its own
        model(x[:2] if size > 1 else np.concatenate([x, x[..., ::-1]]))
    model.eval()
    fast = model.compile()

    def plain() -> np.ndarray:
        with no_grad():
            return model(x).data

    def eager(last: bool, dtype: Any = np.float32) -> Side:
        own = copy.deepcopy(model).to(dtype=dtype)
        twin, given = twin_of(own, last), images(x.astype(dtype), last)

        def run() -> np.ndarray:
            with torch.no_grad():
                return twin(given).numpy()

        return run

    sides = {"gpuconv": lambda: fast(x).data, "gpuconv, not compiled": plain}
    sides |= {"PyTorch": eager(False), "PyTorch, channels_last": eager(True)}
    sides |= runtimes(model, x)
    exact = eager(False, np.float64)()
    return sides, lambda: exact


def runtimes(model: nn.Module, x: np.ndarray) -> dict[str, Side]:
    """ONNX Runtime and OpenVINO, each if it is installed."""
    found: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model, path)
        try:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = gpuconv.thread_count()
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            found["ONNX Runtime"] = lambda: session.run(None, {"x": x})[0]
        except ImportError:
            print("onnxruntime is not installed: left out")
        try:
            import openvino

            network = openvino.compile_model(
                str(path), "CPU",
                {"INFERENCE_NUM_THREADS": gpuconv.thread_count(), "INFERENCE_PRECISION_HINT": "f32",
                 "PERFORMANCE_HINT": "LATENCY"},
            )  # fmt: skip
            found["OpenVINO"] = lambda: network(x)[0]
        except ImportError:
            print("openvino is not installed: left out")
    return found


# ---- both ------------------------------------------------------------------------------------


def errors(sides: dict[str, Side], exact: Side, what: str) -> dict[str, float]:
    """Each side's relative error in norm. Stops the script where one is too large."""
    truth, found = flat(exact()), {}
    for name, side in sides.items():
        found[name] = float(np.linalg.norm(flat(side()) - truth) / np.linalg.norm(truth))
        if not found[name] <= LARGEST_ERROR[what]:
            sys.exit(f"compare_best: {name} is off by {found[name]:.1e}, nothing timed")
    return found


def flat(arrays: Any) -> np.ndarray:
    """All numbers in one row; float64's too, so that no sum of squares overflows."""
    if not isinstance(arrays, list):
        arrays = [arrays]
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])


def medians(sides: dict[str, Side], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for side in sides.values():
        side()
    counts = {name: max(1, round(SHORT / seconds(side, 1))) for name, side in sides.items()}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(PAUSE)
            if counts[name] > 1:
                seconds(sides[name], counts[name])
            times[name].append(seconds(sides[name], counts[name]))
    return {name: statistics.median(found) for name, found in times.items()}


def seconds(side: Side, count: int) -> float:
    """The mean of `count` calls."""
    begin = time.perf_counter()
    for _ in range(count):
        side()
    return (time.perf_counter() - begin) / count


def compare(name: str, what: str, size: int, rounds: int) -> None:
    sides, exact = (training if what == "train" else inference)(name, size)
    off = errors(sides, exact, what)
    found = medians(sides, rounds)
    best = min((t, side) for side, t in found.items() if side not in OURS)
    usual = 1.0 if what == "train" else 0.8 if size > 1 else 0.7
    floor = FLOORS.get((name, what), usual)
    ratio = best[0] / found["gpuconv"]
    for side, seconds in found.items():
        print(f"  {side:24} {1e3 * seconds:9.2f} ms   error {off[side]:.1e}")
    verdict = "met" if ratio >= floor else "not met"
    print(f"{name} {what} {size}: {ratio:.2f} of {best[1]}; floor {floor}: {verdict}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", default="", help="networks whose name holds this text")
    parser.add_argument("--what", choices=("train", "infer"), help="one of both")
    parser.add_argument("--batch", type=int, help="this batch size alone")
    parser.add_argument("--rounds", type=int, default=7, help="times that each side runs")
    options = parser.parse_args()
    torch.set_num_threads(gpuconv.thread_count())
    print(f"{gpuconv.thread_count()} threads, medians of {options.rounds}, float32")
    for name, what in itertools.product(NAMES, ("train", "infer")):
        sizes = TRAIN.get(name, (8,)) if what == "train" else (16, 1)
        for size in sizes if options.only in name and options.what in (None, what) else ():
            if options.batch in (None, size):
                compare(name, what, size, options.rounds)


if __name__ == "__main__":
    main()
