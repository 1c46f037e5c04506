"""Counter-based random numbers: each one is a pure function of (seed, epoch, image, draw).

A generator with a state would tie an image's augmentation to every batch before it. Here a run
that is resumed in the middle of an epoch gets the numbers that the uninterrupted run got, on any
version of NumPy.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class CounterRNG:
    """Random numbers for the images `indices` in `epoch`: every call gives one for each image.

    seed, epoch, stream: integers, taken modulo 2^64; indices: (n,) integers that identify the
    images. Streams are independent of each other: the loader's order, splits and augmentation have
    one each. Successive calls give new numbers; a new object with the same arguments repeats them
    from the first.
    Source: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014 (SplitMix64's finaliser, here keyed by seed, epoch and image).

    >>> a, b = CounterRNG(1, 0, np.array([4, 9])), CounterRNG(1, 0, np.array([9]))
    >>> bool(a.uniform()[1] == b.uniform()[0])
    True
    """

    def __init__(self, seed: int, epoch: int, indices: np.ndarray, stream: int = 0) -> None:
        key = key_of(seed, epoch, stream)
        self._keys = _mix(np.asarray(indices).astype(np.uint64) ^ key)
        self._count = 0

    def __len__(self) -> int:
        return len(self._keys)

    def bits(self) -> np.ndarray:
        """64 random bits for each image, (n,) uint64."""
        self._count += 1
        return _mix(self._keys + np.uint64(self._count * _GOLDEN & _MASK))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """A number in [low, high) for each image, (n,) float64."""
        return low + (high - low) * ((self.bits() >> np.uint64(11)) * 2.0**-53)

    def integers(self, low: int, high: int) -> np.ndarray:
        """An integer from low to high, both included, for each image, (n,) int64."""
        return low + (self.uniform() * (high - low + 1)).astype(np.int64)

    def permutation(self) -> np.ndarray:
        """The positions 0 to n-1 in random order, (n,) int64."""
        return np.argsort(self.bits(), kind="stable")


def key_of(seed: int, epoch: int, stream: int) -> np.uint64:
    """What the numbers of all images of a stream have in common."""
    key = 0
    for word in (stream, seed, epoch):  # `_mix` of each in turn, in Python's integers
        z = (key ^ int(word)) + _GOLDEN & _MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        key = z ^ z >> 31
    return np.uint64(key)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64: every bit of the result depends on every bit of `z`; arrays wrap at 2^64."""
    z = z + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
