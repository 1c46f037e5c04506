"""What holds for the whole run of the tests."""

import signal

import pytest

from gpuconv import threads

# A shell without job control starts its background commands with Ctrl-C ignored, and their children
# inherit that; the tests of interruption need it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def the_same_threads():
    """What a test sets for the whole process does not reach the next: sums depend on the count."""
    count = threads._count
    yield
    threads._count = count
