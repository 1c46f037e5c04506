"""Pictures of all common formats with changed headers, chunks, tags and EXIF; also bombs."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib

import numpy as np
from harness import Case
from mutations import damaged
from PIL import Image
from stage import Stage

FORMATS = ("PNG", "PNG", "JPEG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "TIFF")
SUFFIX = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "F"),
}
SIDES = (0, 1, 2, 100, 16383, 16384, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
MOST_DECODED = 512 << 20  # beyond which a picture is refused, whatever it really holds


def picture(stage: Stage, number: int) -> Case:
    """A changed picture, and a command that reads it."""
    rng = random.Random(f"pictures {number}")
    form, content, held = changed_picture(rng)
    name = f"changed.{SUFFIX[form] if rng.random() < 0.9 else rng.choice(list(SUFFIX.values()))}"
    run = rng.choice(("done", "colour"))
    best = f"runs/{run}/best.safetensors"
    files = {best: stage.runs[run][best], name: content}
    argv = rng.choice(
        (
            ["predict", best, name, "--device", "cpu"],
            ["predict", best, name, "--device", "cpu", "--top", "1"],
            ["explain", best, name, "-o", "../out/x.png", "--device", "cpu"],
            ["filters", name, "-o", "../out/x.png"],
            ["evaluate", best, "--data", "set", "--device", "cpu"],
        )
    )
    if argv[0] == "evaluate":
        shapes = {name.replace("shapes", "set"): each for name, each in stage.shapes.items()}
        del files[name]
        files |= shapes | {f"set/test/cat/{name}": content}
    return Case(f"pictures {number}", files, argv, held)


def changed_picture(rng: random.Random) -> tuple[str, bytes, int]:
    """Its format, its bytes, and how many it holds once decoded where that is much."""
    if rng.random() < 0.04:
        return rng.choice(_BOMBS)(rng)
    form = rng.choice(FORMATS)
    content = _made(form, rng)
    if rng.random() < 0.75:
        content = _CHANGES[form](content, rng)
    if rng.random() < 0.3:
        content = damaged(content, rng, rng.choice((0, 0, 8, 30)))
    return form, content, 0


def _made(form: str, rng: random.Random) -> bytes:
    """A small picture of a random mode, some with EXIF or of several frames."""
    mode = rng.choice(MODES[form])
    height, width = rng.choice(((1, 1), (28, 28), (7, 40), (33, 20), (64, 64)))
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 4))
    if mode == "I;16":
        image = Image.fromarray((pixels[..., 0] * 256).astype(np.uint16))
    else:
        image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
        image = _in_mode(image, mode)
    options: dict = {}
    if rng.random() < 0.4 and form in ("PNG", "JPEG", "WEBP", "TIFF"):
        options["exif"] = _exif(rng) if form != "TIFF" else Image.Exif()
    if rng.random() < 0.3 and form in ("GIF", "WEBP", "PNG", "TIFF") and mode in ("L", "P", "RGB"):
        options |= {"save_all": True, "append_images": [image.copy()] * 3}
    if form == "JPEG":
        options["progressive"] = rng.random() < 0.3
    if form == "TIFF":
        kinds = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")
        options["compression"] = rng.choice(kinds)
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.convert("L").convert(mode) if mode in ("F", "LA") else image.convert(mode)


def _exif(rng: random.Random) -> bytes:
    """EXIF whose orientation may be anything, some damaged."""
    made = Image.Exif()
    made[0x0112] = rng.choice((0, 1, 3, 6, 8, 9, 65535))
    made[0x010E] = rng.choice(("", "x" * 3000, "\x1b[31m"))
    made[0x011A] = 72.0
    content = made.tobytes()
    kind = rng.randrange(4)
    if kind == 0:
        return damaged(content, rng, 6)
    if kind == 1:  # the directory's place, or its length
        place = rng.choice((10, 14, 14))
        return content[:place] + rng.randbytes(rng.choice((2, 4))) + content[place + 4 :]
    if kind == 2:
        return content[: rng.randrange(6, len(content))]
    return content


# ---- formats ------------------------------------------------------------------------------------


def _side(rng: random.Random) -> int:
    return rng.choice(SIDES)


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG: their types and contents."""
    chunks, place = [], 8
    while place + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """A PNG of chunks, with right checksums."""
    made = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        made.append(struct.pack(">I", len(data)) + kind + data)
        made.append(struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(made)


def _ihdr(width: int, height: int, depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    return struct.pack(">IIBBBBB", width % 2**32, height % 2**32, depth, colour, 0, 0, interlaced)


def _of_png(content: bytes, rng: random.Random) -> bytes:
    chunks = png_chunks(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        kind, place = rng.randrange(8), rng.randrange(len(chunks))
        width, height, depth, colour, *_ = struct.unpack_from(">IIBBBBB", _ihdr(1, 1) if
            len(chunks[0][1]) != 13 else chunks[0][1])  # fmt: skip
        if kind == 0:
            sides = (_side(rng), height) if rng.random() < 0.5 else (width, _side(rng))
            chunks[0] = b"IHDR", _ihdr(*sides, depth, colour)
        elif kind == 1:
            depths, colours = (0, 1, 2, 4, 8, 16, 32), (0, 2, 3, 4, 6, 7)
            odd = rng.choice(depths), rng.choice(colours), rng.choice((0, 1, 2))
            chunks[0] = b"IHDR", _ihdr(width, height, *odd)
        elif kind == 2:
            name = rng.choice(
                (b"tRNS", b"PLTE", b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL", b"eXIf")
            )
            data = rng.randbytes(rng.choice((0, 1, 2, 3, 6, 8, 26, 300, 768)))
            chunks.insert(rng.randrange(1, len(chunks) + 1), (name, data))
        elif kind == 3:
            name = rng.choice((b"tEXt", b"zTXt", b"iTXt", b"iCCP"))
            size = rng.choice((0, 100, 40 << 20))
            data = b"Comment\0\0" + zlib.compress(bytes(size), 9)
            chunks.insert(rng.randrange(1, len(chunks) + 1), (name, data))
        elif kind == 4 and len(chunks) > 1:
            del chunks[place]
        elif kind == 5:
            chunks.insert(place, chunks[rng.randrange(len(chunks))])
        elif kind == 6:
            chunks[place] = chunks[place][0], damaged(chunks[place][1], rng)
        else:
            chunks[place] = rng.choice((b"IDAT", b"abcd", b"ABCD", b"\0\0\0\0")), chunks[place][1]
    return png(chunks)


def _of_jpeg(content: bytes, rng: random.Random) -> bytes:
    """Segments up to the scan, each changed by what it is."""
    segments, place = [], 2
    while content[place + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", content, place + 2)
        segments.append((content[place + 1], content[place + 4 : place + 2 + length]))
        place += 2 + length
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(segments))
        marker, data = segments[at]
        frame = next((i for i, (m, _) in enumerate(segments) if m in (0xC0, 0xC1, 0xC2)), None)
        kind = rng.randrange(6)
        if kind < 2 and frame is not None and len(segments[frame][1]) > 8:
            marker, data = segments[frame]
            sof = bytearray(data)
            if kind == 0:
                struct.pack_into(">H", sof, rng.choice((1, 3)), _side(rng) % 65536)
            else:
                sof[rng.choice((0, 5, 6, 7, 8))] = rng.choice((0, 1, 0x11, 0x44, 0xFF, 3, 4, 12))
            segments[frame] = rng.choice((marker, marker, 0xC2, 0xC3, 0xC9)), bytes(sof)
        elif kind == 2:
            segments[at] = marker, damaged(data, rng)
        elif kind == 3:
            del segments[at]
            if not segments:
                break
        elif kind == 4:
            odd = rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDD, 0xDC, 0xDB, 0xC4))
            head = rng.choice((b"", b"Exif\0\0", b"ICC_PROFILE\0\x01\x02", b"Adobe\0d", b"MPF\0"))
            segments.insert(at, (odd, head + rng.randbytes(rng.choice((0, 2, 5, 60)))))
        else:
            segments.insert(at, segments[rng.randrange(len(segments))])
    made = [b"\xff\xd8"]
    for marker, data in segments:
        made.append(struct.pack(">BBH", 0xFF, marker, (len(data) + 2) % 65536) + data)
    return b"".join(made) + content[place:]


def _of_gif(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 3))):
        frame = data.find(b"\x2c", 13)
        places = [6, 8] + ([frame + k for k in (1, 3, 5, 7)] if 0 < frame < len(data) - 9 else [])
        if rng.random() < 0.6:
            struct.pack_into("<H", data, rng.choice(places), _side(rng) % 65536)
        else:
            data[rng.choice((10, 11, 12, min(frame + 9, len(data) - 1)))] = rng.randrange(256)
    return bytes(data)


