"""The page: a network's maps, nodes, filters and training in a browser, and as one offline file.

`graph` lays a network out as the page shows it, `nodes` says how one number came about, `session`
answers what the page asks, `server` serves it on this machine, `export` writes the offline file,
`live` follows a run. The page itself is static/, plain JavaScript; its README says how it is made.
"""

from gpuconv.show.graph import Graph, Node
from gpuconv.show.session import Session

__all__ = ["Graph", "Node", "Session"]
