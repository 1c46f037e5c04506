"""What holds for the whole run of the tests."""

import signal

# A shell without job control starts its background commands with Ctrl-C ignored, and their children
# inherit that; the tests of interruption need it heard.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
