"""What the commands' options share: a parser that raises, and types that say what they expect."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Container, Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NoReturn

from gpuconv.devices import DEVICES
from gpuconv.errors import unknown

if TYPE_CHECKING:
    import numpy as np


YES_OR_NO = argparse.BooleanOptionalAction
REPEATED, MAY_LACK, ONE_OR_MORE = {"action": "append"}, {"nargs": "?"}, {"nargs": "+"}


class UsageError(ValueError):
    """Arguments that the command line cannot take."""


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UsageError instead of printing its usage and leaving."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        ours = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(*args, **{**ours, **kwargs})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("gpuconv").strip()
        where = f"{command}: " if command else ""
        raise UsageError(f"{where}{' '.join(message.split())} (see {self.prog} --help)")

    def options(self) -> list[str]:
        """The names of all options."""
        return [name for action in self._actions for name in action.option_strings]


def add_options(parser: argparse._ActionsContainer, *rows: tuple[Any, ...]) -> None:
    """Arguments as rows: (names, metavar, type, help), the default where it is not None, and a dict
    of what else argparse shall know.

    The help names a default. An option of type bool is a flag; one of YES_OR_NO is also --no-...
    """
    for names, metavar, kind, text, *rest in rows:
        if kind in (bool, YES_OR_NO):
            parser.add_argument(names, action="store_true" if kind is bool else kind, help=text)
            continue
        others = rest.pop() if rest and isinstance(rest[-1], dict) else {}
        parser.add_argument(
            *names.split(),
            metavar=metavar,
            type=kind,
            help=" ".join([text, *(f"(default: {value})" for value in rest)]),
            default=rest[0] if rest else None,
            **others,
        )


def one_of(what: str, names: Iterable[str]) -> Callable[[str], str]:
    """A type for argparse: one of the names; else an error with the nearest of them."""
    known = list(names)

    def parse(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(str(unknown(what, text, known)))
        return text

    return parse


def path(text: str) -> str:
    """A type for argparse: a path; not the empty text that an unset variable of a shell leaves."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got ''")
    return text


def whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A type for argparse: a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            bounds = f"at least {least}" + (f" and at most {most}" if most < math.inf else "")
            raise argparse.ArgumentTypeError(f"expected a whole number of {bounds}, got {text!r}")
        return value

    return parse


def number(
    least: float = 0.0, below: float = math.inf, positive: bool = False, most: float = math.inf
) -> Callable[[str], float]:
    """A type for argparse: a finite number from `least`, or above 0, to `most` or below `below`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (least <= value < below and value <= most) or (positive and not value):
            lower = "more than 0" if positive else f"at least {least:g}"
            upper = "" if below == math.inf else f" and below {below:g}"
            upper += "" if most == math.inf else f" and at most {most:g}"
            raise argparse.ArgumentTypeError(f"expected a number of {lower}{upper}, got {text!r}")
        return value

    return parse


def wholes(
    expected: str, counts: Container[int] = range(1, 999), least: int = 1, most: float = math.inf
) -> Callable[[str], tuple[int, ...]]:
    """A type for argparse: so many whole numbers from `least` to `most`, parted by "," or "x"."""

    def parse(text: str) -> tuple[int, ...]:
        parts = [part.strip() for part in text.replace("x", ",").split(",")]
        digits = len(parts) in counts and all(part.isdecimal() for part in parts)
        if not digits or not all(least <= int(part) <= most for part in parts):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return tuple(map(int, parts))

    return parse


numbers = wholes("whole numbers such as 3,0,5", least=0)
image_shape = wholes("channels,height,width such as 1,32,32", counts=(3,))
_sides = wholes("a side from 1 to 4096, or height and width such as 48x64", (1, 2), most=4096)


def image_size(text: str) -> list[int]:
    """A type for argparse: "64" or "48x64" as [height, width]."""
    sides = _sides(text)
    return [sides[0], sides[-1]]


def matrix(text: str) -> np.ndarray:
    """A type for argparse: "0 -1 0; -1 5 -1; 0 -1 0" as a float64 matrix.

    Rows are parted by ";", numbers by spaces or commas; 1/9 is a number too.
    """
    rows = [row.replace(",", " ").split() for row in text.strip().rstrip(";").split(";")]
    if not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        lengths = ", ".join(str(len(row)) for row in rows)
        raise argparse.ArgumentTypeError(
            f'expected rows of equal length such as "0 1 0; 1 -4 1; 0 1 0", '
            f"got rows of {lengths} numbers"
        )
    import numpy as np

    return np.array([[_entry(entry) for entry in row] for row in rows])


def _entry(text: str) -> float:
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a matrix of numbers, {text!r} is none")
    return value


OWN_NETWORK = (
    "--model",
    "FILE:FUNCTION",
    str,
    "what builds the checkpoint's network, mynet.py:build, where gpuconv alone cannot",
    {"dest": "built_by"},
)
CHECKPOINT = ("checkpoint", "CHECKPOINT", str, "a .safetensors or .onnx file")
INVERT = (
    "--invert",
    None,
    YES_OR_NO,
    "for dark figures on a light ground (default: decided by the picture's border)",
)
THREADS = ("--threads", "N", whole(1), "of the CPU path (default: all cores)")
SKIP_BAD = (
    "--skip-bad",
    None,
    bool,
    "pass over pictures that cannot be read; they are counted and named",
)
DEVICE = (
    "--device",
    "NAME",
    one_of("device", [*DEVICES, "auto"]),
    f"auto, {', '.join(DEVICES)}; auto is the fastest there is",
    "auto",
)
PORT = (
    "--port",
    "N",
    whole(0, 65535),
    "of the page; where it is busy the next free one is taken; 0: any",
    8123,
)
IMAGES = (  # which of them a command reads
    ("--data", "NAME|PATH", path, "(default: what the network learned from)"),
    ("--limit", "N", whole(1), "only the first N images"),
    ("--split", "NAME", one_of("split", ["train", "test"]), "train or test", "test"),
    SKIP_BAD,
)


def output(name: str) -> tuple[Any, ...]:
    """-o, the PNG that a command draws; `name` unless it is given."""
    return "-o --output", "PNG", path, "", name


def seed(what: str) -> tuple[Any, ...]:
    """--seed, for `what`."""
    return "--seed", "N", whole(0), what, 0
