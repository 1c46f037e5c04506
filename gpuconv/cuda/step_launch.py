"""Launch configurations of kernels/step.cu: what a recorded step reads and writes besides its work.

COLUMNS, CORRECT and the layout of `state` are those of the kernels.
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
STATE, NOTED, STEP = 8, 1, 4  # words, of which the first is `stop`; `step` is aligned to 16 bytes
COLUMNS, CORRECT, NORM, LOSSES = 8, 0, 1, 2  # of the ring; losses from the third on
NO_LABELS = defines(LABEL="int")


@lru_cache(maxsize=CACHED)
def config_note_batch(
    rows: int, classes: int, labels: str, slots: int, room: tuple[int, int]
) -> LaunchConfig:
    """note_batch: the loss and how many of the scores (rows, classes) are right. labels: their
    type in C. room: the seeds and numbers that arrays hold; of those used the numbers seed_count
    and number_count tell.
    """
    require_int32("note_batch", rows=rows, classes=classes)
    lanes = 1
    while lanes < 32 and lanes * 8 < classes:
        lanes *= 2
    scalars = {"rows": rows, "classes": classes, "lanes": lanes}
    scalars |= {"column": LOSSES, "slots": slots}
    sizes = {"ring": COLUMNS * slots + 1, "state": STATE, "loss": 1}
    sizes |= {"scores": rows * classes, "labels": rows}
    sizes |= {"seeds": room[0], "later_seeds": room[0]}
    sizes |= {
        "numbers": room[1],
        "later_numbers": room[1],
        "table": slots * (2 * room[0] + room[1]),
    }
    return _one_block("note_batch", defines(LABEL=labels), scalars, sizes)


@lru_cache(maxsize=CACHED)
def config_note_loss(column: int, slots: int, turned: bool = False) -> LaunchConfig:
    """note_loss: a number to a column of the ring; turned: of the step that note_batch was for."""
    sizes = {"ring": COLUMNS * slots + 1, "state": STATE, "loss": 1}
    return _one_block(
        "note_loss", NO_LABELS, {"column": column, "turned": int(turned), "slots": slots}, sizes
    )


def _one_block(
    kernel: str,
    chosen: tuple[tuple[str, str], ...],
    scalars: dict[str, int],
    sizes: dict[str, int],
) -> LaunchConfig:
    return LaunchConfig((Launch(FILE, kernel, (1, 1, 1), THREADS, chosen, scalars, sizes),))
