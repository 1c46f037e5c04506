"""The architecture tables and golden values that the tests compare with."""

from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"


def stored(*parts):
    """A path within tests/data."""
    return DATA.joinpath(*parts)
