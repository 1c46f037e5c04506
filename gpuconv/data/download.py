"""Download one file from the first mirror that has it, and check it by sha256."""

from __future__ import annotations

import hashlib
import http.client
import io
import urllib.request

from gpuconv.data.idx import unpacked
from gpuconv.errors import DataError, one_line

TIMEOUT = 30.0  # seconds without an answer
MAX_BYTES = 64 << 20  # twice the largest file: a wrong server cannot fill the memory


def fetch(mirrors: tuple[str, ...], name: str, sha256: str) -> tuple[bytes, bytearray]:
    """The gzip file `name` as received, and its decompressed bytes, which have the given sha256.

    mirrors: addresses that end in "/", tried in turn. Raises OSError where none of them gave the
    expected file; one line with each mirror's reason.
    """
    reasons = []
    for mirror in mirrors:
        try:
            packed = _get(mirror + name)
            content = unpacked(io.BytesIO(packed), "the file", MAX_BYTES)
            digest = hashlib.sha256(content).hexdigest()
            if digest != sha256:
                raise DataError(f"sha256 {digest[:16]}..., expected {sha256[:16]}...")
            return packed, content
        except (DataError, OSError, http.client.HTTPException) as error:
            wrapped = getattr(error, "reason", None)  # in an URLError, what the network said
            cause = wrapped if isinstance(wrapped, OSError) else error
            reasons.append(f"{mirror}{name}: {one_line(cause)}")
    raise OSError("; ".join(reasons))


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        content: bytes = answer.read(MAX_BYTES + 1)
        length = answer.headers.get("Content-Length")
    if len(content) > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES} bytes came; this is not the file")
    if length is not None and len(content) < int(length):
        raise DataError(f"the connection ended after {len(content)} of {length} bytes")
    return content
