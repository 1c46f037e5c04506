"""What a command prints, so that every terminal can show it and no name can steer one."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from gpuconv.errors import printable


class Output:
    """A text stream in which control characters, and what its encoding lacks, become escapes.

    drawable: the stream itself, for a bar that moves the cursor.
    """

    def __init__(self, stream: TextIO) -> None:
        self.drawable = stream

    def write(self, text: str) -> int:
        encoding = self.drawable.encoding or "utf-8"
        shown = printable(text, keep="\n\t").encode(encoding, "backslashreplace")
        self.drawable.write(shown.decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.drawable, name)


@contextmanager
def tidy_output() -> Iterator[None]:
    """Within, standard output and error are `Output`s. A warning of gpuconv is one line, said once,
    and those of libraries do not stand between a command's lines; `python -W` brings them back.
    """
    shown: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if category.__module__.startswith("gpuconv") and text not in shown:
            shown.add(text)
            print(f"gpuconv: {text}", file=sys.stderr)

    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Output, streams)
    silent = logging.NullHandler()  # Python prints what libraries log where no handler is
    logging.getLogger().addHandler(silent)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.showwarning = show
            yield
    finally:
        logging.getLogger().removeHandler(silent)
        sys.stdout, sys.stderr = streams
