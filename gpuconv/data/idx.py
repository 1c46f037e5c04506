"""IDX files, MNIST's format: a four-byte magic, big-endian sizes, then the numbers, often gzipped.

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats".
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np

from gpuconv.errors import DataError
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
    """
    return parse_idx(read_content(path), path)


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write `array` as an IDX file, gzipped where the name ends in .gz; whole or not at all.

    array: at least one dimension; uint8, int8, int16, int32, float32 or float64.
    Equal arrays give equal bytes. Raises ValueError for what IDX cannot hold, OSError on failure.
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
    """The bytes of a file, decompressed if they are gzip, see `unpacked`.

    More than 512 MB and 16 times the file are refused.
    """
    with open(path, "rb") as file:
        return unpacked(file, path, max(MAX_UNPACKED, MAX_RATIO * os.fstat(file.fileno()).st_size))


def unpacked(file: BinaryIO, name: object, most: int) -> bytearray:
    """The bytes of an open file, decompressed if they are gzip; name: what errors call it.

    DataError where that fails, and for more than `most` bytes.
    """
    packed = file.read(2) == GZIP_MAGIC
    file.seek(0)
    stream: Any = gzip.GzipFile(fileobj=file) if packed else file
    content = bytearray()
    try:
        while piece := stream.read(_CHUNK):
            content += piece
            if packed and max(len(content), _claimed(content)) > most:
                raise DataError(
                    f"{name}: more than {most >> 20} MB once decompressed, which is too much for "
                    "its size; decompress it yourself if you trust it"
                )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: damaged gzip data ({error}); fetch it again") from None
    return content


def _claimed(content: bytearray) -> int:
    """The bytes that an IDX file has by its header; 0 as long as that is not there."""
    try:
        start, shape, dtype = _header(content, "")
    except DataError:
        return 0
    return start + math.prod(shape) * dtype.itemsize


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
