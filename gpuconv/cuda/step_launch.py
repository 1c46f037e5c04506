"""Launch configurations of kernels/step.cu: what a recorded step reads and writes besides its work.

COLUMNS, CORRECT, NORM and the layout of `state` are those of the kernels.
"""

from __future__ import annotations

from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
    THREADS,
    Launch,
    LaunchConfig,
    defines,
    require_int32,
)

FILE = "step.cu"
STATE, STEP = 8, 4  # words, of which the first is `stop`; `step` is aligned to 16 bytes
COLUMNS, CORRECT, NORM, LOSSES = 8, 0, 1, 2  # of the ring; losses from the third on
NO_LABELS = defines(LABEL="int")


@lru_cache(maxsize=CACHED)
def config_begin(seeds: int, numbers: int, slots: int, room: tuple[int, int]) -> LaunchConfig:
    """begin_step for `slots` rows of so many seeds and numbers; room: what their arrays hold."""
    scalars = {"seed_count": seeds, "number_count": numbers, "slots": slots}
    sizes = {
        **{"state": STATE, "seeds": room[0], "numbers": room[1], "ring": COLUMNS * slots + 1},
        "table": slots * (2 * room[0] + room[1]),
    }
    return _one_block("begin_step", NO_LABELS, scalars, sizes)


@lru_cache(maxsize=CACHED)
def config_note_batch(rows: int, classes: int, labels: str, slots: int) -> LaunchConfig:
    """note_batch: the loss and how many of the scores (rows, classes) are right. labels: their
    type in C.
    """
    require_int32("note_batch", rows=rows, classes=classes)
    lanes = 1
    while lanes < 32 and lanes * 8 < classes:
        lanes *= 2
    scalars = {"rows": rows, "classes": classes, "lanes": lanes}
    scalars |= {"column": LOSSES, "slots": slots}
    sizes = {"ring": COLUMNS * slots + 1, "state": STATE, "loss": 1}
    sizes |= {"scores": rows * classes, "labels": rows}
    return _one_block("note_batch", defines(LABEL=labels), scalars, sizes)


@lru_cache(maxsize=CACHED)
def config_note_loss(column: int, slots: int) -> LaunchConfig:
    """note_loss: a number to a column of the ring."""
    sizes = {"ring": COLUMNS * slots + 1, "state": STATE, "loss": 1}
    return _one_block("note_loss", NO_LABELS, {"column": column, "slots": slots}, sizes)


def _one_block(
    kernel: str,
    chosen: tuple[tuple[str, str], ...],
    scalars: dict[str, int],
    sizes: dict[str, int],
) -> LaunchConfig:
    return LaunchConfig((Launch(FILE, kernel, (1, 1, 1), THREADS, chosen, scalars, sizes),))
