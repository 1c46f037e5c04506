"""Pictures: byte-exact round trips, modes, depths, transparency, damage, sizes."""

import io
import struct
import sys

import numpy as np
import pytest
from pictures import chunk, png, resized
from PIL import Image, ImageFile

from gpuconv.data import DataError, load_image, picture, save_image

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (3, 9, 13), np.uint8)
GRAY = RNG.integers(0, 256, (1, 9, 13), np.uint8)


def decoded(content, **options):
    return load_image(io.BytesIO(content), name="x", **options)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".PNG"])
@pytest.mark.parametrize("array", [COLOUR, GRAY])
def test_round_trip_is_byte_exact(tmp_path, array, suffix):
    path = tmp_path / f"x{suffix}"
    save_image(path, array)
    back = load_image(path)
    assert back.dtype == np.uint8
    assert back.flags.c_contiguous
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)
    again = tmp_path / f"y{suffix}"
    save_image(again, back)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_planes_are_pillows(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(COLOUR.transpose(1, 2, 0)).save(path)
    with Image.open(path) as image:
        planes = [np.array(plane) for plane in image.split()]
        luma = np.array(image.convert("L"))
    np.testing.assert_array_equal(load_image(path), planes)
    np.testing.assert_array_equal(load_image(path, grayscale=True), luma[None])


def test_flat_and_float_arrays(tmp_path):
    save_image(tmp_path / "flat.png", GRAY[0])
    np.testing.assert_array_equal(load_image(tmp_path / "flat.png"), GRAY)
    save_image(tmp_path / "float.png", COLOUR / 255)
    np.testing.assert_array_equal(load_image(tmp_path / "float.png"), COLOUR)
    save_image(tmp_path / "strided.png", COLOUR[:, ::-1, ::2])
    np.testing.assert_array_equal(load_image(tmp_path / "strided.png"), COLOUR[:, ::-1, ::2])
    save_image(tmp_path / "x.jpg", np.full((3, 8, 8), 77, np.uint8))
    assert (load_image(tmp_path / "x.jpg") == 77).all()


def test_sixteen_bits_round_to_eight(tmp_path):
    wide = np.array([[0, 128, 129, 385, 386, 65535, 32768, 65406]], np.uint16)
    expected = np.floor(wide / 257 + 0.5)
    for name in ("x.png", "x.tiff"):
        Image.fromarray(wide).save(tmp_path / name)
        np.testing.assert_array_equal(load_image(tmp_path / name)[0], expected)


def test_palette_bits_alpha_and_cmyk(tmp_path):
    colours = Image.fromarray(np.ascontiguousarray(COLOUR.transpose(1, 2, 0)))
    palette = colours.quantize(16)
    palette.save(tmp_path / "p.png")
    expected = np.array(palette.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(load_image(tmp_path / "p.png"), expected)

    bits = GRAY[0] > 100
    Image.fromarray(bits).save(tmp_path / "b.png")
    np.testing.assert_array_equal(load_image(tmp_path / "b.png")[0], bits * 255)

    colours.convert("CMYK").save(tmp_path / "c.tiff")
    assert load_image(tmp_path / "c.tiff").shape == (3, 9, 13)

    alpha = np.zeros((9, 13), np.uint8)
    alpha[:, 6:] = 255
    colours.putalpha(Image.fromarray(alpha))
    colours.save(tmp_path / "a.png")
    seen = load_image(tmp_path / "a.png")
    assert (seen[:, :, :6] == 255).all()
    np.testing.assert_array_equal(seen[:, :, 6:], COLOUR[:, :, 6:])

    drawn = Image.merge("LA", (Image.fromarray(GRAY[0]), Image.fromarray(alpha)))
    drawn.save(tmp_path / "la.png")
    np.testing.assert_array_equal(load_image(tmp_path / "la.png")[:, :, 6:], GRAY[:, :, 6:])


def test_the_cameras_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise
    Image.fromarray(GRAY[0]).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png")[0], np.rot90(GRAY[0], -1))


def test_size(tmp_path):
    save_image(tmp_path / "x.png", COLOUR)
    assert load_image(tmp_path / "x.png", size=28).shape == (3, 28, 28)
    assert load_image(tmp_path / "x.png", size=(4, 6), grayscale=True).shape == (1, 4, 6)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png", size=(9, 13)), COLOUR)
    with pytest.raises(ValueError, match="size must be at least 1"):
        load_image(tmp_path / "x.png", size=0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif"])
def test_a_truncated_picture_is_an_error_or_whole(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    save_image(path, GRAY)
    content, whole = path.read_bytes(), load_image(path)
    cut = tmp_path / f"cut.{suffix}"
    errors = []
    lengths = range(0, len(content), len(content) // 50)
    for length in lengths:
        cut.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(load_image(cut), whole)
        except DataError as error:
            errors.append(str(error))
    assert all(f"cut.{suffix}" in text and "\n" not in text for text in errors)
    # A cut end mark may go unnoticed, pixels may not.
    assert len(errors) >= sum(length < len(content) - 30 for length in lengths)


def test_what_is_no_picture(tmp_path):
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(DataError, match="not a picture"):
        load_image(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(DataError, match="float pixels"):
        load_image(tmp_path / "f.tiff")
    Image.fromarray(np.full((2, 2), -5, np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(DataError, match="from -5 to -5"):
        load_image(tmp_path / "i.tiff")


@pytest.mark.parametrize(
    ("array", "name", "words"),
    [
        (np.zeros((2, 4, 4), np.uint8), "x.png", "is no picture"),
        (np.zeros((0, 4), np.uint8), "x.png", "is no picture"),
        (np.full((4, 4), 1.5), "x.png", "from 0 to 1"),
        (np.full((4, 4), np.nan), "x.png", "from 0 to 1"),
        (np.zeros((4, 4), int), "x.png", "int64"),
        (GRAY, "x.docx", "cannot write pictures as .docx"),
        (GRAY, "x", "without suffix"),
    ],
)
def test_what_cannot_be_saved(tmp_path, array, name, words):
    with pytest.raises(ValueError, match=words):
        save_image(tmp_path / name, array)
    assert not list(tmp_path.iterdir())


def test_saving_into_no_folder_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save_image(tmp_path / "none" / "x.png", GRAY)


# ---- transparency and depth --------------------------------------------------------------------


def test_a_transparent_value_of_16_bits_gray():
    content = png(3, 1, 16, 0, [struct.pack(">3H", 0, 65535, 30000)], (b"tRNS", b"\0\0"))
    assert decoded(content).tolist() == [[[255, 255, 117]]]


def test_a_transparent_colour_of_16_bits_must_agree_in_all_of_them():
    row = struct.pack(">9H", 256, 1, 2, 256, 1, 3, 30000, 40000, 65535)
    content = png(3, 1, 16, 2, [row], (b"tRNS", struct.pack(">3H", 256, 1, 2)))
    assert decoded(content).tolist() == [[[255, 1, 117]], [[255, 0, 156]], [[255, 0, 255]]]


@pytest.mark.parametrize(("kind", "channels"), [(4, 1), (6, 3)])
def test_alpha_of_16_bits(kind, channels):
    values = RNG.integers(0, 65536, (5, 4, channels + 1), np.uint16)
    values[0, :, -1], values[1, :, -1] = 0, 65535
    rows = [row.astype(">u2").tobytes() for row in values]
    alpha = values[..., -1:] / 65535
    expected = np.floor((values[..., :-1] * alpha + 65535 * (1 - alpha)) / 257 + 0.5)
    np.testing.assert_array_equal(decoded(png(4, 5, 16, kind, rows)), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(("depth", "row"), [(1, 0b01), (2, 0b00011011), (4, 0x1F)])
@pytest.mark.parametrize("key", [0, 1])
def test_a_transparent_gray_of_few_bits(depth, row, key):
    count = 8 // depth
    values = [row >> (8 - depth * (k + 1)) & 2**depth - 1 for k in range(count)]
    expected = [255 if v == key else v * 255 // (2**depth - 1) for v in values]
    content = png(count, 1, depth, 0, [bytes([row])], (b"tRNS", bytes([0, key])))
    assert decoded(content).tolist() == [[expected]]


# ---- EXIF --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "webp", "jpg", "tiff"])
@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b""])
def test_pixels_are_read_where_exif_is_broken(form, exif, tmp_path):
    image = Image.fromarray(GRAY[0])
    image.save(tmp_path / f"plain.{form}")
    path = tmp_path / f"x.{form}"
    if form == "png":
        content = (tmp_path / "plain.png").read_bytes()
        path.write_bytes(content[:33] + chunk(b"eXIf", exif) + content[33:])
    elif form == "tiff":
        path.write_bytes((tmp_path / "plain.tiff").read_bytes() + exif)
    else:
        image.save(path, exif=exif)
    np.testing.assert_array_equal(load_image(path), load_image(tmp_path / f"plain.{form}"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(GRAY[0]).save(tmp_path / "x.png", exif=exif)
    turned = [
        GRAY[0], GRAY[0][:, ::-1], GRAY[0][::-1, ::-1], GRAY[0][::-1],
        GRAY[0].T, np.rot90(GRAY[0], -1), GRAY[0][::-1, ::-1].T, np.rot90(GRAY[0]),
    ]  # fmt: skip
    np.testing.assert_array_equal(load_image(tmp_path / "x.png")[0], turned[orientation - 1])


# ---- one size ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 9, 27), (3, 40, 11), (1, 16, 16), (1, 6, 5)])
@pytest.mark.parametrize("size", [(8, 12), (16, 16), 7])
@pytest.mark.parametrize("how", picture.RESIZE)
def test_ways_to_resize_by_definition(tmp_path, shape, size, how):
    pixels = RNG.integers(0, 256, shape, np.uint8)
    save_image(tmp_path / "x.png", pixels)
    found = load_image(tmp_path / "x.png", size=size, resize=how)
    expected = resized(pixels, *((size, size) if isinstance(size, int) else size), how)
    assert (np.abs(found - expected) <= 1.01).all()  # Pillow rounds after each direction


def test_an_unknown_way_to_resize():
    with pytest.raises(ValueError, match="unknown way to resize 'crop'"):
        decoded(b"", size=4, resize="crop")


def test_longest_shrinks_and_keeps_the_aspect_ratio(tmp_path):
    save_image(tmp_path / "x.png", np.repeat(np.repeat(GRAY[:, :, :12], 2, 1), 2, 2))
    assert load_image(tmp_path / "x.png", longest=40).shape == (1, 18, 24)
    np.testing.assert_array_equal(load_image(tmp_path / "x.png", longest=12), GRAY[:, :, :12])


# ---- large pictures ----------------------------------------------------------------------------


def header_only(width, height, kind=2):
    return png(width, height, 8, kind, [])


@pytest.mark.parametrize(("width", "height"), [(13_000, 13_000), (60_000, 60_000), (2**31 - 1, 9)])
def test_a_picture_that_is_too_large_is_refused_by_its_header(monkeypatch, width, height):
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # nothing is decoded
    with pytest.raises(DataError, match=r"x: too large.* 512 MB") as caught:
        decoded(header_only(width, height), size=32)
    assert "\n" not in str(caught.value)


def large_jpeg(width, height, **options):
    content = io.BytesIO()
    with Image.new("L", (width, height), 77) as image:
        image.save(content, "JPEG", **options)
    return content.getvalue()


def test_a_phones_large_jpeg_is_shrunk_while_it_is_decoded(monkeypatch):
    seen = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: seen.append(self.size) or load(self)
    )
    assert (decoded(large_jpeg(8000, 6000), size=32, resize="fit")[0, 4:28] == 77).all()
    assert seen[0] == (1000, 750)


def test_a_jpeg_beyond_pillows_own_limit(monkeypatch):
    content = large_jpeg(1200, 900)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    monkeypatch.setattr(picture, "LARGE_JPEG", 400_000)
    monkeypatch.setattr(picture, "MAX_DECODED", 800_000)
    assert (decoded(content, size=32) == 77).all()
    with pytest.raises(DataError, match="too large, 1200x900 pixels"):
        decoded(content)
    with pytest.raises(DataError, match="too large"):
        decoded(header_only(1200, 900), size=32)


def test_a_progressive_jpeg_counts_its_coefficients(monkeypatch):
    monkeypatch.setattr(picture, "LARGE_JPEG", 1000)
    monkeypatch.setattr(picture, "MAX_COEFFICIENTS", 500_000)
    assert decoded(large_jpeg(500, 500, progressive=True), size=8).shape == (1, 8, 8)
    with pytest.raises(DataError, match="too large"):
        decoded(large_jpeg(600, 500, progressive=True), size=8)


def test_what_libtiff_says_never_reaches_the_terminal(capfd):
    """It writes to the process's standard error, past Python."""
    content = io.BytesIO()
    Image.fromarray(GRAY[0]).save(content, "TIFF", compression="tiff_lzw")
    entry = content.getvalue().index(struct.pack("<HHI", 278, 3, 1))  # RowsPerStrip: a count of 1
    damaged = bytearray(content.getvalue())
    damaged[entry + 4] = 3
    with pytest.raises(DataError, match="damaged or unreadable"):
        decoded(bytes(damaged))
    assert capfd.readouterr().err == ""
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"
