"""IDX files: wrong headers, sizes, types, counts and labels; plain and gzipped, also as bombs."""

from __future__ import annotations

import gzip
import random
import struct
import zlib

from harness import Case
from mutations import damaged
from stage import Stage

STEMS = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip
CODES = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}
BOMB = 300 << 20  # bytes that a bomb of some hundred KB becomes


def idx(stage: Stage, number: int) -> Case:
    """A data set with one changed file, and a command that reads it."""
    rng = random.Random(f"idx {number}")
    files = {**stage.digits, **stage.runs["done"], "digit.png": stage.digit}
    stem = rng.choice(STEMS)
    content, held = _changed(files.pop(f"digits/{stem}"), rng)
    if rng.random() < 0.4 or held:
        packed, held = _packed(content, rng) if not held else (content, held)
        files[f"digits/{stem}{rng.choice(('.gz', '.gz', ''))}"] = packed
    else:
        files[f"digits/{stem}"] = content
    best = "runs/done/best.safetensors"
    argv = rng.choice(
        (
            ["evaluate", best, "--data", "digits", "--device", "cpu"],
            ["evaluate", best, "--data", f"digits/{stem}", "--split", "train", "--device", "cpu"],
            ["explain", best, "--index", "3", "--data", "digits", "-o", "../out/x.png"],
            ["train", "--data", "digits", "--epochs", "1", "--out", "../out/run", "--threads", "1",
             "--device", "cpu"],
            ["train", "--resume", "runs/done", "--epochs", "2", "--threads", "1"],
            ["show", best, "--data", "digits"],
            ["patches", best, "--data", "digits", "-o", "../out/x.png"],
        )
    )  # fmt: skip
    return Case(f"idx {number}", files, argv, held, writes="runs/" if "--resume" in argv else "")


def _changed(content: bytes, rng: random.Random) -> tuple[bytes, int]:
    """The content of an IDX file, changed; and what it holds where it is a gzip bomb."""
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    kind = rng.randrange(9)
    if kind == 0:
        return damaged(content[:start], rng) + content[start:], 0
    if kind == 1:
        return damaged(content, rng), 0
    if kind == 2:
        return content[: rng.randrange(len(content))], 0
    if kind == 3:  # sizes that are wrong
        sizes = list(shape)
        odd = (0, 1, 2**31, 2**32 - 1, shape[0] + 1, shape[0] - 1)
        sizes[rng.randrange(dimensions)] = rng.choice(odd)
        return content[:4] + struct.pack(f">{dimensions}I", *sizes) + content[start:], 0
    if kind == 4:  # another shape for the same bytes
        sizes = rng.choice(
            ([len(content) - start], [1, *shape], [*shape, 1], [0] * 3, [1] * 33, [])
        )
        sizes = sizes[:255]
        return _header(0x08, sizes) + content[start:], 0
    if kind == 5:  # another type, of as many numbers
        code = rng.choice(sorted(CODES))
        odd = (0, 1, -1, 100, 3.7, 1e30, float("nan"), float("inf"), 2**31 - 1, 9)
        values = [rng.choice(odd) if rng.random() < 0.1 else v % 10 for v in content[start:]]
        return _header(code, shape) + b"".join(_one(code, value) for value in values), 0
    if kind == 6:  # labels that are no classes, images that are none
        code = rng.choice((0x08, 0x0B, 0x0C))
        top = {0x08: 255, 0x0B: 2**15 - 1, 0x0C: 2**31 - 1}[code]
        values = [rng.choice((top, top - 1, 9, 10, 0)) for _ in content[start:]]
        return _header(code, shape) + b"".join(_one(code, value) for value in values), 0
    if kind == 7:
        return _header(rng.choice((0, 1, 7, 0x0A, 0x0F, 0xFF)), shape) + content[start:], 0
    size = rng.choice((BOMB // 8, BOMB))
    head = rng.choice((content[:start], _header(0x08, (size // 784, 28, 28)), b""))
    return _bomb(head, size), size


def _header(code: int, shape: object) -> bytes:
    sizes = list(shape)  # type: ignore[call-overload]
    return struct.pack(f">HBB{len(sizes)}I", 0, code, len(sizes), *sizes)


def _one(code: int, value: float) -> bytes:
    form = CODES[code]
    if form in "fd":
        return struct.pack(f">{form}", min(value, 3e38) if value == value else value)
    if value != value or abs(value) == float("inf"):
        value = 0
    bits = 8 * struct.calcsize(form)
    unsigned = int(value) % (1 << bits)
    return unsigned.to_bytes(bits // 8, "big")


def _bomb(head: bytes, size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    piece = bytes(1 << 20)
    packed = [packer.compress(head)]
    packed += [packer.compress(piece) for _ in range(size >> 20)]
    return b"".join([*packed, packer.flush()])


def _packed(content: bytes, rng: random.Random) -> tuple[bytes, int]:
    """Gzipped, and mostly damaged."""
    packed = gzip.compress(content, mtime=0)
    kind = rng.randrange(6)
    if kind == 0:
        return damaged(packed, rng), 0
    if kind == 1:
        return packed[: rng.randrange(len(packed))], 0
    if kind == 2:
        return packed + rng.choice((b"\0" * 100, b"rest", packed[:3], packed)), 0
    if kind == 3:  # a wrong length or checksum at the end
        return packed[:-8] + rng.randbytes(8), 0
    if kind == 4:
        return gzip.compress(packed, mtime=0), 0
    return packed, 0
