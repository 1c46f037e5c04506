"""IDX files: every dtype, gzip or not by content, and every way a file can be wrong."""

import gzip
import struct

import numpy as np
import pytest

from gpuconv.data import DataError, idx, read_idx, write_idx

DTYPES = [np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64]
IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def one_line(caught: pytest.ExceptionInfo, *words: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def raw(array: np.ndarray, path) -> bytes:
    write_idx(path, array)
    return path.read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["a.idx", "a.gz"])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (0, 5), (2, 3, 4, 5)])
def test_what_was_written_is_read_back(tmp_path, dtype, name, shape):
    array = (np.random.default_rng(1).standard_normal(shape) * 100).astype(dtype)
    write_idx(tmp_path / name, array)
    back = read_idx(tmp_path / name)
    assert back.dtype == dtype
    assert back.dtype.isnative
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)


def test_bytes_are_those_of_the_format(tmp_path):
    expected = struct.pack(">BBBB2I3h3h", 0, 0, 0x0B, 2, 2, 3, 1, -2, 3, 4, 5, -32768)
    assert raw(np.array([[1, -2, 3], [4, 5, -32768]], np.int16), tmp_path / "x") == expected


def test_content_not_name_says_what_is_gzip(tmp_path):
    plain = raw(IMAGES, tmp_path / "plain")
    (tmp_path / "plain.gz").write_bytes(plain)
    (tmp_path / "packed").write_bytes(gzip.compress(plain[:9]) + gzip.compress(plain[9:]))
    for name in ("plain.gz", "packed"):
        np.testing.assert_array_equal(read_idx(tmp_path / name), IMAGES)


def test_strided_and_big_endian_arrays(tmp_path):
    array = np.arange(24, dtype=">i4").reshape(4, 6)[::-1, ::2]
    write_idx(tmp_path / "x", array)
    np.testing.assert_array_equal(read_idx(tmp_path / "x"), array)
    write_idx(tmp_path / "a.gz", IMAGES)
    write_idx(tmp_path / "b.gz", IMAGES)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "cut"
    for content in (raw(IMAGES, tmp_path / "x"), raw(IMAGES, tmp_path / "x.gz")):
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(DataError) as caught:
                read_idx(path)
            one_line(caught, "cut")


@pytest.mark.parametrize(("name", "words"), [("x", "after"), ("x.gz", "Not a gzipped file")])
def test_bytes_after_the_data_are_refused(tmp_path, name, words):
    path = tmp_path / name
    path.write_bytes(raw(IMAGES, path) + b"!")
    with pytest.raises(DataError) as caught:
        read_idx(path)
    one_line(caught, name, words)


def test_damaged_gzip_is_an_error_at_every_byte(tmp_path):
    content = raw(IMAGES, tmp_path / "x.gz")
    path = tmp_path / "damaged"
    errors = []
    for at in range(2, len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            same = read_idx(path)
        except DataError as error:
            errors.append(str(error))
        else:  # a few header bytes (time, system) mean nothing for the data
            assert at < 10
            np.testing.assert_array_equal(same, IMAGES)
    assert not any("\n" in text for text in errors)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "too short"),
        (b"\x89PNG\r\n\x1a\n", "89 50 4e 47"),
        (b"\x00\x00\x07\x01\x00\x00\x00\x00", "not an IDX file"),
        (b"\x00\x01\x08\x01\x00\x00\x00\x00", "not an IDX file"),
        (b"\x00\x00\x08\x00", "0 dimensions"),
        (b"\x00\x00\x08\xff" + b"\x00" * 1020, "255 dimensions"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated"),
        (struct.pack(">HBB3I", 0, 14, 3, 0, 2**32 - 1, 2**32 - 1), "impossible shape"),
    ],
)
def test_wrong_files(tmp_path, content, words):
    (tmp_path / "bad.idx").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(tmp_path / "bad.idx")
    one_line(caught, "bad.idx", words)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        read_idx(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_idx(tmp_path / "none" / "x", IMAGES)


@pytest.mark.parametrize("array", [np.zeros(3, np.int64), np.zeros(3, bool), np.uint8(3)])
def test_what_idx_cannot_hold(tmp_path, array):
    with pytest.raises(ValueError, match="IDX"):
        write_idx(tmp_path / "x", array)
    assert not list(tmp_path.iterdir())


def test_a_small_file_that_unpacks_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MAX_UNPACKED", 1 << 20)
    write_idx(tmp_path / "zeros.gz", np.zeros(3 << 20, np.uint8))
    unpacked = []
    read = gzip.GzipFile.read

    def counted(self, size):
        piece = read(self, size)
        unpacked.append(len(piece))
        return piece

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    with pytest.raises(DataError) as caught:
        read_idx(tmp_path / "zeros.gz")
    one_line(caught, "zeros.gz", "more than 1 MB once decompressed")
    assert sum(unpacked) <= 1 << 20  # its header says it
    noise = np.random.default_rng(0).integers(0, 256, 2 << 20, np.uint8)
    write_idx(tmp_path / "noise.gz", noise)
    np.testing.assert_array_equal(read_idx(tmp_path / "noise.gz"), noise)
