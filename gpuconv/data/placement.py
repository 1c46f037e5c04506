"""Where each pixel of an augmented batch comes from: the table of kernels/image_batch.cu."""

from __future__ import annotations

from typing import Any

import numpy as np

WORDS = 8  # of an image's row: index, top, left, step, first and end of rows, of columns


class Placement:
    """Shifts, crops, padding and mirroring of many images, as one map for each image.

    Output pixel (y, x) of image n is the source's pixel (top[n] + y, left[n] + step[n] * x) where
    that lies in rows first_row[n] to end_row[n] - 1 and columns first_column[n] to
    end_column[n] - 1, else black. size: (height, width) of the images as they stand.

    >>> placed = Placement(1, 4, 6)
    >>> placed.mirror(np.array([True]))
    >>> placed.window(4, 4, np.array([0]), np.array([1]))  # columns 1 to 4 of the mirrored image
    >>> placed.left[0], placed.step[0], placed.size
    (np.int64(4), np.int64(-1), (4, 4))
    """

    def __init__(self, count: int, height: int, width: int) -> None:
        self.size = height, width
        self.top, self.left = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self.step = np.ones(count, np.int64)
        self.first_row, self.first_column = np.zeros_like(self.top), np.zeros_like(self.top)
        self.end_row = np.full_like(self.top, height)
        self.end_column = np.full_like(self.top, width)

    def window(self, rows: int, columns: int, top: Any, left: Any) -> None:
        """Cut a window at (top, left), each a number or one for each image; they may be negative:
        outside the image it is black.
        """
        height, width = self.size
        low = np.minimum(self.left, self.left + self.step * (width - 1))
        self.first_row = np.maximum(self.first_row, self.top)
        self.end_row = np.minimum(self.end_row, self.top + height)
        self.first_column = np.maximum(self.first_column, low)
        self.end_column = np.minimum(self.end_column, low + width)
        self.top = self.top + top
        self.left = self.left + self.step * left
        self.size = rows, columns

    def mirror(self, chosen: np.ndarray) -> None:
        """Mirror left and right the images that are chosen, booleans (n,)."""
        turned = self.left + self.step * (self.size[1] - 1)
        self.left = np.where(chosen, turned, self.left)
        self.step = np.where(chosen, -self.step, self.step)

    def write(self, table: np.ndarray, indices: np.ndarray) -> None:
        """The images' rows, into `table`, int32 (n, WORDS). indices: of the source images."""
        columns = (indices, self.top, self.left, self.step, self.first_row, self.end_row)
        for word, values in enumerate((*columns, self.first_column, self.end_column)):
            table[:, word] = values
