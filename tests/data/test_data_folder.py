"""Folders of class folders: what is found in them, splits, limits, bad pictures."""

import warnings

import numpy as np
import pytest

from gpuconv.data import DataError, from_folder, load, save_image
from gpuconv.errors import Notice

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


# ---- what is found -----------------------------------------------------------------------------


def test_hidden_and_foreign_files_are_passed_over(tmp_path):
    put(tmp_path, cat=[GRAY], dog=[GRAY])
    for path in (
        "cat/.ipynb_checkpoints/0.png", "cat/deep/.hidden/0.png", "dog/__MACOSX/0.png",
        "__MACOSX/cat/0.png", "cat/._0.png", "dog/@eaDir/0.png", ".git/0.png",
    ):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        save_image(tmp_path / path, COLOUR)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"no picture")
    data = from_folder(tmp_path)
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.images, [GRAY, GRAY])


def parts(folder, train, test):
    put(folder / train, a=[GRAY], b=[GRAY, COLOUR])
    put(folder / test, a=[255 - COLOUR], b=[COLOUR])
    return folder


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "val"), ("Training", "Validation"),
     ("train", "Dev")],
)  # fmt: skip
def test_parts_are_known_by_their_names(tmp_path, train, test):
    parts(tmp_path, train, test)
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "annotations").mkdir()
    assert len(load(tmp_path, "train")) == 3
    np.testing.assert_array_equal(load(tmp_path, "test").images, [255 - COLOUR, COLOUR])


def test_of_test_and_val_the_first_is_for_testing(tmp_path):
    put(parts(tmp_path, "train", "val") / "test", a=[GRAY, GRAY, GRAY], b=[GRAY])
    assert len(load(tmp_path, "test")) == 4


def test_parts_that_are_not_clear(tmp_path):
    put(parts(tmp_path, "train", "test") / "Train", a=[GRAY], b=[GRAY])
    with pytest.raises(DataError, match="has both Train and train; leave one of them"):
        load(tmp_path, "train")


def test_a_class_may_be_called_train(tmp_path):
    put(tmp_path, train=[GRAY] * 5, plane=[GRAY] * 5)
    assert load(tmp_path, "train").classes == ("plane", "train")


# ---- splits and limits -------------------------------------------------------------------------


def numbered(folder, **counts):
    """Classes with so many pictures, whose pixels tell them apart: 10 times the class, plus n."""
    for k, (name, count) in enumerate(counts.items()):
        put(folder, **{name: [np.full((1, 2, 2), 10 * k + n, np.uint8) for n in range(count)]})
    return folder


def test_every_class_is_in_both_parts(tmp_path):
    numbered(tmp_path, a=2, b=2, c=3, d=9, e=2)
    both = [load(tmp_path, split) for split in ("train", "test")]
    for part in both:
        assert set(part.labels) == {0, 1, 2, 3, 4}
        assert part.classes == ("a", "b", "c", "d", "e")
    assert np.bincount(both[0].labels).tolist() == [1, 1, 2, 7, 1]
    values = np.concatenate([part.images[:, 0, 0, 0] for part in both])
    np.testing.assert_array_equal(
        np.sort(values), [0, 1, 10, 11, 20, 21, 22, *range(30, 39), 40, 41]
    )
    again = load(tmp_path, "test")
    np.testing.assert_array_equal(again.images, both[1].images)


def test_a_class_of_one_picture_is_named(tmp_path):
    numbered(tmp_path, a=1, b=4)
    with pytest.warns(Notice, match="there is one picture of a, which only training sees"):
        assert set(load(tmp_path, "train").labels) == {0, 1}
    with pytest.warns(Notice):
        assert set(load(tmp_path, "test").labels) == {1}
    for file in (tmp_path / "b").glob("[1-9].png"):
        file.unlink()
    with pytest.raises(ValueError, match="cannot split classes of one image each"):
        load(tmp_path, "train")


def test_a_limit_takes_the_classes_in_turn(tmp_path):
    parts(tmp_path, "train", "test")
    numbered(tmp_path / "more" / "train", a=5, b=1, c=5)
    numbered(tmp_path / "more" / "test", a=1, b=1, c=1)
    for limit, expected in ((2, [0, 10]), (3, [0, 10, 20]), (6, [0, 1, 2, 10, 20, 21])):
        found = load(tmp_path / "more", "train", limit=limit)
        assert found.images[:, 0, 0, 0].tolist() == expected
    found = load(tmp_path / "more", "train", limit=6, stratified=False)  # version 0.1
    assert found.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 10]


# ---- bad pictures ------------------------------------------------------------------------------


def test_a_bad_picture_is_named_or_passed_over(tmp_path):
    put(tmp_path, a=[GRAY] * 6, b=[GRAY] * 6)
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    (tmp_path / "b" / "5.png").write_bytes((tmp_path / "b" / "0.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"a/1.png: not a picture.*; skip_bad \(--skip-bad\)"):
        from_folder(tmp_path)
    with pytest.warns(Notice) as warned:
        data = from_folder(tmp_path, skip_bad=True)
    (text,) = [str(one.message) for one in warned]
    assert f"{tmp_path.name}: passed over 2 of 12 pictures: {tmp_path}/a/1.png: not a" in text
    assert f"{tmp_path}/b/5.png: damaged" in text
    assert "\n" not in text
    assert np.bincount(data.labels).tolist() == [5, 5]
    with warnings.catch_warnings(action="error"):
        load(tmp_path, "test", limit=1, skip_bad=True)  # reads no bad one


def test_only_bad_pictures(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="passed over 2 of 2 pictures"):
        from_folder(tmp_path, skip_bad=True)


def test_two_pictures_are_one_for_each_part(tmp_path):
    numbered(tmp_path, a=2)
    for split in ("train", "test"):
        assert len(load(tmp_path, split)) == 1
