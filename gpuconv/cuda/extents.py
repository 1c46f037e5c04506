"""How many elements each kernel reads or writes through each pointer, from its own numbers.

The "Layout" line of each kernel's header, as formulas; `kernel.bind` refuses any array of another
size. A workspace is exactly what its plan asked for. Optimisers' tables are checked where they are
made: gpuconv/optim/device.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

Numbers = Any  # a launch's scalars, whole-number macros and grid as attributes
Formula = Callable[[Numbers], int]


def _count(n: Numbers) -> int:
    return n.count


def _table(n: Numbers) -> int:
    return n.rows * n.classes


def _row(n: Numbers) -> int:
    return n.rows


def _one(n: Numbers) -> int:
    return 1


def _x(n: Numbers) -> int:
    """(N, H, W, C) where `pixels` are those of y."""
    return n.pixels // (n.P * n.Q) * n.H * n.W * n.C


def _y(n: Numbers) -> int:
    """(N, P, Q, K) where `pixels` are those of x."""
    return n.pixels // (n.H * n.W) * n.P * n.Q * n.K


def _matrices(n: Numbers) -> int:
    return n.tiles // (n.tiles_down * n.tiles_across) * n.rows * n.columns


def _own(channels: str) -> Formula:
    return lambda n: n.pixels * getattr(n, channels)


def _filters(n: Numbers) -> int:
    """(K, R, S, C/groups) of a convolution, whichever way its kernel counts them."""
    channels = n.channels if hasattr(n, "channels") else 1
    return n.K * n.R * n.S * channels


def _images(n: Numbers) -> int:
    """Of a launch of conv_first.cu."""
    if hasattr(n, "segments"):
        return n.segments // (n.P * n.tiles_w)
    return n.grid[0] // (n.tiles_h * n.tiles_w * n.blocks)


def _few(n: Numbers) -> int:
    """(N, H, W, C) of conv_first.cu."""
    return _images(n) * n.H * n.W * n.C


def _many(n: Numbers) -> int:
    """(N, P, Q, K) of conv_first.cu."""
    return _images(n) * n.P * n.Q * n.K


def _pooled(n: Numbers) -> int:
    """(N, P, Q, C) where `pixels` are those of x."""
    return n.pixels // (n.H * n.W) * n.P * n.Q * n.C


def _cells(n: Numbers) -> int:
    """(N, P, Q, C) where `cells` are x's, of 2x2 pixels."""
    return n.cells // (n.rows * n.columns) * n.P * n.Q * n.C


def _rows(pitch: str) -> Formula:
    """Pixels of C channels that lie so far apart, from the first element to the last."""
    return lambda n: (n.pixels - 1) * getattr(n, pitch) + n.C


def _channels(n: Numbers) -> int:
    return n.C


def _norm(*names: str) -> dict[str, Formula]:
    return dict.fromkeys(names, _channels)


_EACH = dict.fromkeys(("x", "y", "dx", "dy", "to", "a", "b"), _count)
_CONV_FORWARD = {"y": _own("K"), "x": _x, "w": _filters, "b": lambda n: n.K}
_CONV_DATA = {"dx": _own("C"), "dy": _y, "w": _filters, "x": _own("C")}
_MATRICES = ("x", "y", "dx", "dy", "probabilities", "scores", "dscores", "excess")
_ROWS = {**dict.fromkeys(_MATRICES, _table), **dict.fromkeys(("labels", "row_loss"), _row)}
_POOL = {"y": _own("C"), "argmax": _own("C"), "x": _x}
_POOL_BACK = {"dx": _own("C"), "dy": _pooled, "argmax": _pooled}

_CHANNELS = {"to": _rows("to_pitch"), "from": _rows("from_pitch")}
_NORM = _norm("w", "b", "mean", "var")
_NORM_BACK = {"dy": _rows("dy_pitch"), "x": _rows("pitch"), **_NORM}

