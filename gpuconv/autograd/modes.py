"""Whether operations are recorded: `no_grad` and `enable_grad`."""

from __future__ import annotations

import contextlib
from typing import Any

from gpuconv.autograd.fusion import settle
from gpuconv.autograd.state import state


class _Mode(contextlib.ContextDecorator):
    """Within, operations are recorded, or not."""

    recording: bool

    def __new__(cls, function: Any = None) -> Any:
        mode = super().__new__(cls)
        if function is None:
            return mode
        mode.__init__()  # type: ignore[misc]
        return mode(function)  # a decorator without brackets

    def __init__(self) -> None:
        self._before: list[bool] = []

    def _recreate_cm(self) -> _Mode:
        return type(self)()  # a decorated function may run in several threads at once

    def __enter__(self) -> None:
        settle()
        self._before.append(state.recording)
        state.recording = self.recording

    def __exit__(self, *_: object) -> None:
        try:
            settle()
        finally:
            state.recording = self._before.pop()


class no_grad(_Mode):
    """Inside, no operation is recorded, and nothing is kept for `backward`.

    A context manager or a decorator, like torch.no_grad.
    """

    recording = False


class enable_grad(_Mode):
    """Inside, operations are recorded, even within `no_grad`."""

    recording = True
