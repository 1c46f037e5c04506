"""How a convolution is cut into cache-sized blocks: pure functions of the shapes, computed once for
each.

A block is some rows of one image's output (or some whole images). Its part of the input is staged
in
scratch memory as padded planes `width` floats wide; in these the value that output pixel number
i = p*width + q needs from tap (r, s) lies at i + offset, with one offset for each tap. So a run of
pixels is a plain vector load, whatever the padding and the dilation, and the positions q >= Q of
each
row are computed and dropped. Under a stride the input is staged as stride_h x stride_w planes, one
for
each remainder of the row and the column, and again every tap has one offset.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpuconv.cpu.vector import HEIGHTS, LANES
from gpuconv.shapes import Window

BLOCK_FLOATS = (
    160 * 1024
)  # of staged input: leaves most of a 1 to 2 MB cache to weights and results
LINE = 16  # floats in a cache line


class Stage(NamedTuple):
    """Where a block's input comes from and how it is laid out; all integers, for Numba."""

    N: int
    C: int  # channels in a group
    H: int
    W: int
    stride_h: int
    stride_w: int
    top: (
        int  # row of the padded plane that holds the image's row 0; negative where rows are cut off
    )
    left: int
    P: int  # output rows in an image, before they are cut into blocks
    Q: int
    rows: int  # output rows in a block
    images: int  # images in a block; more than one only if rows == P
    extra: int  # staged rows beyond the block's output rows
    width: int
    plane: int  # floats from one staged plane to the next
    blocks: int


class Plan(NamedTuple):
    """A Stage, its phases (row and column remainders), and where each (channel, tap) starts."""

    stage: Stage
    phases: np.ndarray  # (phases, 2)
    offsets: np.ndarray  # (C*T,), in bytes
    scratch: int  # floats


class Tiles(NamedTuple):
    """`count` rows cut into register tiles: first row, height and place (in units of one row)."""

    first: np.ndarray
    height: np.ndarray
    rows: int  # with the last tile's unused rows


@lru_cache(maxsize=1024)
def tiles(count: int) -> Tiles:
    """Full tiles, then the lowest one that holds the rest."""
    full, rest = divmod(count, HEIGHTS[0])
    heights = [HEIGHTS[0]] * full + [min(h for h in HEIGHTS if h >= rest)] * bool(rest)
    edges = np.cumsum([0, *heights])
    return Tiles(edges[:-1].astype(np.int64), np.array(heights, np.int64), int(edges[-1]))


