"""Training steps in each precision: the bytes that they move and their estimated times.

    python benchmarks/precisions.py            # both tables of docs/benchmarks.md
    python benchmarks/precisions.py --docs     # write them there
    python benchmarks/precisions.py --layers resnet50   # the least bytes of each layer's passes

Nothing is measured, and no GPU is needed: launches.py says what is counted and by which model the
times are estimated, layers.py what the least is and how PyTorch's steps are estimated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import launches
import layers

from gpuconv import models

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
MOVED = (("resnet50", 128), ("vgg16", 128))
TIMED = (("resnet18", 128), ("vgg16", 32))
PRECISIONS = ("ieee", "tf32-conv", "tf32", "bf16", "fp16")
# Launches that the rule of the least bytes does not know, by what they are for.
FILTERS = ("filters_forward", "filters_backward")
IMAGES = ("narrow", "widen", "transpose", "pad_channels")


def bytes_table() -> list[str]:
    """Markdown: the bytes of steps in bf16 against the least."""
    lines = ["| step in bf16 | least, GB | moved, GB | ratio | filters laid out, GB | "
             "partial sums, GB | images cast, padded, transposed, GB |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, batch in MOVED:
        least, moved, extras = moved_bytes(name, batch, "bf16")
        cells = [f"{least / 1e9:.2f}", f"{moved / 1e9:.2f}", f"{moved / least:.2f}"]
        cells += [f"{extra / 1e9:.2f}" for extra in extras]
        lines.append(f"| {name}, batch {batch} | {' | '.join(cells)} |")
    return lines


def moved_bytes(name: str, batch: int, precision: str) -> tuple[int, int, list[int]]:
    """(the least bytes of a step, those that it moves, and of these the ones of FILTERS, of partial
    sums of weight gradients, and of IMAGES).
    """
    least = sum(one.least for one in layers.passes(launches.network(name), batch, precision))
    step = launches.training_step(launches.network(name), batch, precision)
    moved = sum(one.read + one.written for one in step)
    filters, images = (
        sum(one.read + one.written for one in step if one.launch.kernel in kernels)
        for kernels in (FILTERS, IMAGES)
    )
    weights = [one.launch for one in step if one.launch.kernel == "conv2d_backward_weight_mma"]
    partial = sum(2 * 4 * (launch.sizes["partials"] or 0) for launch in weights)
    return least, moved, [filters, partial, images]


def times_table() -> list[str]:
    """Markdown: the estimated times of steps, ours and PyTorch's."""
    lines = ["| training step | precision | gpuconv, estimate, ms | PyTorch, estimate, ms | "
             "PyTorch / gpuconv |", "|---|---|---:|---:|---:|"]  # fmt: skip
    return lines + [times_row(name, batch, p) for name, batch in TIMED for p in PRECISIONS]


def times_row(name: str, batch: int, precision: str) -> str:
    step = launches.training_step(launches.network(name), batch, precision)
    ours = sum(map(launches.seconds, step)) * 1e3
    theirs = layers.pytorch_seconds(launches.network(name), batch, precision)
    low, high = (1e3 * one for one in theirs)
    cells = f"{ours:.3g} | {low:.3g} to {high:.3g} | {low / ours:.2f} to {high / ours:.2f}"
    return f"| {name}, batch {batch} | `{precision}` | {cells} |"


TABLES = {"bytes": bytes_table, "precisions": times_table}


def show_layers(name: str, batch: int, precision: str) -> None:
    for one in layers.passes(launches.network(name), batch, precision):
        print(f"{one.least / 1e6:10.1f} MB {one.flops / 1e9:10.1f} GFLOP  {one.layer}, {one.kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--docs", action="store_true", help=f"write the tables to {PAGE.name}")
    parser.add_argument("--layers", metavar="NETWORK", choices=[*models.MODELS])
    parser.add_argument("--batch", type=int, default=128, help="images of the step of --layers")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of --layers")
    given = parser.parse_args()
    if given.layers:
        show_layers(given.layers, given.batch, given.precision)
        return
    text = PAGE.read_text()
    for name, table in TABLES.items():
        lines = table()
        print("\n".join([*lines, ""]))
        before, begin, rest = text.partition(f"<!-- {name} begin -->\n")
        _, end, after = rest.partition(f"<!-- {name} end -->")
        text = "".join([before, begin, "\n".join([*lines, ""]), end, after])
    if given.docs:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
