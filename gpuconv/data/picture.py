"""Pictures: files to arrays of pixels and back."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from gpuconv.arguments import pair
from gpuconv.errors import DataError, one_line, require_known
from gpuconv.files import write_atomically

Size = int | tuple[int, int] | None
RESIZE = ("stretch", "fit", "centre-crop")
MAX_DECODED = 512 << 20  # bytes that Pillow may need for one picture
MAX_COEFFICIENTS = 640 << 20  # bytes; of a progressive JPEG all are kept while it is decoded
LARGE_JPEG = 1 << 25  # pixels; larger ones are shrunk while they are decoded
_STRIP = 1 << 22  # pixels that are converted at a time
# What a decoder keeps besides the picture, in bytes a pixel: two canvases, a copy; planes of int32.
_DECODER = {"WEBP": 8, "JPEG2000": 16}
# As what to read the second bytes of a PNG's samples: Pillow drops them.
_SECOND_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_one_at_a_time = threading.Lock()


def load_image(
    file: str | os.PathLike[str] | BinaryIO,
    grayscale: bool = False,
    size: Size = None,
    resize: str = "stretch",
    longest: int | None = None,
    name: str | os.PathLike[str] = "",
) -> np.ndarray:
    """A picture, by its path or opened, as its matrices of pixels: uint8 (C, H, W), 0 black to 255.

    C is 1 for a gray picture and with `grayscale`, else 3: red, green, blue, byte-equal to
    Pillow's planes. Gray is ITU-R 601 luma. A palette becomes colour, transparency lies on white,
    16 bits round to 8, and the camera's orientation (EXIF) is applied, if it can be read; of an
    animation the first frame counts.
    size: an int or (height, width); the picture is brought to exactly that, bilinear, and left as
    it is if it has that size already. resize: "stretch" scales both sides by their own factor.
    "fit" keeps the aspect ratio and centres the whole picture; what is left over takes the median
    colour of its border. "centre-crop" keeps it too, and cuts off what is left over.
    longest: instead of a size, average to at most so many pixels on the longer side.
    name: what error messages call an opened file.
    A picture that takes more than 512 MB to decode is refused, except that a JPEG of more than 33
    million pixels is shrunk while it is decoded, to no less than twice `size` or `longest`.
    Threads wait for each other, so that together they need no more memory than one.
    Raises DataError where the file is no picture, damaged, too large or of an unsupported kind,
    OSError where it is missing or unreadable, and ValueError for a size or kind that cannot be.
    """
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return load_image(opened, grayscale, size, resize, longest, file)
    wanted = None if size is None else pair("size", size, 1)
    require_known("way to resize", resize, RESIZE)
    least = 2 * max(wanted or (longest or 0,))
    try:
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of its own limit and of broken metadata
            image = _decoded(file, name, least)
            if grayscale and image.mode != "L":
                image = image.convert("L")
            if longest:
                image.thumbnail((longest, longest), Image.Resampling.BOX, reducing_gap=None)
            if wanted is not None:
                image = _resized(image, *wanted, resize)
            return _planes(image)
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{name}: not a picture that Pillow can read; expected PNG, JPEG or "
            "another common format"
        ) from None
    except Exception as error:  # decoders raise a dozen kinds: OSError, SyntaxError, struct's
        raise DataError(
            f"{name}: damaged or unreadable picture ({one_line(error)}); replace or remove it"
        ) from None


def save_image(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write a picture, whole or not at all; the suffix says the format, and PNG loses nothing.

    array: (H, W), (1, H, W) gray or (3, H, W) colour; uint8, or float from 0 to 1, which is
    scaled to 0..255 and rounded. Raises ValueError for anything else, OSError on failure.
    """
    array = np.asarray(array)
    planes = array[None] if array.ndim == 2 else array
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or 0 in planes.shape:
        raise ValueError(
            f"{path}: an array of shape {array.shape} is no picture, expected "
            "(H, W), (1, H, W) or (3, H, W)"
        )
    if planes.dtype.kind == "f":
        if not ((planes >= 0) & (planes <= 1)).all():
            raise ValueError(
                f"{path}: float pixels must be from 0 to 1, got {planes.min():g} to "
                f"{planes.max():g}"
            )
        planes = np.rint(planes * 255).astype(np.uint8)
    if planes.dtype != np.uint8:
        raise ValueError(f"{path}: pixels of {planes.dtype}, expected uint8 or float")
    suffix = Path(path).suffix.lower()
    form = Image.registered_extensions().get(suffix)
    if form not in Image.SAVE:
        raise ValueError(
            f"{path}: cannot write pictures as {suffix or 'a file without suffix'}; "
            "use .png or .jpg"
        )
    content = io.BytesIO()
    pixels = planes[0] if planes.shape[0] == 1 else planes.transpose(1, 2, 0)
    options: dict[str, Any] = {"quality": 95} if form == "JPEG" else {}
    Image.fromarray(np.ascontiguousarray(pixels)).save(content, form, **options)
    write_atomically(path, content.getvalue())


