"""Pictures: what is drawn where, and what happens without matplotlib."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from gpuconv.viz import Panel, confusion, curves, sheet, weight_panels

HISTORY = [
    {"epoch": 1, "batch": 5, "loss": 9.0, "accuracy": 0.1},
    {"epoch": 1, "loss": 0.5, "accuracy": 0.8, "validation_loss": 0.3, "validation_accuracy": 0.9},
    {"epoch": 2, "loss": 0.2, "accuracy": 0.9, "validation_loss": 0.2, "validation_accuracy": 0.95},
]


def test_curves_from_records_and_from_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    curves(HISTORY, tmp_path / "a.png")
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(one) + "\n" for one in HISTORY))
    curves(tmp_path / "history.jsonl", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (1080, 432)


def test_curves_refuse_what_they_cannot_draw(tmp_path):
    with pytest.raises(ValueError, match="no finished epoch"):
        curves(HISTORY[:1], tmp_path / "a.png")
    right = json.dumps(HISTORY[1]) + "\n"
    for wrong in ("{torn", "[1]", '{"epoch": 2}', json.dumps({**HISTORY[2], "loss": [0.5]}),
                  json.dumps({**HISTORY[2], "accuracy": 10**400}), "[" * 100_000):  # fmt: skip
        (tmp_path / "history.jsonl").write_text(right + wrong)
        with pytest.raises(ValueError, match="not a history of JSON lines: line 2"):
            curves(tmp_path / "history.jsonl", tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_confusion_matrix(tmp_path):
    pytest.importorskip("matplotlib")
    for classes in (["a"], ["cat", "dog", "T-shirt/top"], [str(k) for k in range(31)]):
        n = len(classes)
        confusion(np.eye(n, dtype=np.int64) * 7, classes, tmp_path / f"{n}.png")
        assert Image.open(tmp_path / f"{n}.png").format == "PNG"
    with pytest.raises(ValueError, match="of 2 classes is 2x2"):
        confusion(np.eye(3), ["a", "b"], tmp_path / "c.png")


def test_unwritable_place_is_an_os_error(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        curves(HISTORY, tmp_path / "file" / "a.png")


def test_without_matplotlib_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "gpuconv\[viz\]"'):
        curves(HISTORY, tmp_path / "a.png")


def test_a_broken_matplotlib_keeps_its_own_words(tmp_path, monkeypatch):
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("import no_such_dependency")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"matplotlib \(No module named 'no_such_dependency'\)"):
        curves(HISTORY, tmp_path / "a.png")


def test_sheet_shows_every_picture_magnified_pixel_by_pixel():
    gray = np.uint8([[[0, 255], [60, 120]]])
    color = np.zeros((3, 2, 2), np.uint8)
    color[0] = 200
    made = sheet([Panel("gray", gray), Panel("color", color, ("a note",))], columns=2, size=20)
    assert made.dtype == np.uint8
    assert made.shape[0] == 3
    first = made[:, 12:32, 12:32]
    assert np.array_equal(first, np.broadcast_to(gray.repeat(10, 1).repeat(10, 2), (3, 20, 20)))
    assert ((made[0] == 200) & (made[1] == 0) & (made[2] == 0)).sum() == 400


def test_sheet_refuses_what_is_no_picture():
    with pytest.raises(ValueError, match="at least one"):
        sheet([])
    for pixels in (np.zeros((2, 3, 3), np.uint8), np.zeros((1, 3, 3)), np.zeros((3, 3), np.uint8)):
        with pytest.raises(ValueError, match="x: a sheet's picture must be uint8"):
            sheet([Panel("x", pixels)])
    with pytest.raises(ValueError, match="empty"):
        sheet([Panel("x", np.zeros((1, 0, 3), np.uint8))])


def test_weight_panels():
    weights = np.zeros((2, 1, 1, 3), np.float32)
    weights[0] = [-0.5, 0, 0.5]
    first, second = weight_panels(weights)
    assert first.pixels.tolist() == [[[0, 128, 255]]]
    assert second.pixels.tolist() == [[[128, 128, 128]]]  # all zero: no division by it
    assert len(weight_panels(np.ones((2, 3, 5, 5)))) == 2
    assert len(weight_panels(np.ones((2, 4, 5, 5)))) == 8
    with pytest.raises(ValueError, match=r"\(K, C, R, S\)"):
        weight_panels(np.ones((3, 3)))
