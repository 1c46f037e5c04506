"""Launch plans of what knows no image: activations, losses, optimisers, layout."""

from __future__ import annotations

from collections.abc import Sequence

from gpuconv.cuda.plan import (
    STRIDE_BLOCKS,
    THREADS,
    Launch,
    Plan,
    Scalar,
    ceil_div,
    defines,
    require_int,
    stride_loop,
    vector,
)

FLIGHT = 4  # vectors a thread handles at once: kernels/elementwise.cuh
CHUNK = 4096  # elements of a block: kernels/optim.cu
WORDS = 5  # of a tensor's row in the optimisers' table: p, grad, two slots, count
LABELS = {"int32": "int", "int64": "long long"}


def elementwise(
    file: str, kernel: str, count: int, aligned: bool = True, **scalars: Scalar
) -> Plan:
    """A kernel of relu.cu, activations.cu or elementwise.cu over `count` elements.

    aligned: whether every array starts at a multiple of 16 bytes.
    """
    vec = 4 if aligned else 1
    grid = stride_loop(ceil_div(count, vec * FLIGHT))
    chosen = defines(VEC=vec)
    return Plan((Launch(file, kernel, grid, THREADS, chosen, {"count": count, **scalars}),))


def dropout(count: int, p: float, seed: int, aligned: bool = True) -> Plan:
    """y from x, as ops.dropout(x, p, seed); the backward pass is the same on dy."""
    threshold, factor = round(p * 2**32), 1 / (1 - p)
    return elementwise(
        "elementwise.cu", "dropout", count, aligned, seed=seed, threshold=threshold, factor=factor
    )


def rowwise(kernel: str, rows: int, classes: int, labels: str = "int32", **scalars: Scalar) -> Plan:
    """A kernel of softmax_xent.cu over a (rows, classes) matrix, without its mean.

    labels: their dtype, "int32" or "int64".
    """
    name = kernel.removesuffix("_forward")
    require_int(name, rows=rows, classes=classes)
    if labels not in LABELS:
        raise TypeError(f"{name}: labels must be int32 or int64, got {labels}")
    grid = stride_loop(32 * rows)
    given = {"rows": rows, "classes": classes, **scalars}
    return Plan(
        (Launch("softmax_xent.cu", kernel, grid, THREADS, defines(LABEL=LABELS[labels]), given),)
    )


def loss(kernel: str, rows: int, classes: int, labels: str = "int32", **scalars: Scalar) -> Plan:
    """A loss's forward kernel, then its mean: "loss", one float, and what backward needs."""
    first = rowwise(kernel, rows, classes, labels, **scalars).launches[0]
    first = Launch(**{**vars(first), "arrays": {"row_loss": "workspace"}})
    mean = Launch(
        first.file,
        "mean_rows",
        (1, 1, 1),
        THREADS,
        first.defines,
        {"rows": rows},
        {"row_loss": "workspace"},
    )
    return Plan((first, mean), rows)


def smoothing(label_smoothing: float, classes: int) -> dict[str, float]:
    """Cross-entropy's target: `even` for every class, and `right` besides for the label."""
    return {"right": 1 - label_smoothing, "even": label_smoothing / classes}


def chunks(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """(owner, part) of every chunk of tensors of these sizes, as optim.cu's kernels take them."""
    owner: list[int] = []
    part: list[int] = []
    for tensor, count in enumerate(counts):
        parts = ceil_div(count, CHUNK)
        owner += [tensor] * parts
        part += range(parts)
    return owner, part


def optimizer(kernel: str, number: int, **scalars: Scalar) -> Plan:
    """A kernel of optim.cu ("sgd", "sgd_momentum" or "adam") over `number` chunks."""
    require_int(kernel, chunks=number)
    grid = (min(max(number, 1), STRIDE_BLOCKS), 1, 1)
    return Plan((Launch("optim.cu", kernel, grid, THREADS, (), {"chunks": number, **scalars}),))


def transpose(batch: int, rows: int, columns: int) -> Plan:
    """y (batch, columns, rows) from x (batch, rows, columns).

    No launch where one of them is 1: the same memory is both.
    """
    if rows == 1 or columns == 1:
        return Plan(())
    require_int("transpose", rows=rows + 64, columns=columns + 64)
    vec = vector(rows, columns)
    side = 64 if vec == 4 else 32
    down, across = ceil_div(rows, side), ceil_div(columns, side)
    require_int("transpose", tiles_of_a_matrix=down * across)
    tiles = batch * down * across
    scalars = {
        **{"tiles": tiles, "tiles_down": down, "tiles_across": across},
        **{"rows": rows, "columns": columns},
    }
    grid = (min(max(tiles, 1), STRIDE_BLOCKS), 1, 1)
    return Plan((Launch("layout.cu", "transpose", grid, THREADS, defines(VEC=vec), scalars),))


def to_channels_last(N: int, C: int, H: int, W: int) -> Plan:
    """NHWC from NCHW (and KRSC from OIHW)."""
    return transpose(N, C, H * W)


def to_channels_first(N: int, C: int, H: int, W: int) -> Plan:
    """NCHW from NHWC (and OIHW from KRSC)."""
    return transpose(N, H * W, C)
