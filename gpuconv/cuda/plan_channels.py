"""Launch plans over channels-last pixels that may lie apart: batch norm, joining, pooling of all.

Kernels: kernels/batchnorm.cu, kernels/channels.cu, kernels/adaptive_avgpool.cu, kernels/lrn.cu.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpuconv.cuda.plan import (
    GRID_YZ,
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
from gpuconv.cuda.plan_slices import slice_length

Shape = tuple[int, int, int, int]

FLIGHT = 4  # pixels that a thread has in flight: kernels/channels.cuh
LANES_MOST = 32  # threads along the channels: a warp, 512 bytes of a pixel
MERGE_LANES = 8  # channels of a block that merges slices: kernels/batchnorm.cu
SHARED_MOST = 48 << 10  # what every architecture grants without asking
BATCH_NORM = "batchnorm.cu"


def channels(kernel: str, shape: Shape, to_pitch: int, from_pitch: int, vec: int) -> Plan:
    """copy_channels or add_channels: "to" from "from", both (N, H, W, C), shape being (N, C, H, W).

    Pitches: elements from a pixel to the next. vec: 4 where all is whole and aligned, else 1.
    """
    pixels, C = _sizes(kernel, shape)
    scalars = {"to_pitch": to_pitch, "from_pitch": from_pitch}
    return Plan((_strided("channels.cu", kernel, pixels, C, vec, scalars),))


def batch_norm2d_statistics(shape: Shape, pitch: int, vec: int) -> Plan:
    """mean and var (C) of x; shape is (N, C, H, W), x's pixels are `pitch` elements apart."""
    pixels, C = _sizes("batch_norm2d", shape)
    scalars = {"pixels": pixels, "pitch": pitch, "C": C}
    first, number = _sliced("batch_norm2d_statistics", pixels, C, vec, scalars)
    given = {"pixels": pixels, "C": C, "slice": first.scalars["slice"], "number": number}
    return Plan((first, _merging("batch_norm2d_merge", C, given)), (2 * number + 1) * C)


def batch_norm2d(
    shape: Shape, pitch: int, vec: int, numbers: Mapping[str, Scalar], relu: bool
) -> Plan:
    """y (N, H, W, C) from x, w, b, mean, var. numbers: eps, use_weight and use_bias."""
    pixels, C = _sizes("batch_norm2d", shape)
    scalars = {"pitch": pitch, **numbers, "rectify": int(relu)}
    return Plan((_strided(BATCH_NORM, "batch_norm2d_forward", pixels, C, vec, scalars),))


def batch_norm2d_sums(
    shape: Shape,
    pitches: Mapping[str, int],
    vec: int,
    numbers: Mapping[str, Scalar],
    relu: bool,
) -> Plan:
    """dw and db from dy, x, w, b, mean, var. pitches: of dy ("dy_pitch") and x ("pitch")."""
    pixels, C = _sizes("batch_norm2d_backward", shape)
    scalars = {"pixels": pixels, "C": C, **pitches, **numbers, "rectify": int(relu)}
    first, number = _sliced("batch_norm2d_backward_sums", pixels, C, vec, scalars)
    given = {"C": C, "number": number, "eps": numbers["eps"]}
    return Plan((first, _merging("batch_norm2d_backward_merge", C, given)), 2 * number * C)


def batch_norm2d_backward(
    shape: Shape,
    pitches: Mapping[str, int],
    vec: int,
    numbers: Mapping[str, Scalar],
    relu: bool,
    of_batch: bool,
) -> Plan:
    """dx (N, H, W, C) from dy, x, w, b, mean, var, dw, db; without of_batch the last two are not
    read.
    """
    pixels, C = _sizes("batch_norm2d_backward", shape)
    scalars = {**pitches, **numbers, "of_batch": int(of_batch), "rectify": int(relu)}
    return Plan((_strided(BATCH_NORM, "batch_norm2d_backward", pixels, C, vec, scalars),))


def batch_norm2d_track(C: int, count: int, momentum: float) -> Plan:
    """running_mean and running_var, in place, from the mean and var of `count` values a channel."""
    scalars = {"keep": 1 - momentum, "momentum": momentum, "unbiased": count / (count - 1)}
    given = {"C": C, **scalars}
    name = "batch_norm2d_track"
    return Plan((Launch(BATCH_NORM, name, stride_loop(C), THREADS, defines(VEC=1), given),))


def global_avg_pool2d(shape: Shape) -> Plan:
    """y (N, C) from x (N, H, W, C), the means over H and W; shape is (N, C, H, W)."""
    N, C, H, W = shape
    _sizes("adaptive_avg_pool2d", shape)
    vec = vector(C)
    lanes, blocks = tile(C, vec)
    grid = (blocks, min(N, GRID_YZ), 1)
    scalars = {"images": N, "lanes": lanes, "size": H * W, "C": C}
    name = "global_avg_pool2d_forward"
    return Plan((Launch("adaptive_avgpool.cu", name, grid, THREADS, defines(VEC=vec), scalars),))


def adaptive_avg_pool2d(shape: Shape, size: tuple[int, int]) -> Plan:
    """y (N, P, Q, C) from x (N, H, W, C); shape is (N, C, H, W), size (P, Q)."""
    if size == (1, 1):
        return global_avg_pool2d(shape)
    return _adaptive("adaptive_avg_pool2d_forward", shape[0] * size[0] * size[1], shape, size)


def adaptive_avg_pool2d_backward(shape: Shape, size: tuple[int, int]) -> Plan:
    """dx (N, H, W, C) from dy (N, P, Q, C)."""
    N, _, H, W = shape
    return _adaptive("adaptive_avg_pool2d_backward", N * H * W, shape, size)


