"""`DataError`, for data that cannot be used, and `DataWarning`, for what the user should know."""

from __future__ import annotations

from gpuconv.errors import Notice


class DataError(ValueError):
    """A data file or array that cannot be used: corrupted, truncated, or not what it should be.

    The message is one line: the file or image, what came, what was expected, the way out.
    """


class DataWarning(Notice):
    """Data that are used, though not as they stand: pictures passed over, classes not split.

    The message is one line.
    """
