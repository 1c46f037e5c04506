"""Pictures: byte-exact round trips, modes, damage; folders of class folders."""

import numpy as np
import pytest
from PIL import Image

from gpuconv.data import DataError, from_folder, load_image, save_image

RNG = np.random.default_rng(3)
COLOUR = RNG.integers(0, 256, (3, 9, 13), np.uint8)
GRAY = RNG.integers(0, 256, (1, 9, 13), np.uint8)


def put(folder, **classes):
    """A folder of classes; each value is a list of arrays, saved as 0.png, 1.png, ..."""
    for name, pictures in classes.items():
        (folder / name).mkdir(parents=True)
        for index, picture in enumerate(pictures):
            save_image(folder / name / f"{index}.png", picture)
    return folder


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
    for length in range(0, len(content), 3):
        cut.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(load_image(cut), whole)
        except DataError as error:
            errors.append(str(error))
    assert all(f"cut.{suffix}" in text and "\n" not in text for text in errors)
    assert len(errors) > len(content) // 3 - 10  # a cut end mark may go unnoticed, pixels may not


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


def test_a_folder_of_classes(tmp_path):
    put(tmp_path, zebra=[GRAY, GRAY[:, ::-1]], ant=[255 - GRAY])
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "ant" / "notes.txt").write_text("not a picture")
    (tmp_path / "ant" / "deeper").mkdir()
    save_image(tmp_path / "ant" / "deeper" / "0.bmp", GRAY // 2)
    data = from_folder(tmp_path)
    assert data.classes == ("ant", "zebra")
    assert data.name == tmp_path.name
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.images, [255 - GRAY, GRAY // 2, GRAY, GRAY[:, ::-1]])
    assert from_folder(tmp_path, size=(4, 5)).images.shape == (4, 1, 4, 5)


def test_gray_joins_colour(tmp_path):
    data = from_folder(put(tmp_path, a=[GRAY], b=[COLOUR]))
    np.testing.assert_array_equal(data.images, [np.repeat(GRAY, 3, axis=0), COLOUR])
    assert from_folder(tmp_path, grayscale=True).images.shape == (2, 1, 9, 13)


def test_folders_that_will_not_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        from_folder(tmp_path / "none")
    with pytest.raises(DataError, match="no class folders"):
        from_folder(tmp_path)
    put(tmp_path, a=[GRAY], b=[])
    with pytest.raises(DataError, match=r"b: no pictures"):
        from_folder(tmp_path)
    save_image(tmp_path / "b" / "big.png", np.zeros((20, 30), np.uint8))
    with pytest.raises(DataError, match=r"0.png is 9x13 .*big.png is 20x30; give a size"):
        from_folder(tmp_path)
    assert len(from_folder(tmp_path, size=8)) == 2
    (tmp_path / "b" / "big.png").write_bytes((tmp_path / "b" / "big.png").read_bytes()[:45])
    with pytest.raises(DataError, match=r"big.png: damaged"):
        from_folder(tmp_path, size=8)
