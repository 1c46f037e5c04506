"""The page's files, and what the page may load: nothing from elsewhere."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

STYLE = "style.css"
# In the order in which the page loads them: each adds to the object `gpuconv` of the ones before.
FIRST = ("state.js", "numbers.js", "color.js", "geometry.js")
LAST = (
    "explain.js", "pad.js", "filters.js", "patches.js", "maps.js", "layers.js", "terms.js",
    "node.js", "answer.js", "training.js", "page.js",
)  # fmt: skip
SERVED_SCRIPTS = (*FIRST, "source_http.js", *LAST)
OFFLINE_SCRIPTS = (*FIRST, "net.js", "source_offline.js", *LAST)
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}


def text(name: str) -> str:
    """A file of the page."""
    return files("gpuconv.page").joinpath("static", name).read_text(encoding="utf-8")


def page(head: str, scripts: str) -> str:
    """index.html with its style in the head and its scripts at the end."""
    return text("index.html").replace("<!-- head -->", head).replace("<!-- scripts -->", scripts)


@lru_cache(maxsize=1)
def assets() -> dict[str, tuple[str, bytes]]:
    """What the server has, by path: (content type, content)."""
    head = f'<link rel="stylesheet" href="/{STYLE}">'
    scripts = "\n".join(f'<script src="/{name}"></script>' for name in SERVED_SCRIPTS)
    found = {"/": ("text/html; charset=utf-8", page(head, scripts).encode())}
    for name in (STYLE, *SERVED_SCRIPTS):
        found[f"/{name}"] = (_TYPES[name[name.rindex(".") :]], text(name).encode())
    return found
