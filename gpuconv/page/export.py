"""One offline HTML file: the page, the network's weights, and its forward pass in JavaScript."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from typing import Any

import numpy as np

from gpuconv.explain import receptive_field
from gpuconv.files import write_atomically
from gpuconv.page.assets import OFFLINE_SCRIPTS, STYLE, page, text
from gpuconv.page.description import packed, to_json, weights_of
from gpuconv.page.explanations import COUNT
from gpuconv.page.graph import Graph
from gpuconv.page.session import Session

MAX_PARAMETERS = 2_000_000  # 8 MB of weights, 11 MB in the file
MAX_MULTIPLY_ADDS = 200_000_000  # a second or so in a browser
PICTURES = 40
MAX_PATCH_BYTES = 1_000_000


def export(session: Session, path: str | os.PathLike[str]) -> int:
    """Write the page of a session's network as one file that needs no server and no network.

    Returns its size in bytes. The file appears whole or not at all.
    Raises ValueError for a network of more than MAX_PARAMETERS parameters or MAX_MULTIPLY_ADDS
    multiply-adds for a picture, or with a layer that the page cannot compute; OSError where the
    file cannot be written.

    >>> export(session, "lenet.html")  # doctest: +SKIP
    """
    whole = content(session)
    write_atomically(path, whole)
    return len(whole)


def content(session: Session) -> bytes:
    """What `export` writes."""
    model = session.describe()
    _require_small(model, session.graph)
    pictures = _pictures(session, model["test"])
    patches = _patches(session, model)
    gradient = [method for method in model["methods"] if method["name"] == "gradient"]
    if len(patches) < len(model["patches"]):
        names = ", ".join(session.graph[n].name for n in patches)
        where = f"in this file for {names} alone" if patches else "not in this file"
        model["note"] = "; ".join(filter(None, (model["note"], f"top-activating patches {where}")))
    model |= {
        "training": False,
        "test": len(pictures),
        "methods": gradient,
        "patches": list(patches),
    }
    network = {
        "model": model,
        "weights": {
            node.number: {name: packed(array) for name, array in weights_of(node).items()}
            for node in session.graph
        },
        "start": {
            layer["number"]: session.filters(layer["number"], "start")["values"]
            for layer in model["layers"]
            if layer["filters"] and model["start"]
        },
        "samples": pictures,
        "patches": patches,
    }
    data = to_json(network).decode().replace("<", "\\u003c")
    style = text(STYLE)
    script = "\n".join(text(name) for name in OFFLINE_SCRIPTS).replace("</script", "<\\/script")
    policy = (
        "default-src 'none'; img-src data: blob:; base-uri 'none'; form-action 'none'; "
        f"script-src {_digest(script)}; style-src {_digest(style)}"
    )
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    head += f"<style>{style}</style>"
    body = f'<script type="application/json" id="network">{data}</script>\n'
    return page(head, f"{body}<script>{script}</script>").encode()


def _require_small(model: dict[str, Any], graph: Graph) -> None:
    for what, has, most in (
        ("parameters", model["parameters"], MAX_PARAMETERS),
        ("multiply-adds for a picture", graph.multiply_adds, MAX_MULTIPLY_ADDS),
    ):
        if has > most:
            raise ValueError(
                f"show: an exported page takes networks of up to {most:,} {what}, this one has "
                f"{has:,}; leave --export out to serve it"
            )
    for node in graph:
        if node.kind == "other":
            function = f"there is the function {node.name}"
            what = function if node.layer is None else f"{node.name} is a {node.type}"
            raise ValueError(
                f"show: {what}, which an exported page cannot compute; leave --export out to "
                "serve it"
            )


def _pictures(session: Session, count: int) -> list[dict[str, Any]]:
    """Some test pictures, spread over the set, of a megabyte at most."""
    preprocessing = session.preprocessing
    size = math.prod(preprocessing.image_shape)
    most = min(count, PICTURES, max(1, 1_000_000 // size))
    return [session.sample(int(index)) for index in np.linspace(0, count - 1, most)]


def _patches(session: Session, model: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """For each convolution its filters' top-activating patches, as far as they are small."""
    found, room = {}, MAX_PATCH_BYTES
    shape = session.graph[0].shape
    for number in model["patches"]:
        node = session.graph[number]
        field = receptive_field(session.graph.model, session.graph.layer_name(number), shape)
        part = (shape[0] + 4) * math.prod(field.size) * 4 // 3 + 200  # in base64
        if node.kind != "conv" or (size := node.shape[0] * COUNT * part) > room:
            continue
        room -= size
        found[number] = [_all_seen(session, number, k) for k in range(node.shape[0])]
    return found


def _all_seen(session: Session, number: int, filter: int) -> dict[str, Any]:
    while "patches" not in (found := session.patches(number, filter)):
        pass
    return found


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
