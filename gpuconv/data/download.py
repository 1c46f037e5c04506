"""Download one file from the first mirror that has it, and check it by sha256."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
import zlib

from gpuconv.data.errors import DataError

TIMEOUT = 30.0  # seconds without an answer
MAX_BYTES = 64 << 20  # twice the largest file: a wrong server cannot fill the memory


def fetch(mirrors: tuple[str, ...], name: str, sha256: str) -> tuple[bytes, bytearray]:
    """The gzip file `name` as received, and its decompressed bytes, which have the given sha256.

    mirrors: addresses that end in "/", tried in turn. Raises DataError where an answer was not
    the expected file, OSError where no mirror answered; one line with each mirror's reason.

    >>> fetch(("https://example.org/mnist/",), "labels.gz", "ba78...")  # doctest: +SKIP
    """
    reasons = []
    corrupt = False
    for mirror in mirrors:
        try:
            packed = _get(mirror + name)
            return packed, _unpacked(packed, sha256)
        except (DataError, OSError, http.client.HTTPException) as error:
            corrupt = corrupt or isinstance(error, DataError)
            reasons.append(f"{mirror}{name}: {_plain(error)}")
    raise (DataError if corrupt else OSError)("; ".join(reasons))


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        content: bytes = answer.read(MAX_BYTES + 1)
        length = answer.headers.get("Content-Length")
    if len(content) > MAX_BYTES:
        raise DataError(f"more than {MAX_BYTES} bytes came; this is not the file")
    if length is not None and len(content) < int(length):
        raise DataError(f"the connection ended after {len(content)} of {length} bytes")
    return content


def _unpacked(packed: bytes, sha256: str) -> bytearray:
    member = zlib.decompressobj(wbits=31)
    try:
        content = bytearray(member.decompress(packed, MAX_BYTES))
    except zlib.error:
        content = bytearray()
    if not member.eof:
        raise DataError(f"the {len(packed)} bytes that came are not intact gzip")
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise DataError(f"sha256 {digest[:16]}..., expected {sha256[:16]}...")
    return content


def _plain(error: Exception) -> str:
    """An error as part of a line: without errno's number."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(str(text).split())
