"""`DataError`, for data that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """A data file or array that cannot be used: corrupted, truncated, or not what it should be.

    The message is one line: the file or image, what came, what was expected, the way out.
    """