def _of_bmp(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 3))):
        place = rng.choice((10, 14, 18, 22, 28, 30, 34, 46, 50))
        if place == 28:
            struct.pack_into("<H", data, 28, rng.choice((0, 1, 2, 4, 8, 16, 24, 32, 64)))
        else:
            odd = (*SIDES, 2**32 - 28, 12, 40, 108, 124, 3, 4)
            struct.pack_into("<I", data, place, rng.choice(odd))
    return bytes(data)


def _of_tiff(content: bytes, rng: random.Random) -> bytes:
    """The entries of the first directory: other tags, types, counts and values."""
    data = bytearray(content)
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    for _ in range(rng.choice((1, 1, 2, 4))):
        entry = directory + 2 + 12 * rng.randrange(count)
        kind = rng.randrange(6)
        if kind == 0:
            tags = (256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 322, 324, 338, 339)
            struct.pack_into(f"{order}H", data, entry, rng.choice((*tags, 347, 34665, 274, 0)))
        elif kind == 1:
            struct.pack_into(
                f"{order}H", data, entry + 2, rng.choice((0, 1, 2, 3, 4, 5, 12, 13, 99))
            )
        elif kind == 2:
            struct.pack_into(f"{order}I", data, entry + 4, rng.choice(SIDES))
        elif kind == 3:
            odd = (*SIDES, 3, 5, 6, 7, 8, 32773, 50000, directory, len(data))
            struct.pack_into(f"{order}I", data, entry + 8, rng.choice(odd))
        elif kind == 4:
            struct.pack_into(
                f"{order}I", data, rng.choice((4, directory + 2 + 12 * count)), directory
            )
        else:
            struct.pack_into(f"{order}H", data, directory, rng.choice((0, 1, count + 5, 65535)))
            break
    return bytes(data)


