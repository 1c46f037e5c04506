"""`python -m gpuconv` is `gpuconv`."""

import _signal  # type: ignore[import-not-found]  # `signal` itself takes a while to import
import os
import sys


def main() -> int:
    """Run the command line. Until it is there to catch it, and after it has ended, Ctrl-C ends the
    process at once, with its usual code and without a traceback.
    """
    _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))
    from gpuconv.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