@lru_cache(maxsize=1024)
def forward_plan(x_shape: tuple[int, ...], window: Window, groups: int, threads: int) -> Plan:
    """How `x` is read by the forward pass and by the gradient of the weights."""
    N, C, H, W = x_shape
    P, Q = window.output_size(H, W)
    (top, _), (left, right) = window.pads(H, W)
    (R, S), (stride_h, stride_w), (dil_h, dil_w) = (
        window.kernel_size,
        window.stride,
        window.dilation,
    )
    reach = [(r * dil_h, s * dil_w) for r in range(R) for s in range(S)]
    phases = sorted({(y % stride_h, x % stride_w) for y, x in reach})
    shifts = [
        (phases.index((y % stride_h, x % stride_w)), y // stride_h, x // stride_w) for y, x in reach
    ]
    if stride_w == 1:  # a row's right padding is the next row's left padding: both are zeros
        width = max(W + max(left, right), Q)
    else:
        width = Q + max(x for _, _, x in shifts)
    image = (N, C // groups, H, W, stride_h, stride_w, top, left, P, Q)
    return _plan(image, phases, shifts, width, threads)


class Phase(NamedTuple):
    """The pixels (first_h + i*stride_h, first_w + j*stride_w) of dx: their count, and the taps that
    reach them.
    """

    first: tuple[int, int]
    P: int
    Q: int
    taps: np.ndarray  # numbers r*S + s
    offsets: np.ndarray  # as in Plan


@lru_cache(maxsize=1024)
def input_plan(
    x_shape: tuple[int, ...], channels: int, window: Window, groups: int, threads: int
) -> tuple[Plan, tuple[Phase, ...]]:
    """How `dy` (of `channels` channels) is read for dx: as stride_h x stride_w convolutions of
    stride 1.
    """
    N, _, H, W = x_shape
    P, Q = window.output_size(H, W)
    (top, _), (left, _) = window.pads(H, W)
    (stride_h, stride_w), S = window.stride, window.kernel_size[1]
    rows = [
        reaching(a, top, stride_h, window.dilation[0], window.kernel_size[0])
        for a in range(stride_h)
    ]
    columns = [reaching(b, left, stride_w, window.dilation[1], S) for b in range(stride_w)]
    low_y, high_y = _range(rows)
    low_x, high_x = _range(columns)
    out_h, out_w = -(-H // stride_h), -(-W // stride_w)
    pad_right = out_w + high_x - Q
    if low_x <= 0 <= pad_right:
        width = max(Q + max(-low_x, pad_right), out_w)
    else:
        width = out_w + high_x - low_x
    image = (N, channels // groups, P, Q, 1, 1, -low_y, -low_x, out_h, out_w)
    plan = _plan(image, [(0, 0)], [(0, high_y - low_y, high_x - low_x)], width, threads)
    phases = []
    for a, row in enumerate(rows):
        for b, column in enumerate(columns):
            count = -(-(H - a) // stride_h), -(-(W - b) // stride_w)
            taps = [(r * S + s, (y - low_y) * width + x - low_x) for r, y in row for s, x in column]
            if taps and min(count) > 0:
                numbers = np.array([tap for tap, _ in taps], np.int64)
                offsets = _offsets(plan.stage, 1, [(0, offset) for _, offset in taps])
                phases.append(Phase((a, b), *count, numbers, offsets))
    return plan, tuple(phases)


def reaching(first: int, pad: int, stride: int, dilation: int, size: int) -> list[tuple[int, int]]:
    """(tap, shift): output i + shift reaches pixel i*stride + first through the tap."""
    distances = [(tap, first + pad - tap * dilation) for tap in range(size)]
    return [(tap, distance // stride) for tap, distance in distances if distance % stride == 0]


def _range(reaching: list[list[tuple[int, int]]]) -> tuple[int, int]:
    shifts = [shift for taps in reaching for _, shift in taps]
    return min(shifts), max(shifts)


def _plan(
    image: tuple[int, int, int, int, int, int, int, int, int, int],
    phases: list[tuple[int, int]],
    shifts: list[tuple[int, int, int]],
    width: int,
    threads: int,
) -> Plan:
    N, C, P, Q = image[0], image[1], image[8], image[9]
    extra = max(y for _, y, _ in shifts)
    depth = C * len(phases)
    rows = min(P, max(1, BLOCK_FLOATS // (depth * width) - extra))
    if N % threads and 4 * threads > N:  # too few images to share out evenly
        rows = min(rows, -(-P // threads))
    images = 1
    if (
        rows == P and extra == 0 and width == Q
    ):  # planes without gaps: several images make longer runs
        images = max(1, min(BLOCK_FLOATS // (depth * P * width), N // threads))
    lines = (images * (rows + extra) * width + abs(image[7]) + LINE) // LINE
    plane = (
        lines | 1
    ) * LINE  # an odd number of lines, so that planes do not compete for cache sets
    blocks = -(-N // images) * -(-P // rows)
    stage = Stage(*image, rows, images, extra, width, plane, blocks)
    offsets = _offsets(stage, len(phases), [(phase, y * width + x) for phase, y, x in shifts])
    slack = 2 * LANES + extra * width + max(x for _, _, x in shifts) + LINE
    return Plan(stage, np.array(phases, np.int64), offsets, depth * plane + slack)


def _offsets(stage: Stage, phases: int, taps: list[tuple[int, int]]) -> np.ndarray:
    phase, offset = np.array(taps, np.int64).T
    planes = np.arange(stage.C, dtype=np.int64)[:, None] * phases + phase
    return 4 * (planes * stage.plane + offset).ravel()
