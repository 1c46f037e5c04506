"""Times a training step of every architecture on gpuconv's CPU path and in PyTorch, in turn.

    python benchmarks/compare_models.py                     every model; about 20 minutes
    python benchmarks/compare_models.py --only resnet18     models whose name holds this text
    python benchmarks/compare_models.py --docs              also write docs/benchmarks.md

The step is forward, cross-entropy, backward and SGD with momentum, on batches of 8 of the model's
own images (224x224, LeNet's 32x32). Before anything is timed, both libraries must give the same
loss, gradients (as close to float64's) and running statistics. Peak memory is measured in a process
for each library (model_steps.py says how).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from compare_torch import Result, Row, conditions, measure, torch, write_docs
from model_steps import BATCH, Step, network, ours, theirs

import gpuconv
from gpuconv import models

MARKERS = "<!-- compare_models begin -->", "<!-- compare_models end -->"
NAMES = [name for name in models.MODELS if name != "harley_lenet"]  # a network of 1998, LeNet-5's
# Against the same step in float64: each of our float32 gradients may be off, in norm, by this many
# times as much as PyTorch's float32 one, or by this share of the gradient's. More would be asked in
# vain: a ReLU whose input is almost 0 falls either way, and batch norm over 8x7x7 values carries
# that on; `pytest -m torch` compares in float64, element by element.
TIMES, SHARE = 10.0, 0.05


def same(name: str, mine: Step, other: Step, exact: Step) -> None:
    """Stop unless a step gives the same loss, gradients and running statistics in both."""
    losses = mine.run(), other.run()
    exact.run()
    if not abs(losses[0] - losses[1]) <= 1e-5 * abs(losses[1]):
        sys.exit(f"compare_models: {name}: losses {losses} differ, nothing timed")
    found, rival, truth = (step.gradients() for step in (mine, other, exact))
    if not found.keys() == rival.keys() == truth.keys():
        sys.exit(f"compare_models: {name}: gradients of other tensors, nothing timed")
    for key, value in truth.items():
        ours, theirs = (np.linalg.norm(each[key] - value) for each in (found, rival))
        if not ours <= max(TIMES * theirs, SHARE * np.linalg.norm(value)):
            sys.exit(
                f"compare_models: {name}: {key}'s gradient is off by {ours:.2e}, PyTorch's by"
                f" {theirs:.2e}, nothing timed"
            )
    states = mine.state(), other.state()
    for key in (key for key in states[0] if "running" in key):
        error = np.abs(states[0][key] - states[1][key]).max() / np.abs(states[1][key]).max()
        if not error <= 1e-3:
            sys.exit(f"compare_models: {name}: {key} differs by {error:.2e}, nothing timed")


def timing(name: str, rounds: int) -> Result:
    mine, other = ours(name), theirs(name)
    same(name, mine, other, theirs(name, np.float64))
    shape = network(name).input_shape or ()
    title = f"{name}, {'x'.join(map(str, (BATCH, *shape)))}"
    return measure(Row(title, mine.run, other.run), rounds, 0.0)


def peaks(name: str) -> tuple[int, int]:
    """Peak bytes of a step in gpuconv and in PyTorch, each in its own process."""
    script = Path(__file__).with_name("model_steps.py")
    sizes = [
        int(subprocess.run([sys.executable, script, library, name], check=True, capture_output=True,
                           text=True).stdout)
        for library in ("gpuconv", "torch")
    ]  # fmt: skip
    return sizes[0], sizes[1]


def line(r: Result, mine: int, other: int) -> str:
    times = f"{r.ours * 1e3:.1f} | {r.theirs * 1e3:.1f} | {r.ratio:.2f}x"
    spread = f"{r.spread[0]:.2f} to {r.spread[1]:.2f}"
    memory = f"{mine / 1e6:.0f} | {other / 1e6:.0f} | {mine / other:.2f}x"
    return f"| {r.name} | {times} | {spread} | {memory} |"


HEADER = """\
| training step | gpuconv, ms | PyTorch, ms | ratio | smallest to largest | gpuconv, MB | \
PyTorch, MB | ratio |
|---|---:|---:|---:|---:|---:|---:|---:|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds for each model")
    parser.add_argument("--only", default="", help="models whose name holds this text")
    parser.add_argument("--docs", action="store_true", help="put the table into the docs")
    options = parser.parse_args()
    torch.set_num_threads(gpuconv.thread_count())
    lines = [HEADER]
    print(HEADER)
    for name in NAMES:
        if options.only in name:
            lines.append(line(timing(name, options.rounds), *peaks(name)))
            print(lines[-1], flush=True)
    text = "\n".join([*lines, "", f"{conditions(options.rounds)}."])
    print(f"\n{conditions(options.rounds)}.")
    if options.docs:
        write_docs(text, MARKERS)


if __name__ == "__main__":
    main()
