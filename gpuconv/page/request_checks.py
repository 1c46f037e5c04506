"""What the server refuses before it looks at a request: wrong hosts, other sites, slow clients."""

from __future__ import annotations

import ipaddress
import re
from email.message import Message
from urllib.parse import urlsplit

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^][:@/?#\s]+)(:[0-9]+)?")  # a name and perhaps a port
EXPECTED = "open the page by the address that the command printed"


class Refused(Exception):
    """A request that is not answered: an HTTP status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def check_headers(headers: Message, bound: str) -> None:
    """Refuse headers that contradict each other, a Host that is not this server's (a site may point
    its name at 127.0.0.1), and what another site's page sends (browsers say where it comes from).

    bound: the address that the server listens on. On one that is not this machine's own, any
    address in numbers will do, since a name of another site is never that.
    """
    for name in ("Host", "Origin", "Content-Length", "Content-Type"):
        if len(headers.get_all(name, [])) > 1:
            raise Refused(400, f"there is more than one {name}")
    host, origin = headers.get("Host", ""), headers.get("Origin")
    found = HOST.fullmatch(host.strip().lower())
    name = found[1].strip("[]") if found else ""
    by_number = not is_loopback(bound) and _address(name) is not None
    if name not in LOCAL_NAMES and name != bound and not by_number:
        raise Refused(403, f"this server is not {name or 'nameless'!r}; {EXPECTED}")
    if origin is not None and (origin == "null" or urlsplit(origin).netloc != host):
        raise Refused(403, f"requests from {origin[:80]!r} are not answered; {EXPECTED}")
    site = headers.get("Sec-Fetch-Site", "none")
    if site not in ("same-origin", "none"):
        raise Refused(403, f"requests from another site ({site[:20]}) are not answered")


def check_type(given: str | None, expected: str) -> None:
    """Refuse a body of another type: what a form on another site can send is not `expected`."""
    if (given or "").partition(";")[0].strip().lower() != expected:
        raise Refused(415, f"the body must be {expected}, got {(given or 'nothing')[:80]}")


def body_length(headers: Message, most: int) -> int:
    """The length of a request's body. Refuses none, a wrong one, and more than `most` bytes."""
    if headers.get("Transfer-Encoding"):
        raise Refused(411, "send a Content-Length, not a Transfer-Encoding")
    text = headers.get("Content-Length", "")
    if not (text.isascii() and text.isdigit()):
        raise Refused(411, "the request needs its Content-Length, a number of bytes")
    if len(text) > 18 or int(text) > most:
        raise Refused(413, f"the body has {text[:20]} bytes, at most {most:,} are read")
    return int(text)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
