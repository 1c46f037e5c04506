"""What each pass of a direct convolution computes and reads. Pure functions of shapes.

The forward convolution has one pass: all outputs have the same taps. dx is computed in the same
way, from dy: pixel h of dx receives dy[p] * w[r] where p*stride = h + pad - r*dilation. So the
pixels of one stride phase (h modulo the stride) are reached by the same taps, at evenly spaced rows
of dy: a convolution at stride 1 for each phase, here a pass.

Few filters leave most lanes of a vector empty. Then outputs below and beside one another count as
further filters of one pass. Each reads all that one of them reads, with zeros for taps that it does
not have: 3 filters 3x3 become 12 filters 4x4, whose vector computes 2x2 outputs in 16 steps, where
four vectors took 36.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from gpuconv.cpu.simd import LANES, PAIR
from gpuconv.shapes import Window

# Outputs side by side must save so many steps, as a ratio, and only layers of so many multiply-adds
# (about 0.3 ms) have them: packing their filters takes 0.1 ms more. Of filters 3x3 of 32 channels,
# 10 (a ratio of 1.2) take 1.05 times as long without, 8 (1.5) 1.2 times and 4 (2.3) 1.3 times.
LEAST_GAIN, LEAST_WORK = 1.25, 1 << 22
Reading = tuple[int, tuple[int, ...]]  # see Axis.passes


class Axis(NamedTuple):
    """The rows, or the columns, that a convolution reads and writes, step by step.

    phases: for each output of a step its taps, by their distance: how far they read from the first
    output's pixel.
    """

    stride: int  # pixels of the tile from one step to the next
    phases: list[dict[int, int]]
    beside: int  # of the outputs of a step those that one pass computes

    def reads(self) -> list[range]:
        """The distances at which each pass reads, evenly spaced; none where it has no taps."""
        found = []
        for first in range(0, len(self.phases), self.beside):
            far = set().union(*self.phases[first : first + self.beside])
            least, most = min(far, default=0), max(far, default=-1)
            found.append(range(least, most + 1, math.gcd(*(at - least for at in far)) or 1))
        return found

    def passes(self) -> list[list[Reading]]:
        """What each pass reads: (distance, the tap of each output, or -1)."""
        found = []
        for i, even in enumerate(self.reads()):
            outputs = self.phases[i * self.beside : (i + 1) * self.beside]
            found.append([(at, tuple(output.get(at, -1) for output in outputs)) for at in even])
        return found

    def ends(self) -> tuple[int, int]:
        """The least and the largest distance of a tap."""
        far = [distance for taps in self.phases for distance in taps]
        return min(far), max(far)


def axes(window: Window, H: int, W: int, dx: bool, beside: tuple[int, int]) -> list[Axis]:
    """Rows and columns of a convolution over images x of H x W, or of that for dx.

    Output i of a step reads through a tap at (ahead * i + the tap's place) / apart, if that is
    whole.
    """
    found = []
    sizes = window.pads(H, W), window.kernel_size, window.stride, window.dilation
    for (pad, _), size, stride, dilation, together in zip(*sizes, beside, strict=True):
        ahead, apart, sign = (1, stride, -1) if dx else (stride, 1, 1)
        steps = -(-together // apart)
        phases: list[dict[int, int]] = [{} for _ in range(apart * steps)]
        for tap in range(size):
            place = tap * dilation - pad
            for i in range(place % apart, apart * steps, apart):
                phases[i][(ahead * i + sign * place) // apart] = tap
        found.append(Axis(ahead * steps, phases, together))
    return found


@lru_cache(maxsize=1024)
def side_by_side(window: Window, H: int, W: int, K: int, dx: bool) -> tuple[int, int]:
    """(below, beside): the outputs of K filters that one pass should compute."""
    sizes = (H, W) if dx else window.output_size(H, W)
    steps: tuple[dict[int, int], ...] = {}, {}  # of rows and columns, with so many outputs
    for count in range(1, PAIR // K + 1):
        both = axes(window, H, W, dx, (count, count))
        for axis, size, found in zip(both, sizes, steps, strict=True):
            if len(axis.phases) % count == 0:
                found[count] = -(-size // len(axis.phases)) * sum(map(len, axis.reads()))
    # a step with one vector takes two thirds of the time of one with two
    work = {
        (below, beside): down * right * (1 + -(-K * below * beside // LANES))
        for (below, down), (beside, right) in product(*(each.items() for each in steps))
        if K * below * beside <= PAIR
    }
    best = min(work, key=work.__getitem__, default=(1, 1))
    return best if work and LEAST_GAIN * work[best] < work[1, 1] else (1, 1)


def taps_of(rows: list[Reading], columns: list[Reading], S: int) -> np.ndarray:
    """(outputs below and beside, taps): which tap of S columns of them each output reads, or -1."""
    r, s = (np.array([taps for _, taps in each]).T for each in (rows, columns))
    r, s = r[:, None, :, None], s[None, :, None, :]
    return np.where((r < 0) | (s < 0), -1, r * S + s).reshape(len(r) * s.shape[1], -1)
