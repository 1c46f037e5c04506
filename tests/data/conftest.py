"""What the tests of data share."""

import os

import pytest


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """The hundreds of small files of these tests need not survive a loss of power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
