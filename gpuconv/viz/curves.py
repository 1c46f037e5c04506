"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpuconv.metadata import parse_history_line
from gpuconv.viz.figure import GRID, figure, save

TRAIN, VALIDATION = "#1f77b4", "#d62728"


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
    drawn = figure(9, 3.6)
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
    save(drawn, path)


def _read(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            records.append(parse_history_line(line))
        except ValueError:
            raise ValueError(
                f"{path}: not a history of JSON lines: line {number} is no epoch's record"
            ) from None
    return records
