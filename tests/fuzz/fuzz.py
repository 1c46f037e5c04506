"""Try hostile inputs of all kinds, and print a table of what came of them.

python tests/fuzz/fuzz.py                     all of them, at most 20 minutes on two cores
python tests/fuzz/fuzz.py --docs              and put the table into docs/robustness.md
python tests/fuzz/fuzz.py --kind pictures     one kind alone; --share 0.1: a tenth
python tests/fuzz/fuzz.py --one pictures 17   one input, its files kept and its output shown
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import numpy as np
import PIL
import safetensors
from fuzz_arrays import arrays
from fuzz_checkpoints import metadata, tensors
from fuzz_idx import idx
from fuzz_pictures import picture
from fuzz_requests import run_requests
from fuzz_runs import history
from harness import BYTES, FRESH_EVERY, SECONDS, Case, Outcome, run, write_files
from stage import Stage, stage

KINDS: dict[str, tuple[str, int]] = {  # what they are, and how many are tried
    "tensors": ("safetensors files", 2000),
    "metadata": ("checkpoints' metadata", 500),
    "history": ("histories of runs", 500),
    "idx": ("IDX files", 500),
    "arrays": ("NumPy's and CIFAR's files", 200),
    "pictures": ("pictures", 1000),
    "requests": ("requests to the page", 2000),
}
CASES: dict[str, Callable[[Stage, int], Case]] = {
    "tensors": tensors, "metadata": metadata, "history": history, "idx": idx,
    "arrays": arrays, "pictures": picture,
}  # fmt: skip
PER_SERVER = 100
DOCS = Path(__file__).parents[2] / "docs" / "robustness.md"
MARKERS = "<!-- fuzz begin -->", "<!-- fuzz end -->"


def try_all(kind: str, numbers: Iterable[int], processes: int = 2) -> list[Outcome]:
    """The outcomes of a kind's inputs with these numbers."""
    stage()  # before the processes are forked
    chosen = list(numbers)
    if kind == "requests":
        work = [chosen[i : i + PER_SERVER] for i in range(0, len(chosen), PER_SERVER)]
        one: Callable = _requests
    else:
        work = [chosen[i : i + 4] for i in range(0, len(chosen), 4)]
        one = functools.partial(_cases, kind)
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=100) as pool:
        found = pool.imap(one, work)
        return [outcome for outcomes in found for outcome in outcomes]


def _cases(kind: str, numbers: list[int]) -> list[Outcome]:
    return [run(CASES[kind](stage(), n), fresh=n % FRESH_EVERY == 50) for n in numbers]


def _requests(numbers: list[int]) -> list[Outcome]:
    return list(run_requests(stage(), numbers))


def table(found: dict[str, list[Outcome]]) -> str:
    """One row for each kind."""
    lines = [
        "| kind | inputs | answers | refusals | slowest (s) | most memory (MB) |",
        "|---|---|---|---|---|---|",
    ]
    for kind, outcomes in found.items():
        answers = sum(outcome.answered for outcome in outcomes)
        slowest = max(outcome.seconds for outcome in outcomes)
        most = max(outcome.memory for outcome in outcomes) / 1e6
        lines.append(
            f"| {KINDS[kind][0]} | {len(outcomes):,} | {answers:,} | {len(outcomes) - answers:,}"
            f" | {slowest:.2f} | {most:.0f} |"
        )
    return "\n".join(lines)


def conditions() -> str:
    """Where and when the table was made."""
    return (
        f"{date.today()}; {os.cpu_count()} cores, Python {platform.python_version()}, NumPy"
        f" {np.__version__}, Pillow {PIL.__version__}, safetensors {safetensors.__version__}."
    )


def write_docs(text: str) -> None:
    """Put the table between the markers of docs/robustness.md."""
    begin, end = MARKERS
    before, rest = DOCS.read_text().split(begin)
    DOCS.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")


def show_one(kind: str, number: int) -> Outcome:
    """Run one input, and keep its files in a folder of its name."""
    if kind == "requests":
        first = number - number % PER_SERVER
        return list(run_requests(stage(), range(first, number + 1)))[-1]
    case = CASES[kind](stage(), number)
    folder = Path(f"{kind}-{number}")
    write_files(folder, case.files)
    print(f"its files are in {folder}/")
    return run(case)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "NUMBER"))
    options = parser.parse_args()
    if options.one:
        outcome = show_one(options.one[0], int(options.one[1]))
        print(f"{outcome}\n{outcome.shown}")
        return 0
    found = {}
    for kind in options.kind or KINDS:
        count = max(1, round(KINDS[kind][1] * options.share))
        found[kind] = try_all(kind, range(count))
        for outcome in found[kind]:
            if outcome.problem:
                print(f"\n{outcome.name}: {outcome.problem}\n{outcome.shown}", flush=True)
        print(table({kind: found[kind]}).splitlines()[-1], file=sys.stderr, flush=True)
    text = f"{table(found)}\n\n{conditions()}"
    print(f"\n{text}")
    wrong = [each for outcomes in found.values() for each in outcomes if each.problem]
    print(f"{len(wrong)} of them wrong; right is an answer or one line and code 2, within "
          f"{SECONDS:.0f} s and {BYTES >> 20} MB")  # fmt: skip
    if options.docs:
        write_docs(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
