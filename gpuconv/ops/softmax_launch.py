"""Launch configurations of softmax and of the losses (kernels/softmax_xent.cu)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from gpuconv.cuda.launch_config import (
    CACHED,
    THREADS,
    Launch,
    LaunchConfig,
    defines,
    loop_grid,
    require_int32,
)

LABELS = {"int32": "int", "int64": "long long"}
MATRICES = ("x", "y", "dx", "dy", "probabilities", "scores", "dscores", "excess")


@lru_cache(maxsize=CACHED)
def config_rowwise(kernel: str, rows: int, classes: int, labels: str = "int32") -> LaunchConfig:
    """A kernel of softmax_xent.cu over a (rows, classes) matrix, without its mean.

    labels: their dtype, "int32" or "int64".
    """
    name = kernel.removesuffix("_forward")
    require_int32(name, rows=rows, classes=classes)
    if labels not in LABELS:
        raise TypeError(f"{name}: labels must be int32 or int64, got {labels}")
    chosen, scalars = defines(LABEL=LABELS[labels]), {"rows": rows, "classes": classes}
    sizes = {**dict.fromkeys(MATRICES, rows * classes), "labels": rows, "row_loss": rows}
    grid = loop_grid(32 * rows)  # a warp a row
    launch = Launch("softmax_xent.cu", kernel, grid, THREADS, chosen, scalars, sizes)
    return LaunchConfig((launch,))


@lru_cache(maxsize=CACHED)
def config_loss(kernel: str, rows: int, classes: int, labels: str = "int32") -> LaunchConfig:
    """A loss's forward kernel, then its mean: "loss", one float, and what backward needs."""
    workspace = {"row_loss": "workspace"}
    first = replace(config_rowwise(kernel, rows, classes, labels).launches[0], arrays=workspace)
    mean = Launch(
        first.file,
        "mean_rows",
        (1, 1, 1),
        THREADS,
        first.defines,
        {"rows": rows},
        {"loss": 1, "row_loss": rows},
        workspace,
    )
    return LaunchConfig((first, mean), rows)
