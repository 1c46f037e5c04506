"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpuconv.viz.figure import figure, save

MOST_NUMBERS = 30  # classes up to which every cell shows its count


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
    drawn = figure(side, side)
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
    save(drawn, path)
