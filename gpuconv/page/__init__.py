"""The page: a network's maps, nodes, filters and training in a browser, and as one offline file.

    from gpuconv import page
    session = page.of_model(network, (3, 32, 32), classes=names)   # any Sequential
    page.serve(session)                                            # until Ctrl-C
    page.export(session, "page.html")

`graph` lays a network out as the page shows it, `session` answers what the page asks, `server`
serves it on this machine, `export` writes the offline file, `monitor` follows a training run. The
page itself is static/, plain JavaScript; see README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gpuconv.data import Preprocessing
from gpuconv.nn import Sequential
from gpuconv.page.export import export
from gpuconv.page.graph import Graph, Node
from gpuconv.page.server import serve
from gpuconv.page.session import Session

if TYPE_CHECKING:
    from gpuconv.data import Dataset, Scale

__all__ = ["Graph", "Node", "Session", "export", "of_model", "serve"]


def of_model(
    model: Sequential,
    image_shape: tuple[int, int, int] | None = None,
    mean: Scale = None,
    std: Scale = None,
    classes: Sequence[str] | None = None,
    test: Callable[[], Dataset] | None = None,
    title: str = "network",
) -> Session:
    """A session for a network of your own, on `cpu` or `reference`, which gets into evaluation
    mode.

    image_shape: one picture's (C, H, W); None for the network's `input_shape`. A network that has
    an `input_shape` gets its pictures padded to it. mean, std: as for `data.to_float`. classes:
    names for the scores. test: gives labelled pictures of that shape to choose from.
    Raises ValueError where the network does not end with scores for such a picture, is too large
    (`graph.MAX_VALUES`), or does not know its input.

    >>> from gpuconv import nn
    >>> own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> of_model(own, (3, 8, 8), classes=["cat", "dog"]).describe()["layers"][1]["shape"]
    [4, 6, 6]
    """
    shape = image_shape or model.input_shape
    if model.input_shape is None:
        model.input_shape = shape
    metadata = {"image_shape": shape, "input": {"mean": mean, "std": std}}
    preprocessing = Preprocessing.from_metadata(metadata, model.input_shape)
    return Session(model, preprocessing, title, classes, test() if test else None)
