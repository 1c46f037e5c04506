"""Launch configurations of softmax and of the losses (kernels/softmax_xent.cu)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from gpuconv.cuda.launch_config import (
    CACHED,
    THREADS,
    Launch,
    LaunchConfig,
    defines,
    loop_grid,
    require_int32,
)

NO_ARRAYS: Mapping[str, str] = MappingProxyType({})
LABELS = {
    **{"int8": "signed char", "int16": "short", "int32": "int", "int64": "long long"},
    **{"uint8": "unsigned char", "uint16": "unsigned short", "uint32": "unsigned int"},
    "uint64": "unsigned long long",
}
MAX_ROWS, MAX_CLASSES = 1024, 64  # of a loss that one block computes, a thread a row
MATRICES = ("x", "y", "dx", "dy", "probabilities", "scores", "dscores", "excess")


@lru_cache(maxsize=CACHED)
def config_rowwise(kernel: str, rows: int, classes: int) -> LaunchConfig:
    """A kernel of softmax_xent.cu over a (rows, classes) matrix."""
    return LaunchConfig((_rowwise(kernel, rows, classes, "int32", False),))


@lru_cache(maxsize=CACHED)
def config_loss(
    kernel: str, rows: int, classes: int, labels: str, weighted: bool = False
) -> LaunchConfig:
    """A loss's forward kernel, then its mean: "loss", one float, and what backward needs.

    labels: their dtype. weighted: whether cross-entropy's classes have weights; without, any array
    stands in for "weight".
    """
    first = _rowwise(kernel, rows, classes, labels, weighted, {"row_loss": "workspace"})
    if kernel == "cross_entropy_forward":
        mean = _one_block("cross_entropy_mean", first)
    else:
        mean = replace(_one_block("mean_rows", first), scalars={"rows": rows})
    return LaunchConfig((first, mean), rows)


@lru_cache(maxsize=CACHED)
def config_loss_backward(
    kernel: str, rows: int, classes: int, labels: str, weighted: bool = False
) -> LaunchConfig:
    """A loss's backward kernel, for cross-entropy after the sum of what its mean divides by."""
    if kernel != "cross_entropy_backward":
        return LaunchConfig((_rowwise(kernel, rows, classes, labels, weighted),))
    last = _rowwise(kernel, rows, classes, labels, weighted, {"total": "workspace"})
    return LaunchConfig((_one_block("cross_entropy_total", last), last), 1)


def few(rows: int, classes: int) -> bool:
    """Whether one block is enough for a loss and its gradient."""
    return 0 < rows <= MAX_ROWS and 0 < classes <= MAX_CLASSES


@lru_cache(maxsize=CACHED)
def config_loss_and_gradient(
    rows: int, classes: int, labels: str, weighted: bool = False
) -> LaunchConfig:
    """Cross-entropy of `few` rows and classes: "loss" and "dscores" from "scores" and "labels"."""
    first = _rowwise("cross_entropy_forward", rows, classes, labels, weighted)
    return LaunchConfig((_one_block("cross_entropy_and_gradient", first),))


def _rowwise(
    kernel: str,
    rows: int,
    classes: int,
    labels: str,
    weighted: bool,
    arrays: Mapping[str, str] = NO_ARRAYS,
) -> Launch:
    name = kernel.removesuffix("_forward")
    require_int32(name, rows=rows, classes=classes)
    if labels not in LABELS:
        raise TypeError(f"{name}: labels must be integers, got {labels}")
    chosen, scalars = defines(LABEL=LABELS[labels]), {"rows": rows, "classes": classes}
    if kernel.startswith("cross_entropy"):
        scalars["use_weight"] = int(weighted)
    sizes: dict[str, int | None] = dict.fromkeys(MATRICES, rows * classes)
    sizes |= {
        "labels": rows,
        "row_loss": rows,
        "loss": 1,
        "total": 1,
        "weight": classes if weighted else None,
    }
    grid = loop_grid(32 * rows)  # a warp a row
    return Launch("softmax_xent.cu", kernel, grid, THREADS, chosen, scalars, sizes, arrays)


def _one_block(kernel: str, like: Launch) -> Launch:
    """A kernel of one block over the same rows."""
    return replace(like, kernel=kernel, grid=(1, 1, 1))
