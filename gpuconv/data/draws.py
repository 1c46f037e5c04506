"""A loader's random numbers by compiled loops: the order of an epoch, and where images are moved.

The definitions are `CounterRNG` and the augmentations; what is here has their bits. One pass over
the images takes a tenth of NumPy's time, which a training step on a GPU would wait for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuconv.cpu.compiled import compiled
from gpuconv.data.augment import Augment, Compose, HorizontalFlip, RandomCrop, Shift

WORDS = 8  # of an image's row: index, top, left, step, first and end of rows, of columns
WINDOW, MIRROR, PAD = range(3)  # kinds of steps

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_11, _27, _30, _31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


def moves(augment: Augment | None, size: tuple[int, int], to: tuple[int, int]) -> Any:
    """What is done to images of `size` (height, width) that end as `to`, for `draw_rows`: float64
    (steps, 4). A step is its kind, then rows, columns and padding of a window, the probability of
    mirroring, or rows and columns of the padded image.

    None for an augmentation that does more than to move pixels, or is none of augment.py's own.
    """
    steps: list[tuple[float, ...]] = []

    def add(one: Any, size: tuple[int, int]) -> tuple[int, int] | None:
        if type(one) is Compose:
            now: tuple[int, int] | None = size
            for inner in one.steps:
                now = now and add(inner, now)
            return now
        if type(one) is HorizontalFlip:
            steps.append((MIRROR, one.probability, 0, 0))
            return size
        if type(one) is Shift:
            steps.append((WINDOW, *size, one.pixels))
            return size
        if type(one) is RandomCrop:
            steps.append((WINDOW, *one.size, one.padding))
            return one.size
        return None

    end = size if augment is None else add(augment, size)
    if end is None:
        return None
    if end != to:
        steps.append((PAD, *to, 0))
    return np.array(steps, np.float64).reshape(-1, 4)


@compiled
def draw_rows(steps, indices, key, height, width, rows):
    """Write where the pixels of images come from: the table of kernels/image_batch.cu.

    Output pixel (y, x) of image n is pixel (top + y, left + step*x) of image `index`, height x
    width, where that lies within the first and the end of rows and of columns, else black.
    indices: (n,), of the images. key: of the random numbers, see `CounterRNG`. rows: int32
    (n, WORDS).
    """
    for n in range(len(indices)):
        state = _mix(np.uint64(indices[n]) ^ key)
        top, left, step = 0, 0, 1
        first_row, end_row, first_column, end_column = 0, height, 0, width
        h, w = height, width
        for s in range(len(steps)):
            if steps[s, 0] == MIRROR:
                state += _GOLDEN
                if _uniform(state) < steps[s, 1]:
                    left, step = left + step * (w - 1), -step
                continue
            low = min(left, left + step * (w - 1))  # beyond the image as it stands all is black
            first_row, end_row = max(first_row, top), min(end_row, top + h)
            first_column, end_column = max(first_column, low), min(end_column, low + w)
            to_h, to_w, padding = int(steps[s, 1]), int(steps[s, 2]), int(steps[s, 3])
            if steps[s, 0] == PAD:
                down, right = -((to_h - h) // 2), -((to_w - w) // 2)
            else:
                down = int(_uniform(state + _GOLDEN) * (h + 2 * padding - to_h + 1)) - padding
                state += _GOLDEN + _GOLDEN
                right = int(_uniform(state) * (w + 2 * padding - to_w + 1)) - padding
            top, left = top + down, left + step * right
            h, w = to_h, to_w
        row = rows[n]
        row[0], row[1], row[2], row[3] = indices[n], top, left, step
        row[4], row[5], row[6], row[7] = first_row, end_row, first_column, end_column


@compiled
def permutation(key, count):
    """`CounterRNG.permutation` of the indices 0 to count - 1: sorted by their first bits.

    They go to about as many buckets by their upper bits, then insertion sorts what is left. No two
    have the same bits, as SplitMix64 is a bijection.
    """
    shift = np.uint64(63)
    while shift > 40 and count >> (64 - shift) > 0:
        shift -= np.uint64(1)
    bits = np.empty(count, np.uint64)
    begins = np.zeros(1 << (64 - shift), np.int32)
    for i in range(count):
        bits[i] = _mix(_mix(np.uint64(i) ^ key) + _GOLDEN)
    for i in range(count):
        begins[bits[i] >> shift] += 1
    total = np.int32(0)
    for some in range(len(begins)):
        total += begins[some]
        begins[some] = total - begins[some]
    found, order = np.empty(count, np.uint64), np.empty(count, np.int64)
    for i in range(count):
        bucket = bits[i] >> shift
        at = begins[bucket]
        begins[bucket] = at + 1
        found[at], order[at] = bits[i], i
    for i in range(1, count):
        if found[i - 1] > found[i]:
            at, one, index = i, found[i], order[i]
            while at > 0 and found[at - 1] > one:
                found[at], order[at] = found[at - 1], order[at - 1]
                at -= 1
            found[at], order[at] = one, index
    return order


@compiled(inline="always")
def _mix(z):
    """`rng._mix` of one number."""
    z = z + _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@compiled(inline="always")
def _uniform(state):
    """A number in [0, 1) of a state."""
    return (_mix(state) >> _11) * 2.0**-53
