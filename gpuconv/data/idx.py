"""IDX files, MNIST's format: a four-byte magic, big-endian sizes, then the numbers, often gzipped.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats".
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpuconv.data.errors import DataError
from gpuconv.files import write_atomically

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP_MAGIC = b"\x1f\x8b"
MAX_DIMENSIONS = 32
_CHUNK = 1 << 20
# What a gzip file may hold: a small one that claims gigabytes is no data set. MNIST's ratio is 5.
MAX_UNPACKED, MAX_RATIO = 512 << 20, 16


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, gzipped or plain: the content decides, not the name.

    Returns an array of the file's shape and dtype (uint8, int8, int16, int32, float32 or
    float64), writable, in the machine's byte order.
    Raises DataError for a wrong magic, impossible dimensions, a truncated file, bytes after the
    data, or damaged gzip; OSError where the file is missing or unreadable.

    >>> read_idx("train-labels-idx1-ubyte.gz")[:4]  # doctest: +SKIP
    array([5, 0, 4, 1], dtype=uint8)
    """
    return parse_idx(read_content(path), path)


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write `array` as an IDX file, gzipped where the name ends in .gz; whole or not at all.

    array: at least one dimension; uint8, int8, int16, int32, float32 or float64.
    Equal arrays give equal bytes. Raises ValueError for what IDX cannot hold, OSError on failure.

    >>> write_idx("labels-idx1-ubyte.gz", np.array([3, 1], np.uint8))  # doctest: +SKIP
    """
    array = np.asarray(array)
    big_endian = array.dtype.newbyteorder(">")
    code = next((code for code, name in DTYPES.items() if np.dtype(name) == big_endian), None)
    if code is None:
        raise ValueError(
            f"IDX cannot hold {array.dtype}: convert first to one of uint8, int8, int16, int32, "
            "float32, float64"
        )
    if not 1 <= array.ndim <= MAX_DIMENSIONS or max(array.shape) >= 1 << 32:
        raise ValueError(f"IDX holds 1 to {MAX_DIMENSIONS} dimensions, got shape {array.shape}")
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    content = header + array.astype(big_endian, copy=False).tobytes()
    if os.fspath(path).endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    write_atomically(path, content)


def read_content(path: str | os.PathLike[str]) -> bytearray:
    """The bytes of a file, decompressed if they are gzip.

    DataError where that fails, and where they are more than 512 MB and 16 times the file.
    """
    content = bytearray()
    with open(path, "rb") as file:
        first = file.read(_CHUNK)
        pieces = itertools.chain([first], iter(lambda: file.read(_CHUNK), b""))
        packed = first.startswith(GZIP_MAGIC)
        most = max(MAX_UNPACKED, MAX_RATIO * os.fstat(file.fileno()).st_size)
        for piece in _inflate(pieces, path) if packed else pieces:
            content += piece
            if packed and max(len(content), _claimed(content)) > most:
                raise DataError(
                    f"{path}: more than {most >> 20} MB once decompressed, which is too much for "
                    "its size; decompress it yourself if you trust it"
                )
    return content


def _claimed(content: bytearray) -> int:
    """The bytes that an IDX file has by its header; 0 as long as that is not there."""
    try:
        start, shape, dtype = _header(content, "")
    except DataError:
        return 0
    return start + math.prod(shape) * dtype.itemsize


def _inflate(pieces: Iterator[bytes], path: object) -> Iterator[bytes]:
    """Decompress gzip piece by piece; members may follow each other, other bytes may not."""
    member = zlib.decompressobj(wbits=31)
    for piece in pieces:
        while piece:
            if member.eof:
                if not GZIP_MAGIC.startswith(piece[:2]):
                    raise DataError(
                        f"{path}: bytes that are not gzip follow the compressed data; "
                        "the file is damaged, fetch it again"
                    )
                member = zlib.decompressobj(wbits=31)
            try:
                yield member.decompress(piece, _CHUNK)
            except zlib.error as error:
                raise DataError(f"{path}: damaged gzip data ({error}); fetch it again") from None
            piece = member.unused_data if member.eof else member.unconsumed_tail
    if not member.eof:
        raise DataError(
            f"{path}: the gzip data ends too early; the file is truncated, fetch it again"
        )


def parse_idx(content: bytes | bytearray, path: object) -> np.ndarray:
    """The array in the bytes of an IDX file; `path` is what the errors name.

    A bytearray's array of single bytes shares its memory. Raises DataError, see `read_idx`.
    """
    start, shape, dtype = _header(content, path)
    expected, actual = math.prod(shape) * dtype.itemsize, len(content) - start
    if actual != expected:
        fault = "truncated" if actual < expected else "has bytes after its data"
        raise DataError(
            f"{path}: {fault}: {actual} bytes for shape {shape} of {dtype.name}, "
            f"expected {expected}"
        )
    try:
        array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    except ValueError:  # no elements, yet dimensions beyond what NumPy can index
        raise DataError(f"{path}: impossible shape {shape}") from None
    return array.astype(dtype.newbyteorder("="), copy=dtype.itemsize > 1)


def _header(content: bytes | bytearray, path: object) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Where the numbers of an IDX file begin, their shape and type."""
    if len(content) < 4:
        raise DataError(f"{path}: {len(content)} bytes, too short for an IDX file")
    zero, code, dimensions = struct.unpack_from(">HBB", content)
    if zero != 0 or code not in DTYPES:
        raise DataError(
            f"{path}: not an IDX file: it starts with {bytes(content[:4]).hex(' ')}, expected "
            f"00 00, a type (08, 09, 0b to 0e) and the number of dimensions"
        )
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise DataError(f"{path}: {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path}: truncated in its header: {len(content)} of {start} bytes")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return start, shape, np.dtype(DTYPES[code])
