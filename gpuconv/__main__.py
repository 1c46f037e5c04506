"""`python -m gpuconv` is `gpuconv`."""

import _signal  # type: ignore[import-not-found]  # `signal` itself takes a while to import
import os
import sys


def main() -> None:
    """Run the command line and end the process with its exit code.

    Until the command line is there to catch it, and after it has ended, Ctrl-C ends the process at
    once, with its usual code and without a traceback.
    """
    _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))
    _open_closed_streams()
    from gpuconv.cli import main as run

    _end(run())


def _open_closed_streams() -> None:
    """Open the null device for each standard stream that is closed: the next file that the process
    opens would get its number, and what is printed.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))


def _end(code: int) -> None:
    """End the process without taking the interpreter apart, which takes up to a second where much
    code was compiled.
    """
    import atexit
    from contextlib import suppress

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the command line has said so
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
