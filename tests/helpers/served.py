"""A page's server in a thread of its own."""

import contextlib
import threading

from gpuconv.page.server import PageServer


@contextlib.contextmanager
def serving(session, monitor=None):
    """The `PageServer` of a session, while it answers."""
    with PageServer(session, monitor=monitor) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