def _decoded(file: BinaryIO, name: object, least: int) -> Image.Image:
    """The picture as L or RGB, in the camera's orientation.

    least: a large JPEG may be shrunk to that many pixels on its shorter side; 0: it may not.
    """
    with _open(file, name) as opened, _quiet(opened):
        size, deep = opened.size, _raw_mode(opened) in _SECOND_BYTES
        plain = opened.mode in ("L", "RGB") and not deep and "transparency" not in opened.info
        if isinstance(opened, JpegImageFile):
            pixels = opened.width * opened.height
            if opened.info.get("progressive"):
                parts = [h * v for _, h, v, _ in opened.layer]
                if 2 * pixels * sum(parts) // max(parts) > MAX_COEFFICIENTS:
                    raise _too_large(name, size)
            if least and pixels > LARGE_JPEG:
                opened.draft(None, (least, least))
        each = (4 if plain else 8) + _DECODER.get(opened.format or "", 0)
        if opened.width * opened.height * each > MAX_DECODED:
            raise _too_large(name, size)
        image = opened if plain else _flattened(opened, file, name)
        image.load()  # in a PNG, EXIF may come last
        turn = _TURNS.get(_orientation(opened))
        if turn is not None and opened.width * opened.height * 8 > MAX_DECODED:
            raise _too_large(name, size)
    return image if turn is None else image.transpose(turn)


def _open(file: BinaryIO, name: object) -> Image.Image:
    try:
        return Image.open(file)
    except Image.DecompressionBombError:  # beyond Pillow's own limit; a JPEG can be shrunk
        file.seek(0)
        try:
            return JpegImageFile(file)
        except SyntaxError:
            raise _too_large(name, None) from None


@contextmanager
def _quiet(image: Image.Image) -> Iterator[None]:
    """Within, libtiff's complaints, which it writes to the process's standard error, are lost."""
    try:
        kept = os.dup(2) if image.format == "TIFF" else None
    except OSError:  # it is closed
        kept = None
    if kept is None:
        yield
        return
    with open(os.devnull, "wb") as nowhere, os.fdopen(kept, "wb"):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)


def _too_large(name: object, size: tuple[int, int] | None) -> DataError:
    pixels = f"{size[0]}x{size[1]}" if size else "all its"
    return DataError(
        f"{name}: too large, {pixels} pixels take more than {MAX_DECODED >> 20} MB to decode; "
        "make it smaller"
    )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF; the pixels may well be whole
        return 1


def _raw_mode(image: Image.Image) -> str:
    """How the samples of a PNG lie in the file, such as "RGB;16B" or "L;2"; "" in other formats."""
    tile = getattr(image, "tile", None)
    return str(tile[0][3]) if tile and image.format == "PNG" else ""


