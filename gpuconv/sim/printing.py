"""printf in kernels: the text goes to this process's standard output at once.

A kernel calls it with the format's address and that of the arguments, which lie one after another,
each at a multiple of its size.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys

_PIECE = re.compile(r"%([-+ #0]*)(\*|\d*)(?:\.(\*|\d*))?(hh|h|ll|l|j|z|t)?([diouxXcsfFeEgGaAp%])")
_LONG = ("l", "ll", "j", "z", "t")
_MOST = 4096  # characters of a field or a string
_PAGE = 4096  # bytes, of which all can be read or none
_MEMORY = "/proc/self/mem"


class _Arguments:
    """Reads the arguments in turn."""

    def __init__(self, address: int) -> None:
        self.address, self.count = address, 0

    def next(self, kind: type[ctypes._SimpleCData]) -> int | float:
        size = ctypes.sizeof(kind)
        self.address = -(-self.address // size) * size
        value = kind.from_address(self.address).value
        self.address += size
        self.count += 1
        return value


def formatted(text: str, address: int) -> tuple[str, int]:
    """The text that printf makes of a format and the arguments at `address`, and their number."""
    arguments = _Arguments(address)

    def piece(match: re.Match[str]) -> str:
        flags, width, precision, length, letter = match.groups()
        if letter == "%":
            return "%"
        width, precision = (
            _short(int(arguments.next(ctypes.c_int32)) if part == "*" else int(part))
            if part
            else part
            for part in (width, precision)
        )
        form = f"%{flags}{width}" + ("" if precision is None else f".{precision}")
        return _one(form, letter, length, arguments)

    return _PIECE.sub(piece, text), arguments.count


def _short(size: int) -> str:
    return str(max(-_MOST, min(size, _MOST)))


def _one(form: str, letter: str, length: str | None, arguments: _Arguments) -> str:
    if letter == "s":
        place = int(arguments.next(ctypes.c_uint64))
        return (form + "s") % (_string(place) if place else "(null)")
    if letter == "p":
        return (form + "s") % hex(int(arguments.next(ctypes.c_uint64)))
    if letter in "fFeEgG":
        return (form + letter) % arguments.next(ctypes.c_double)
    if letter in "aA":
        return float(arguments.next(ctypes.c_double)).hex()
    signed = letter in "dic"
    if length in _LONG:
        value = int(arguments.next(ctypes.c_int64 if signed else ctypes.c_uint64))
    else:
        value = int(arguments.next(ctypes.c_int32 if signed else ctypes.c_uint32))
    if letter == "c":
        return (form + "c") % (value & 0xFF)
    return (form + ("d" if letter in "iu" else letter)) % value


def _string(address: int) -> str:
    """The string at an address that a kernel passed, which may be any."""
    found = b""
    try:
        with open(_MEMORY, "rb", buffering=0) as memory:
            while b"\0" not in found and len(found) < _MOST:
                memory.seek(address + len(found))
                found += memory.read(_PAGE - (address + len(found)) % _PAGE)
    except (OSError, OverflowError):
        if os.path.exists(_MEMORY):
            return f"(no string at {address:#x})"
        found = ctypes.string_at(address)  # on systems that have no such file
    return found.split(b"\0")[0].decode(errors="replace")


def _print(text: int, arguments: int) -> int:
    made, count = formatted(_string(text), arguments)
    sys.stdout.write(made)
    return count


_CALLED = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint64)(_print)
ADDRESS = ctypes.cast(_CALLED, ctypes.c_void_p).value or 0
