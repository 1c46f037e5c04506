"""Learning curves and confusion matrices, drawn with matplotlib.

It is imported when something is drawn, and used without a window and without its global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpuconv.files import write_atomically
from gpuconv.metadata import EPOCH, parse

TRAIN, VALIDATION = "#1f77b4", "#d62728"
GRID = "#dddddd"
MOST_NUMBERS = 30  # classes up to which every cell shows its count


def curves(history: Sequence[Mapping[str, Any]] | str | Path, path: str | Path) -> None:
    """Draw loss and accuracy over the epochs as PNG.

    history: a `Trainer.fit`'s records, or the path of a run's history.jsonl. Of each epoch "epoch",
    "loss" and "accuracy" are drawn, "validation_loss" and "validation_accuracy" where they are; the
    training's are means over the epoch, while the network was still changing.
    Raises ValueError for a history without epochs, ImportError without matplotlib, OSError where a
    file cannot be read or written.
    """
    records = _read(Path(history)) if isinstance(history, (str, Path)) else history
    epochs = [record for record in records if "batch" not in record]
    if not epochs:
        raise ValueError(f"{path}: the history has no finished epoch to draw")
    drawn = _figure(9, 3.6)
    for axes, what, scale in zip(drawn.subplots(1, 2), ("loss", "accuracy"), (1, 100), strict=True):
        for key, label, color in (
            (what, "training", TRAIN),
            (f"validation_{what}", "validation", VALIDATION),
        ):
            points = [(one["epoch"], scale * one[key]) for one in epochs if key in one]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", ms=4, color=color, label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(what if scale == 1 else f"{what}, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color=GRID)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    _save(drawn, path)


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            records.append(parse(line, EPOCH))
        except ValueError:
            raise ValueError(
                f"{path}: not a history of JSON lines: line {number} is no epoch's record"
            ) from None
    return records


def confusion(matrix: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix as PNG: a row for each true class, a column for each answer.

    matrix: (classes, classes) counts. Colour is the share of the row, so that rare classes show
    as well as frequent ones; the numbers are counts.
    Raises ValueError for shapes that do not fit, ImportError without matplotlib, OSError where the
    file cannot be written.
    """
    counts = np.asarray(matrix)
    n = len(classes)
    if counts.shape != (n, n):
        raise ValueError(f"a confusion matrix of {n} classes is {n}x{n}, got shape {counts.shape}")
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.55 * n + 1.5), 16.0)
    drawn = _figure(side, side)
    axes = drawn.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(n), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    axes.set_yticks(range(n), classes)
    axes.set_xlabel("the network's answer")
    axes.set_ylabel("true class")
    right = int(np.trace(counts))
    axes.set_title(f"{right:,} of {int(counts.sum()):,} right")
    if n <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if share[row, column] > 0.5 else "black"
            text = str(int(counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    _save(drawn, path)


def _figure(width: float, height: float) -> Any:
    """An empty figure of that many inches. ImportError where matplotlib is missing or fails."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f'curves and confusion matrices need matplotlib ({error}): pip install "gpuconv[viz]"'
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def _save(drawn: Any, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all. OSError on failure."""
    content = io.BytesIO()
    drawn.savefig(content, format="png", dpi=120, metadata={"Software": None})
    write_atomically(path, content.getvalue())
