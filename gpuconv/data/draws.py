"""A loader's random numbers by compiled loops: the order of an epoch, and where images are moved.

The definitions are `CounterRNG` and the augmentations; what is here has their bits. One pass over
the images takes a tenth of NumPy's time, which a training step on a GPU would wait for.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpuconv.cpu.compiled import compiled, inner
from gpuconv.data.augment import Augment, Compose, HorizontalFlip, RandomCrop, Shift

WORDS = 4  # of an image's row in the table
MAX_SIDE = (1 << 14) - 1  # of images and of what they are padded to: a row has 16 bits for a place
WINDOW, MIRROR, PAD = range(3)  # kinds of steps
BLOCK = 256  # images that are drawn together
DIGIT = 11  # bits by which a pass sorts: so many counters stay in the cache

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_INT = np.int32
_11, _27, _30, _31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)


def moves(augment: Augment | None, size: tuple[int, int], to: tuple[int, int]) -> Any:
    """What is done to images of `size` (height, width) that end as `to`, for `draw_rows`: int64
    (steps, 4). A step is its kind, then rows, columns and padding of a window, rows and columns of
    the padded image, or of mirroring the probability times 2^53, rounded up.

    None for images of more than MAX_SIDE, and for an augmentation that does more than to move
    pixels, or is none of augment.py's own.
    """
    steps: list[tuple[int, ...]] = []
    longest = max(*size, *to)

    def add(one: Any, size: tuple[int, int]) -> tuple[int, int] | None:
        nonlocal longest
        if type(one) is Compose:
            now: tuple[int, int] | None = size
            for inner in one.steps:
                now = now and add(inner, now)
            return now
        if type(one) is HorizontalFlip:
            steps.append((MIRROR, math.ceil(one.probability * 2**53), 0, 0))
            return size
        if type(one) not in (Shift, RandomCrop):
            return None
        window, padding = (size, one.pixels) if type(one) is Shift else (one.size, one.padding)
        steps.append((WINDOW, *window, padding))
        longest = max(longest, max(size) + 2 * padding)
        return window

    end = size if augment is None else add(augment, size)
    if end is None or longest > MAX_SIDE:
        return None
    if end != to:
        steps.append((PAD, *to, 0))
    return np.array(steps, np.int64).reshape(-1, 4)


def words_of(steps: np.ndarray) -> int:
    """Words of an image's row in the table: 1, its index, where `steps` (of `moves`) leave all
    images in one place, the middle.
    """
    return WORDS if (steps[:, 0] != PAD).any() else 1


@compiled
def draw_rows(steps, indices, key, height, width, place, places, rows):
    """Write where the pixels of images come from: the table of kernels/image_batch.cu.

    Output pixel (y, x) of image n is pixel (top + y, left + x) of image `index`, height x width, or
    (top + y, left - x) where it is mirrored; it is black outside of the first and the end of rows
    and of columns. indices: (n,), of the images. key: of the random numbers, see `CounterRNG`.
    rows: int32 (n, WORDS): index, or ~index where it is mirrored; then in 16 bits each top and
    left, first and end of the rows, first and end of the columns, the former below. Or int32
    (n, 1), see `words_of`: index.
    """
    if rows.shape[1] == 1:
        for i in range(len(indices)):
            rows[i, 0] = indices[i] if places == 0 else (place + i) % places
        return
    state, down, across = np.empty(BLOCK, np.uint64), np.empty(BLOCK), np.empty(BLOCK)
    top, left, step = np.empty(BLOCK, _INT), np.empty(BLOCK, _INT), np.empty(BLOCK, _INT)
    first_row, end_row = np.empty(BLOCK, _INT), np.empty(BLOCK, _INT)
    first_column, end_column = np.empty(BLOCK, _INT), np.empty(BLOCK, _INT)
    for begin in range(0, len(indices), BLOCK):  # short loops, each of which is vectorised
        some = indices[begin : begin + BLOCK]
        count, drawn = len(some), np.uint64(0)
        h, w = _INT(height), _INT(width)
        for i in range(count):
            state[i] = _mix(np.uint64(some[i]) ^ key)
            top[i], left[i], step[i] = 0, 0, 1
            first_row[i], end_row[i], first_column[i], end_column[i] = 0, h, 0, w
        for s in range(len(steps)):
            kind, numbers = steps[s, 0], steps[s, 1:]
            if kind == MIRROR:
                drawn += _GOLDEN
                for i in range(count):
                    turned = _mix(state[i] + drawn) >> _11 < np.uint64(numbers[0])
                    left[i] += step[i] * (w - _INT(1)) if turned else _INT(0)
                    step[i] = -step[i] if turned else step[i]
                continue
            to_h, to_w, padding = _INT(numbers[0]), _INT(numbers[1]), _INT(numbers[2])
            for i in range(count):  # beyond the image as it stands all is black
                low = min(left[i], left[i] + step[i] * (w - _INT(1)))
                first_row[i], end_row[i] = max(first_row[i], top[i]), min(end_row[i], top[i] + h)
                first_column[i] = max(first_column[i], low)
                end_column[i] = min(end_column[i], low + w)
            if kind == PAD:
                down[:], across[:] = -((to_h - h) // 2), -((to_w - w) // 2)
            else:
                rows_left, columns_left = h + 2 * padding - to_h + 1, w + 2 * padding - to_w + 1
                for i in range(count):
                    down[i] = np.floor(_uniform(state[i] + drawn + _GOLDEN) * rows_left) - padding
                drawn += _GOLDEN + _GOLDEN
                for i in range(count):
                    across[i] = np.floor(_uniform(state[i] + drawn) * columns_left) - padding
            for i in range(count):
                top[i] += _INT(down[i])
                left[i] += step[i] * _INT(across[i])
            h, w = to_h, to_w
        for i in range(count):
            index = some[i] if places == 0 else (place + begin + i) % places
            row = rows[begin + i]
            row[0] = index if step[i] > 0 else ~index
            row[1] = left[i] << 16 | top[i] & 0xFFFF
            row[2] = end_row[i] << 16 | first_row[i] & 0xFFFF
            row[3] = end_column[i] << 16 | first_column[i] & 0xFFFF


@compiled
def permutation(key, count):
    """`CounterRNG.permutation` of the indices 0 to count - 1: sorted by their first bits.

    What is sorted is one word each, in which the index takes the place of the lowest bits: by the
    upper 2 * DIGIT bits in two passes of a radix sort, then by insertion, which finds little to do.
    """
    low = 1
    while count >> low > 0:
        low += 1
    index, first, digit = np.uint64((1 << low) - 1), np.uint64(64 - 2 * DIGIT), np.uint64(DIGIT)
    mask, ends = np.uint64((1 << DIGIT) - 1), np.zeros((2, 1 << DIGIT), np.int32)
    words, found = np.empty(count, np.uint64), np.empty(count, np.uint64)
    for i in range(count):
        words[i] = _first_bits(np.uint64(i), key) & ~index | np.uint64(i)
    for i in range(count):
        ends[0, words[i] >> first & mask] += 1
        ends[1, words[i] >> first >> digit] += 1
    for n in range(2):
        total = np.int32(0)
        for bucket in range(1 << DIGIT):
            total += ends[n, bucket]
            ends[n, bucket] = total - ends[n, bucket]
    for i in range(count):
        bucket = words[i] >> first & mask
        found[ends[0, bucket]] = words[i]
        ends[0, bucket] += 1
    words, found = found, words
    for i in range(count):
        bucket = words[i] >> first >> digit
        found[ends[1, bucket]] = words[i]
        ends[1, bucket] += 1
    for i in range(1, count):
        word = found[i]
        if found[i - 1] > word:
            at = i
            while at > 0 and found[at - 1] > word:
                found[at] = found[at - 1]
                at -= 1
            found[at] = word
    for i in range(1, count):  # two may differ in their indices alone
        at = i
        while at > 0 and (found[at - 1] ^ found[at]) <= index:
            a, b = found[at - 1], found[at]
            if _first_bits(a & index, key) < _first_bits(b & index, key):
                break
            found[at - 1], found[at] = b, a
            at -= 1
    for i in range(count):
        found[i] &= index
    return found.view(np.int64)


@inner(inline="always")
def _first_bits(index, key):
    """The first of `CounterRNG.bits` of an image."""
    return _mix(_mix(index ^ key) + _GOLDEN)


@compiled(inline="always")
def _mix(z):
    """`rng._mix` of one number."""
    z = z + _GOLDEN
    z = (z ^ (z >> _30)) * _FIRST
    z = (z ^ (z >> _27)) * _SECOND
    return z ^ (z >> _31)


@inner(inline="always")
def _uniform(state):
    """`CounterRNG.uniform` of a state."""
    return (_mix(state) >> _11) * 2.0**-53
