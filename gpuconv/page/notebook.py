"""The page of a network in a notebook's cell, or served from a script or a shell."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from html import escape

from gpuconv.nn import Module
from gpuconv.page.export import content
from gpuconv.page.opening import of_model
from gpuconv.page.server import PageServer, serve
from gpuconv.page.session import Session

HEIGHT = 720  # pixels of the cell's output


class Shown:
    """What `show` returns in a notebook, which displays it.

    html: the page as one file, "" where it cannot be one; then url is where it is served, on the
    notebook's machine, and note says why.
    """

    def __init__(self, session: Session) -> None:
        self.html = self.url = self.note = ""
        try:
            self.html = content(session).decode()
        except ValueError as error:  # too large, or of a layer that only Python computes
            server = PageServer(session)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.url, self.note = server.url, str(error).partition("; ")[0]

    def __repr__(self) -> str:
        return f"Shown({self.url or f'{len(self.html):,} bytes of HTML'})"

    def _repr_html_(self) -> str:
        if self.url:
            link = f'<a href="{self.url}" target="_blank">{self.url}</a>'
            return f"<p>{link}, on the notebook's machine ({escape(self.note)})</p>"
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {HEIGHT}px; border: 1px solid #8888"></iframe>'
        )


def show(
    model: Module,
    input_shape: tuple[int, int, int] | None = None,
    classes: Sequence[str] | None = None,
    port: int = 8123,
) -> Shown | None:
    """Look inside a network: a picture that you draw, every layer's maps, any value.

    In a notebook the page is the cell's output, without a server where the network fits into one
    file. Elsewhere it is served on this machine, at `port` or the next free one, until Ctrl-C; the
    address is printed.

    input_shape: one picture's (C, H, W); may be left out for a model that knows its own. classes:
    names for the scores. The network runs in evaluation mode, and is afterwards in its own.
    Raises ValueError for a network on a GPU or in the simulator, and as `page.of_model` does.

    >>> from gpuconv import models
    >>> models.lenet().show()  # doctest: +SKIP
    """
    if model.device not in ("cpu", "reference"):
        raise ValueError(
            f"show: the network is on {model.device}, the page runs it on cpu or reference; "
            "show copy.deepcopy(model).to('cpu')"
        )
    if input_shape is None and model.input_shape is None:
        raise ValueError("show: this network does not know its input; give input_shape=(C, H, W)")
    title = (model.spec or {}).get("name", type(model).__name__)
    modes = [(module, module.training) for module in model.modules()]
    try:
        session = of_model(model, input_shape, classes=classes, title=title)
        if in_notebook():
            return Shown(session)
        serve(session, port=port)
        return None
    finally:
        for module, mode in modes:
            module.training = mode


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, such as Jupyter's or Colab's."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")
