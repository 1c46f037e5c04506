"""The article's table of filters: what a 3x3 matrix does to a picture.

Source: the article's "convolution step" and its table of filters; "apply" is the convolution of
ConvNets, which is cross-correlation: the matrix is not flipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpuconv.errors import require_known
from gpuconv.ops import conv2d

_LOW_BITS = np.int64((1 << 27) - 1)


@dataclass(frozen=True)
class Filter:
    """A named filter: `rows` of whole numbers over one `divisor`, so that blurs stay exact."""

    name: str
    title: str
    rows: tuple[tuple[int, ...], ...]
    divisor: int = 1

    @property
    def matrix(self) -> np.ndarray:
        """The weights, float64 (3, 3)."""
        return np.array(self.rows, np.float64) / self.divisor


FILTERS: dict[str, Filter] = {
    found.name: found
    for found in (
        Filter("identity", "identity", ((0, 0, 0), (0, 1, 0), (0, 0, 0))),
        Filter("edge_1", "edge detection 1", ((1, 0, -1), (0, 0, 0), (-1, 0, 1))),
        Filter("edge_2", "edge detection 2", ((0, 1, 0), (1, -4, 1), (0, 1, 0))),
        Filter("edge_3", "edge detection 3", ((-1, -1, -1), (-1, 8, -1), (-1, -1, -1))),
        Filter("sharpen", "sharpen", ((0, -1, 0), (-1, 5, -1), (0, -1, 0))),
        Filter("box_blur", "box blur", ((1, 1, 1), (1, 1, 1), (1, 1, 1)), 9),
        Filter("gaussian_blur", "Gaussian blur", ((1, 2, 1), (2, 4, 2), (1, 2, 1)), 16),
    )
}


def named(name: str) -> Filter:
    """The filter of that name. ValueError, with the nearest known name, for an unknown one."""
    return FILTERS[require_known("filter", name, FILTERS)]


def apply(image: np.ndarray, matrix: Any) -> np.ndarray:
    """A picture through a filter, each channel by itself: float64, the image's own shape.

    image: (C, H, W) or (H, W), uint8 or float, finite. matrix: a name of `FILTERS`, a `Filter`, or
    a matrix of numbers, (R, S).
    Borders: beyond the picture its edge pixels repeat, so that a constant stays constant. A matrix
    with an even side reads one pixel more below or to the right than above or to the left.
    Nothing is clipped; `to_pixels` makes a picture of the result.
    Exact: the seven filters have whole weights, and the sums are float64 with bits to spare, in two
    parts where the image itself is float64. So identity returns every number as it was (-0.0 as
    0.0), the edge filters give exactly 0 on a constant, and the others exactly that constant.
    Raises ValueError for an unknown name, a shape that is no picture or no matrix, and for NaN and
    infinity.

    >>> apply(np.uint8([[7, 7], [7, 7]]), "box_blur")
    array([[7., 7.],
           [7., 7.]])
    """
    weights, divisor = _weights(matrix)
    planes = _planes(image)
    R, S = weights.shape
    above, left = (R - 1) // 2, (S - 1) // 2
    border = ((0, 0), (0, 0), (above, R - 1 - above), (left, S - 1 - left))
    result = np.zeros(planes.shape)
    for part in _exact_parts(planes):
        # The definition, not a fast form of it, whose transforms would round.
        padded = np.pad(part, border, mode="edge")
        result += conv2d.reference(padded, weights[None, None]) / divisor
    return result[:, 0].reshape(np.shape(image))


def to_pixels(result: np.ndarray) -> np.ndarray:
    """A filter's result as uint8: clipped to 0..255, then rounded, halves to even numbers."""
    return np.rint(np.clip(result, 0, 255)).astype(np.uint8)


def _weights(matrix: Any) -> tuple[np.ndarray, int]:
    found = named(matrix) if isinstance(matrix, str) else matrix
    if isinstance(found, Filter):
        return np.array(found.rows, np.float64), found.divisor
    weights = np.asarray(found, np.float64)
    if weights.ndim != 2 or weights.size == 0:
        raise ValueError(f"a filter must be a matrix (R, S), got shape {weights.shape}")
    if not np.isfinite(weights).all():
        raise ValueError("a filter must be of finite numbers, this one holds NaN or infinity")
    return weights, 1


def _planes(image: np.ndarray) -> np.ndarray:
    """The channels as a batch of one-channel pictures, (C, 1, H, W) float64."""
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3) or pixels.size == 0 or pixels.dtype.kind not in "uif":
        raise ValueError(
            f"a picture must be numbers of shape (C, H, W) or (H, W), "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    pixels = pixels.astype(np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("the picture holds NaN or an infinite number")
    return pixels.reshape(-1, 1, *pixels.shape[-2:])


def _exact_parts(planes: np.ndarray) -> list[np.ndarray]:
    """Numbers of at most 27 significant bits that add up to `planes`, whose sums stay exact."""
    high = (planes.view(np.int64) & ~_LOW_BITS).view(np.float64)
    low = planes - high
    return [high, low] if low.any() else [planes]