def _flattened(opened: Image.Image, file: BinaryIO, name: object) -> Image.Image:
    """The picture as L or RGB of 8 bits, on white."""
    raw, mode = _raw_mode(opened), opened.mode
    if mode == "F":
        raise DataError(f"{name}: 32-bit float pixels are not supported; save it with 8 or 16 bits")
    sources = [opened]
    if raw == "LA;16B":
        _read_as(opened, "RGBA")  # its four bytes a pixel as four channels
    elif raw in _SECOND_BYTES:
        file.seek(0)
        sources.append(Image.open(file))
        _read_as(sources[1], _SECOND_BYTES[raw])
        sources[1].load()
    opened.load()
    if mode.startswith("I"):
        low, high = (int(end) for end in opened.getextrema())  # type: ignore[arg-type]
        if low < 0 or high > 65535:
            raise DataError(
                f"{name}: pixels from {low} to {high} are not supported; save it with 8 or 16 bits"
            )
    gray = mode in ("1", "L", "LA", "La") or mode.startswith("I") or raw == "LA;16B"
    paper = Image.new("L" if gray else "RGB", opened.size)
    for box in _strips(opened):
        strips = [source.crop(box) for source in sources]
        deep = raw in _SECOND_BYTES or mode.startswith("I")
        strip = _of_16_bits(strips, raw) if deep else _of_8_bits(strips[0], raw)
        paper.paste(strip.convert(paper.mode), box)
    return paper


def _read_as(image: Any, raw: str) -> None:
    """Let Pillow take a PNG's samples for those of another kind."""
    image.tile = [(*image.tile[0][:3], raw)]


def _of_8_bits(strip: Image.Image, raw: str) -> Image.Image:
    key = strip.info.get("transparency")
    if isinstance(key, int):
        # In a PNG of fewer bits the transparent value has these too; Pillow has scaled the pixels.
        strip.info["transparency"] = key * {"1": 255, "L;2": 85, "L;4": 17}.get(raw, 1)
    if strip.has_transparency_data:
        solid = strip.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", solid.size, "white"), solid)
    return strip.convert("L" if strip.mode == "1" else "RGB")


def _of_16_bits(strips: list[Image.Image], raw: str) -> Image.Image:
    """Samples of 16 bits on white, rounded to 8."""
    values: Any = np.asarray(strips[0]).astype(np.int64)
    if raw == "LA;16B":
        values = values[..., 0::2] << 8 | values[..., 1::2]
    elif len(strips) == 2:
        values = values << 8 | np.asarray(strips[1])
    values = np.atleast_3d(values)
    key = strips[0].info.get("transparency")
    if values.shape[2] in (2, 4):
        alpha = values[..., -1:] / 65535
        values = values[..., :-1] * alpha + 65535 * (1 - alpha)
    elif key is not None:
        values[(values == key).all(axis=2)] = 65535
    pixels = np.floor(values / 257 + 0.5).astype(np.uint8)
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def _planes(image: Image.Image) -> np.ndarray:
    """The pixels (C, H, W) of an L or RGB image; in strips, as a copy of all would be large."""
    planes = np.empty((len(image.getbands()), image.height, image.width), np.uint8)
    for box in _strips(image):
        strip = np.asarray(image.crop(box))
        planes[:, box[1] : box[3]] = strip if strip.ndim == 2 else strip.transpose(2, 0, 1)
    return planes


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _resized(image: Image.Image, height: int, width: int, how: str) -> Image.Image:
    W, H = image.size
    if (width, height) == (W, H):
        return image
    if how == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if how == "centre-crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    scale = min(width / W, height / H)
    columns, rows = max(1, round(W * scale)), max(1, round(H * scale))
    edges = [(0, 0, W, 1), (0, H - 1, W, H), (0, 0, 1, H), (W - 1, 0, W, H)]
    border = [_planes(image.crop(edge)).reshape(len(image.getbands()), -1) for edge in edges]
    colour = np.median(np.concatenate(border, axis=1), axis=1).astype(np.uint8)
    paper = Image.new(image.mode, (width, height), tuple(colour.tolist()))
    inner = image.resize((columns, rows), Image.Resampling.BILINEAR)
    paper.paste(inner, ((width - columns) // 2, (height - rows) // 2))
    return paper
