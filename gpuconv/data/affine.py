"""The compiled loop of `augment.Affine`, apart from it so that loading data needs no Numba."""

from __future__ import annotations

import numpy as np

from gpuconv.cpu.compiled import compiled


@compiled
def warp(
    images: np.ndarray,
    cosine: np.ndarray,
    sine: np.ndarray,
    rounding: float,
    out: np.ndarray,
) -> None:
    """out[n] = images[n] rotated and scaled about its centre, bilinear, black outside.

    Each output pixel is mapped to its position in the input by the inverse rotation; `cosine` and
    `sine` are already divided by the scale. `rounding` is added last: 0.5 makes the cast to an
    integer round.
    """
    count, channels, height, width = images.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    for n in range(count):
        for row in range(height):
            for column in range(width):
                dy, dx = row - middle_y, column - middle_x
                y = middle_y + cosine[n] * dy - sine[n] * dx
                x = middle_x + sine[n] * dy + cosine[n] * dx
                top, left = int(np.floor(y)), int(np.floor(x))
                down, right = y - top, x - left
                for c in range(channels):
                    total = rounding
                    for i in range(2):
                        for j in range(2):
                            if 0 <= top + i < height and 0 <= left + j < width:
                                weight = (down if i else 1 - down) * (right if j else 1 - right)
                                total += weight * images[n, c, top + i, left + j]
                    out[n, c, row, column] = total