def _of_webp(content: bytes, rng: random.Random) -> bytes:
    """Chunks: sizes, flags, and others that do not belong there."""
    chunks, place = [], 12
    while place + 8 <= len(content):
        (length,) = struct.unpack_from("<I", content, place + 4)
        chunks.append((content[place : place + 4], content[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    for _ in range(rng.choice((1, 1, 2))):
        at, kind = rng.randrange(len(chunks)), rng.randrange(5)
        name, data = chunks[at]
        if kind == 0:
            flags = rng.choice((0, 2, 0x10, 0x3E, 0xFF))
            sides = [(_side(rng) % 2**24).to_bytes(3, "little") for _ in range(2)]
            chunks.insert(0, (b"VP8X", bytes([flags, 0, 0, 0]) + b"".join(sides)))
        elif kind == 1:
            chunks[at] = name, damaged(data, rng)
        elif kind == 2:
            odd = (b"EXIF", b"ICCP", b"XMP ", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L")
            chunks.insert(at, (rng.choice(odd), rng.choice((b"", _exif(rng), rng.randbytes(24)))))
        elif kind == 3:
            chunks.append(chunks[at])
        else:
            chunks[at] = rng.choice((b"VP8 ", b"VP8L", b"ANMF", b"\0\0\0\0")), data
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for name, data in chunks
    )
    size = rng.choice((len(body) + 4, len(body) + 4, len(body) + 4, 0, 2**32 - 1, 10))
    return b"RIFF" + struct.pack("<I", size) + b"WEBP" + body


_CHANGES = {
    "PNG": _of_png, "JPEG": _of_jpeg, "WEBP": _of_webp, "GIF": _of_gif, "BMP": _of_bmp,
    "TIFF": _of_tiff,
}  # fmt: skip


# ---- bombs: small files of very many pixels that are really there --------------------------------


def _png_bomb(rng: random.Random) -> tuple[str, bytes, int]:
    side, depth, colour = rng.choice(
        ((8_000, 8, 0), (13_000, 8, 2), (20_000, 1, 0), (30_000, 8, 2), (11_000, 16, 6),
         (60_000, 1, 0), (12_000, 8, 3))
    )  # fmt: skip
    return "PNG", _png_of(side, depth, colour), _held(side * side * (1 if colour in (0, 3) else 3))


@functools.cache
def _png_of(side: int, depth: int, colour: int) -> bytes:
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    row = bytes(1 + (side * channels * depth + 7) // 8)
    packer, packed = zlib.compressobj(9), []
    for _ in range(side):
        packed.append(packer.compress(row))
    packed.append(packer.flush())
    chunks = [
        (b"IHDR", _ihdr(side, side, depth, colour)),
        (b"IDAT", b"".join(packed)),
        (b"IEND", b""),
    ]
    if colour == 3:
        chunks.insert(1, (b"PLTE", bytes(768)))
        chunks.insert(2, (b"tRNS", b"\0"))
    return png(chunks)


def _jpeg_bomb(rng: random.Random) -> tuple[str, bytes, int]:
    side = rng.choice((7_000, 12_000, 14_000))
    return "JPEG", _encoded("JPEG", side, rng.choice(("L", "RGB"))), _held(side * side * 3)


def _other_bomb(rng: random.Random) -> tuple[str, bytes, int]:
    form = rng.choice(("GIF", "WEBP", "TIFF", "BMP"))
    side = {"GIF": 15_000, "WEBP": 8_000, "TIFF": 16_000, "BMP": 20_000}[form]
    mode = {"GIF": "L", "WEBP": "RGB", "TIFF": "RGB", "BMP": "1"}[form]
    return form, _encoded(form, side, mode), _held(side * side * len(mode))


@functools.cache
def _encoded(form: str, side: int, mode: str) -> bytes:
    content = io.BytesIO()
    options = {"TIFF": {"compression": "tiff_adobe_deflate"}, "WEBP": {"method": 0}}.get(form, {})
    Image.new(mode, (side, side)).save(content, form, **options)
    return content.getvalue()


def _held(decoded: int) -> int:
    return min(decoded, MOST_DECODED)


_BOMBS = (_png_bomb, _png_bomb, _jpeg_bomb, _other_bomb)