EXTENTS: Mapping[str, Mapping[str, Formula]] = {
    **{
        f"{name}_{way}": _EACH
        for name in ("relu", "leaky_relu", "tanh", "scaled_tanh", "sigmoid")
        for way in ("forward", "backward")
    },
    **dict.fromkeys(("add", "add_relu", "multiply", "scale", "dropout"), _EACH),
    **{
        f"{name}_{way}": _ROWS
        for name in ("softmax", "cross_entropy", "half_squared_error", "hinge")
        for way in ("forward", "backward")
    },
    "mean_rows": {"loss": _one, "row_loss": _row},
    "transpose": dict.fromkeys(("x", "y"), _matrices),
    "sum_slices": {"out": _count, "slices": lambda n: n.count * n.number},
    "conv2d_forward_simt": _CONV_FORWARD,
    "conv2d_forward_depthwise": _CONV_FORWARD,
    "conv2d_backward_data_simt": _CONV_DATA,
    "conv2d_backward_data_depthwise": _CONV_DATA,
    "conv2d_backward_weight_simt": {
        "slices": lambda n: n.K * n.columns * n.grid[2],
        "dy": _own("K"),
        "x": _x,
    },
    "conv2d_backward_weight_depthwise": {
        "slices": lambda n: n.K * n.R * n.S * n.grid[1],
        "dy": _own("K"),
        "x": _x,
    },
    "conv2d_forward_first": {
        "y": _many,
        "x": _few,
        "w": lambda n: n.K * n.R * n.S * n.C,
        "b": lambda n: n.K,
    },
    "conv2d_backward_weight_first": {
        "slices": lambda n: n.K * n.R * n.S * n.C * n.grid[2],
        "dy": _many,
        "x": _few,
    },
    "conv2d_backward_bias_slices": {
        "slices": lambda n: n.K * n.grid[1],
        "dy": lambda n: n.pixels * n.K,
    },
    "max_pool2d_forward": _POOL,
    "max_pool2d_backward": _POOL_BACK,
    "bias_relu_max_pool2d_forward": {**_POOL, "b": _channels},
    "bias_relu_max_pool2d_backward": {
        "dx": lambda n: n.cells // (n.rows * n.columns) * n.H * n.W * n.C,
        **dict.fromkeys(("dy", "y", "argmax"), _cells),
    },
    "avg_pool2d_forward": _POOL,
    "avg_pool2d_backward": _POOL_BACK,
    **{name: dict(_CHANNELS) for name in ("copy_channels", "add_channels")},
    "batch_norm2d_statistics": {
        "slices": lambda n: (2 * n.grid[1] + 1) * n.C,
        "x": _rows("pitch"),
    },
    "batch_norm2d_merge": {
        "slices": lambda n: (2 * n.number + 1) * n.C,
        **_norm("mean", "var"),
    },
    "batch_norm2d_forward": {"y": _own("C"), "x": _rows("pitch"), **_NORM},
    "batch_norm2d_backward_sums": {"slices": lambda n: 2 * n.grid[1] * n.C, **_NORM_BACK},
    "batch_norm2d_backward_merge": {
        "slices": lambda n: 2 * n.number * n.C,
        **_norm("dw", "db", "var"),
    },
    "batch_norm2d_backward": {"dx": _own("C"), **_NORM_BACK, **_norm("dw", "db")},
    "batch_norm2d_track": _norm("running_mean", "running_var", "mean", "var"),
    "global_avg_pool2d_forward": {
        "y": lambda n: n.images * n.C,
        "x": lambda n: n.images * n.size * n.C,
    },
    "adaptive_avg_pool2d_forward": {"y": _own("C"), "x": _x},
    "adaptive_avg_pool2d_backward": {"dx": _own("C"), "dy": _pooled},
    "local_response_norm_forward": dict.fromkeys(("y", "x"), _own("C")),
    "local_response_norm_backward": dict.fromkeys(("dx", "dy", "x"), _own("C")),
    "partial_filters_forward": {
        "w": _count,
        "links": lambda n: n.number * n.taps,
        "table": lambda n: n.count // n.taps,
    },
    "partial_filters_backward": {
        "dlinks": _count,
        "dw": lambda n: n.pairs * n.taps,
        "places": lambda n: n.count // n.taps,
    },
    **{name: {} for name in ("sgd", "sgd_momentum", "adam")},
}

# Pointers that a launch never follows where this number is 0, so any array stands in for them.
UNREAD = {"b": "use_bias", "x": "use_mask", "w": "use_weight", "dw": "of_batch", "db": "of_batch"}


def expected(
    kernel: str, pointer: str, scalars: Mapping[str, int | float], grid: tuple[int, int, int]
) -> int | None:
    """Elements that `kernel` reaches through `pointer`; None where nothing is known or read.

    scalars: the launch's, and those of its macros that are whole numbers.
    """
    if scalars.get(UNREAD.get(pointer, "")) == 0:
        return None
    formula = EXTENTS.get(kernel, {}).get(pointer)
    return None if formula is None else formula(SimpleNamespace(**scalars, grid=grid))
