"""The history of a run: JSON lines, one for each epoch and, if asked for, one every few batches."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gpuconv.files import cannot_write, write_atomically
from gpuconv.metadata import EPOCH, parse


class History:
    """Records in memory and, with a path, in a file that grows line by line.

    An epoch's record has "loss", "accuracy", "validation_loss" and so on; a record of some batches
    has "batch" as well, and the means since the epoch began.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []

    def epochs(self) -> list[dict[str, Any]]:
        """The epochs' records alone."""
        return [record for record in self.records if "batch" not in record]

    def append(self, record: dict[str, Any]) -> None:
        """Add a record. Raises OSError, in one line, if the file cannot take it."""
        self.records.append(record)
        if self.path is not None:
            try:
                with self.path.open("ab") as file:
                    file.write(_line(record))
            except OSError as error:
                raise cannot_write(self.path, error) from None

    def sync(self) -> None:
        """Make sure that what a checkpoint counts outlives a power failure."""
        if self.path is not None and self.path.exists():
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def restore(self, count: int) -> bool:
        """Keep the first `count` records of the file, as a checkpoint counted them.

        Whatever came after them, a torn last line too, will be written again. Returns False where
        the file has fewer, or a line that is no record: somebody changed it.
        """
        self.records = []
        if self.path is None:
            return True
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for line in lines[:count]:
            try:
                self.records.append(parse(line, EPOCH))
            except ValueError:
                break
        text = b"".join(map(_line, self.records))
        if not self.path.exists() or self.path.read_bytes() != text:
            write_atomically(self.path, text)
        return len(self.records) == count


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"