def local_response_norm(shape: Shape, size: int, a: float, beta: float, k: float) -> Plan:
    """y from x, (N, H, W, C); shape is (N, C, H, W), a what multiplies the sum of squares."""
    pixels, C = _sizes("local_response_norm", shape)
    name = "local_response_norm_forward"
    return Plan((_response(name, pixels, C, size, {"a": a, "beta": beta, "k": k}),))


def local_response_norm_backward(shape: Shape, size: int, a: float, beta: float, k: float) -> Plan:
    """dx from dy and x, (N, H, W, C)."""
    name = "local_response_norm_backward"
    pixels, C = _sizes(name, shape)
    scalars = {"a": a, "beta": beta, "k": k, "slope": 2 * a * beta}
    launch = _response(name, pixels, C, size, scalars)
    rows = THREADS // int(launch.scalars["lanes"])
    shared = rows * 2 * C * 4
    if shared > SHARED_MOST:
        raise NotImplementedError(
            f"{name}: two rows of {C} channels do not fit {SHARED_MOST} bytes of shared memory; "
            f"at most {SHARED_MOST // 8} channels do: use cpu"
        )
    return Plan((Launch(**{**vars(launch), "shared": shared}),))


def partial_filters(K: int, C: int, taps: int, links: int) -> Plan:
    """w (K, taps, C) from links (links, taps) and table (K, C), int32."""
    require_int("partial_filters", filter_elements=K * taps * C)
    scalars = {"taps": taps, "C": C, "number": links}
    return _links("partial_filters_forward", K * taps * C, scalars)


def partial_filters_backward(K: int, C: int, taps: int, links: int) -> Plan:
    """dlinks (links, taps) from dw (K, taps, C) and places (links), int32."""
    scalars = {"taps": taps, "C": C, "pairs": K * C}
    return _links("partial_filters_backward", links * taps, scalars)


def tile(C: int, vec: int) -> tuple[int, int]:
    """(threads along the channels, a power of two; blocks of channels)."""
    lanes = 1
    while lanes < min(ceil_div(C, vec), LANES_MOST):
        lanes *= 2
    return lanes, ceil_div(C, lanes * vec)


def _sizes(name: str, shape: Shape) -> tuple[int, int]:
    """(pixels of all images, channels)."""
    N, C, H, W = shape
    require_int(name, pixels=N * H * W, channels=C + LANES_MOST * 4)
    return N * H * W, C


def _strided(
    file: str, kernel: str, pixels: int, C: int, vec: int, scalars: Mapping[str, Scalar]
) -> Launch:
    """A kernel whose grid.y strides over the pixels."""
    lanes, blocks = tile(C, vec)
    along = ceil_div(pixels, THREADS // lanes * FLIGHT)
    grid = (blocks, max(1, min(along, ceil_div(STRIDE_BLOCKS, blocks))), 1)
    given = {"pixels": pixels, "C": C, "lanes": lanes, **scalars}
    return Launch(file, kernel, grid, THREADS, defines(VEC=vec), given)


def _sliced(
    kernel: str, pixels: int, C: int, vec: int, scalars: Mapping[str, Scalar]
) -> tuple[Launch, int]:
    """A kernel that makes partial sums of slices of the pixels, and how many slices."""
    lanes, blocks = tile(C, vec)
    length = slice_length(pixels, blocks)
    number = ceil_div(pixels, length)
    given = {**scalars, "lanes": lanes, "slice": length}
    arrays = {"slices": "workspace"}
    chosen = defines(VEC=vec)
    return Launch(BATCH_NORM, kernel, (blocks, number, 1), THREADS, chosen, given, arrays), number


def _merging(kernel: str, C: int, scalars: Mapping[str, Scalar]) -> Launch:
    grid = (ceil_div(C, MERGE_LANES), 1, 1)
    arrays = {"slices": "workspace"}
    return Launch(BATCH_NORM, kernel, grid, THREADS, defines(VEC=1), scalars, arrays)


def _adaptive(kernel: str, pixels: int, shape: Shape, size: tuple[int, int]) -> Plan:
    (_, C, H, W), (P, Q) = shape, size
    name = "adaptive_avg_pool2d"
    _sizes(name, shape)
    require_int(name, pixels=pixels, rows=(H + 1) * (P + 1), columns=(W + 1) * (Q + 1))
    vec = vector(C)
    lanes = min(ceil_div(C, vec), THREADS)
    grid = min(ceil_div(pixels, THREADS // lanes), STRIDE_BLOCKS), 1, 1
    scalars = {
        **{"pixels": pixels, "lanes": lanes, "C": C},
        **{"H": H, "W": W, "P": P, "Q": Q},
    }
    return Plan((Launch("adaptive_avgpool.cu", kernel, grid, THREADS, defines(VEC=vec), scalars),))


def _response(kernel: str, pixels: int, C: int, size: int, scalars: Mapping[str, Scalar]) -> Launch:
    vec = vector(C)
    lanes = min(ceil_div(C, vec), THREADS)
    grid = min(ceil_div(pixels, THREADS // lanes), STRIDE_BLOCKS), 1, 1
    window = {"below": min(size // 2, C), "above": min((size - 1) // 2, C)}
    given = {"pixels": pixels, "lanes": lanes, "C": C, **window, **scalars}
    return Launch("lrn.cu", kernel, grid, THREADS, defines(VEC=vec), given)


def _links(kernel: str, count: int, scalars: Mapping[str, Scalar]) -> Plan:
    given = {"count": count, **scalars}
    return Plan((Launch("partial.cu", kernel, stride_loop(count), THREADS, (), given),))
