"""The page: a network's maps, nodes, filters and training in a browser, and as one offline file.

    from gpuconv import page
    session = page.of_model(network, (3, 32, 32), classes=names)   # any network
    page.serve(session)                                            # until Ctrl-C
    page.export(session, "page.html")

`graph` lays a network out as the page shows it, `session` answers what the page asks, `server`
serves it on this machine, `export` writes the offline file, `monitor` follows a training run. The
page itself is static/, plain JavaScript; see README.md.
"""

from __future__ import annotations

from gpuconv.page.export import export
from gpuconv.page.graph import Graph, Node
from gpuconv.page.notebook import Shown, show
from gpuconv.page.opening import of_model
from gpuconv.page.server import serve
from gpuconv.page.session import Session

__all__ = ["Graph", "Node", "Session", "Shown", "export", "of_model", "serve", "show"]
