"""The tables, golden outputs and data that are kept beside the repository rather than in it."""

import os
from pathlib import Path

import pytest


def shared(*parts):
    """A path within the folder `shared` beside the repository, or where GPUCONV_SHARED says.

    Skips the test where it is not there.
    """
    beside = Path(__file__).resolve().parent.parent.parent / "shared"
    path = Path(os.environ.get("GPUCONV_SHARED", beside)).joinpath(*parts)
    if not path.exists():
        name = "/".join(parts)
        pytest.skip(f"shared/{name} is not beside the repository, nor under GPUCONV_SHARED")
    return path
