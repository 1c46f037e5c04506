"""NumPy's files and CIFAR's: read by name and path, or refused in a line; never unpickled."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from gpuconv import data
from gpuconv.cli.main import main
from gpuconv.data import array_files
from gpuconv.errors import DataError

RNG = np.random.default_rng(4)
PIXELS = RNG.integers(0, 256, (20, 3, 6, 7), np.uint8)
LABELS = np.arange(20) % 4


def loaded(path, split="train"):
    found = data.load(path, split)
    return found.images, found.labels


# ---- .npz and .npy -------------------------------------------------------------------------------

NAMES = [
    ("x_train", "y_train", "x_test", "y_test"),  # Keras
    ("train_images", "train_labels", "val_images", "val_labels"),  # MedMNIST
    ("XTrain", "YTrain", "XTest", "YTest"),
    ("training_data", "training_targets", "eval_data", "eval_targets"),
]


@pytest.mark.parametrize("names", NAMES)
def test_both_splits_of_an_npz_and_of_npy_files(tmp_path, names):
    arrays = dict(zip(names, (PIXELS[:15], LABELS[:15], PIXELS[15:], LABELS[15:]), strict=True))
    np.savez_compressed(tmp_path / "set.npz", **arrays)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    for path in (tmp_path / "set.npz", folder):
        for split, part in (("train", slice(15)), ("test", slice(15, None))):
            images, labels = loaded(path, split)
            np.testing.assert_array_equal(images, PIXELS[part])
            np.testing.assert_array_equal(labels, LABELS[part])
    images, labels = loaded(folder / f"{names[2]}.npy")  # the file says which part
    np.testing.assert_array_equal(images, PIXELS[15:])


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1"), ("X", "y")])
def test_a_set_in_one_part_is_split(tmp_path, names):
    np.savez(tmp_path / "set.npz", **dict(zip(names, (PIXELS, LABELS), strict=True)))
    (train, train_labels), (test, test_labels) = (
        loaded(tmp_path / "set.npz", split) for split in ("train", "test")
    )
    assert (len(train), len(test)) == (16, 4)
    assert sorted(test_labels) == [0, 1, 2, 3]
    both = np.concatenate([train, test]).reshape(20, -1)
    assert sorted(map(bytes, both)) == sorted(map(bytes, PIXELS.reshape(20, -1)))
    assert len(train_labels) == 16


def test_test_comes_before_val_and_classes_have_names(tmp_path):
    arrays = {
        f"{word}_{role}": array[k::3]
        for k, word in enumerate(("train", "val", "test"))
        for role, array in (("images", PIXELS), ("labels", LABELS))
    }
    np.savez(tmp_path / "set.npz", **arrays, class_names=np.array(["a", "b", "ü", "d"]))
    found = data.load(tmp_path / "set.npz", "test")
    np.testing.assert_array_equal(found.images, PIXELS[2::3])
    assert found.classes == ("a", "b", "ü", "d")


SAME = {
    "channels last": (PIXELS.transpose(0, 2, 3, 1), LABELS),
    "whole floats": (PIXELS.astype(np.float64), LABELS),
    "big-endian labels": (PIXELS, LABELS.astype(">i4")),
    "labels in a column": (PIXELS, LABELS[:, None]),
    "one-hot labels": (PIXELS, np.eye(4)[LABELS]),
    "Fortran's order": (np.asfortranarray(PIXELS), LABELS),
}


@pytest.mark.parametrize("form", SAME)
def test_other_layouts_and_types_are_recognised(tmp_path, form):
    images, labels = SAME[form]
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels)
    found = loaded(tmp_path / "set.npz")
    assert found[0].dtype == np.uint8
    np.testing.assert_array_equal(found[0], PIXELS)
    np.testing.assert_array_equal(found[1], LABELS)


def save(**arrays):
    def write(path):
        np.savez(path, **arrays)

    return write


def claims(path):
    header = io.BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 1, 8, 8)}
    np.lib.format.write_array_header_1_0(header, about)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x_train.npy", header.getvalue())
        archive.writestr("y_train.npy", b"")


REFUSED = [
    (save(x_train=PIXELS), FileNotFoundError, "no array is known as the labels of the split"),
    (save(a=PIXELS, b=LABELS), FileNotFoundError, "expected names such as x_train .* found none"),
    (save(x_test=PIXELS, y_test=LABELS), FileNotFoundError, "images of the split 'train'"),
    (save(x=PIXELS, images=PIXELS, y=LABELS), DataError, "both x and images may be the images"),
    (save(x_train=PIXELS / 255 + 90, y_train=LABELS), DataError, "floats from 0 to 255"),
    (save(x_train=PIXELS.astype(int), y_train=LABELS), DataError, r"images\.astype\(np\.uint8\)"),
    (save(x_train=PIXELS, y_train=LABELS / 2), DataError, "labels of float64 with shape"),
    (save(x_train=PIXELS[:3], y_train=LABELS), DataError, "3 images but 20 labels"),
    (
        save(x_train=np.array([os.getcwd, 1], object), y_train=LABELS),
        DataError,
        "x_train cannot be read: Object arrays cannot be loaded",
    ),
    (claims, DataError, "x_train cannot be read: more than 512 MB once decompressed"),
    (lambda path: path.write_bytes(b"PK\3\4" + bytes(90)), DataError, "no .npz file that can be r"),
    (lambda path: path.write_bytes(b""), DataError, "no .npz file that can be read"),
]


@pytest.mark.parametrize(("write", "error", "line"), REFUSED)
def test_npz_files_that_are_refused(tmp_path, write, error, line, capsys):
    path = tmp_path / "set.npz"
    write(path)
    with pytest.raises(error, match=line) as refused:
        data.load(path)
    assert "\n" not in str(refused.value)
    assert main(["train", "--data", str(path), "--epochs", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_expands_too_far_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(array_files, "MAX_UNPACKED", 1 << 20)
    path = tmp_path / "set.npz"
    np.savez_compressed(path, x_train=np.zeros((5000, 1, 16, 16), np.uint8), y_train=LABELS)
    with pytest.raises(DataError, match="x_train cannot be read: more than 1 MB once decompressed"):
        data.load(path)
    np.savez(path, x_train=np.zeros((5000, 1, 16, 16), np.uint8), y_train=np.arange(5000))
    assert len(data.load(path)) == 5000  # as large as its file


def test_npy_files_that_are_refused(tmp_path):
    np.save(tmp_path / "images.npy", PIXELS)
    with pytest.raises(FileNotFoundError, match="known as the labels"):
        data.load(tmp_path)
    whole = (tmp_path / "images.npy").read_bytes()
    np.save(tmp_path / "labels.npy", LABELS)
    for content in (whole[:-1], b"", pickle.dumps(PIXELS), whole[:60]):
        (tmp_path / "images.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"no \.npy file that can be read"):
            data.load(tmp_path)
    (tmp_path / "set.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="an archive; unpack it"):
        data.load(tmp_path / "set.tar.gz")


# ---- CIFAR ---------------------------------------------------------------------------------------

IMAGES = RNG.integers(0, 256, (12, 3, 32, 32), np.uint8)


def text(value):
    return b"U" + struct.pack("<B", len(value)) + value.encode()


def ints(values):
    return b"](" + b"".join(b"K" + struct.pack("<B", value) for value in values) + b"e"


def python2(labels_key, labels, pixels):
    """A batch as Python 2's cPickle wrote it, opcode by opcode, of protocol 2."""
    content = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    )
    kind = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN"
    kind += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"(K\x01M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86" + kind
    array += b"\x89T" + struct.pack("<I", len(content)) + content + b"tb"
    items = text("batch_label") + text("testing") + text(labels_key) + ints(labels)
    return b"\x80\x02}(" + items + text("data") + array + b"u."


def write_cifar(folder, form):
    labels = (np.arange(12) % 10).tolist()
    fine = [7 * label for label in labels]
    ten, python = form.startswith("10 "), "python" in form
    folder.mkdir(parents=True)
    names = (
        ["train", "test"] if not ten else [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    )
    for k, name in enumerate(names):
        chosen = slice(2 * k, 2 * k + 2) if ten else slice(6 * k, 6 * k + 6)
        x, y, f = IMAGES[chosen], labels[chosen], fine[chosen]
        if python:
            content = python2(
                "labels" if ten else "fine_labels", y if ten else f, x.reshape(len(x), -1)
            )
            (folder / name).write_bytes(content)
        else:
            heads = [bytes([a]) if ten else bytes([a, b]) for a, b in zip(y, f, strict=True)]
            records = (head + image.tobytes() for head, image in zip(heads, x, strict=True))
            (folder / f"{name}.bin").write_bytes(b"".join(records))
    return labels if ten else fine


FORMS = ("10 python", "10 binary", "100 python", "100 binary")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("inside", [False, True])
def test_cifar(tmp_path, form, inside):
    published = dict(
        zip(
            FORMS,
            ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary"),
            strict=True,
        )
    )
    place = tmp_path / published[form] if inside else tmp_path / "mine"
    labels = write_cifar(place, form)
    cut = 6 if "100" in form else 10
    for split, part in (("train", slice(cut)), ("test", slice(cut, None))):
        found = data.load(tmp_path if inside else place, split)
        np.testing.assert_array_equal(found.images, IMAGES[part])
        np.testing.assert_array_equal(found.labels, labels[part])
        assert found.classes[1] == ("1" if "100" in form else "automobile")


def test_names_of_the_classes_are_read(tmp_path):
    names = [f"name {k}" for k in range(10)]
    write_cifar(tmp_path / "a", "10 python")
    (tmp_path / "a" / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 2))
    assert data.load(tmp_path / "a").classes == tuple(names)
    write_cifar(tmp_path / "b", "100 binary")
    (tmp_path / "b" / "fine_label_names.txt").write_text("\n".join(f"n{k}" for k in range(100)))
    assert data.load(tmp_path / "b").classes[99] == "n99"


@pytest.mark.parametrize("protocol", [2, 4])
def test_batches_that_python_3_pickled(tmp_path, protocol):
    write_cifar(tmp_path / "a", "10 python")
    batch = {b"labels": [3, 4], b"data": IMAGES[:2].reshape(2, -1)}
    (tmp_path / "a" / "test_batch").write_bytes(pickle.dumps(batch, protocol))
    images, labels = loaded(tmp_path / "a", "test")
    np.testing.assert_array_equal(images, IMAGES[:2])
    assert labels.tolist() == [3, 4]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_no_pickle_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "a", "10 python")
    path = tmp_path / "a" / "test_batch"
    for content in (
        pickle.dumps({"data": Evil(), "labels": [1]}),
        pickle.dumps(np.array([Evil()], object)),
        b"cos\nmkdir\n(S'ran'\ntR.",
        b"\x80\x02cbuiltins\neval\nU\x01" + b"1\x85R.",
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"it names \w+\.\w+, which is not read"):
            data.load(tmp_path / "a", "test")
    assert not (tmp_path / "ran").exists()


def test_damaged_batches_are_refused(tmp_path):
    write_cifar(tmp_path / "a", "10 python")
    path = tmp_path / "a" / "test_batch"
    whole = path.read_bytes()
    for content, line in (
        (whole[:-500], "no file of CIFAR that can be read"),
        (b"", "no file of CIFAR that can be read"),
        (pickle.dumps([1]), "holds a list, expected CIFAR's dict"),
        (pickle.dumps({"labels": [1]}), "has no data and labels"),
        (python2("labels", [1, 2, 3], IMAGES[:2]), "bytes of pixels for 3 labels"),
        (python2("labels", [1, 10], IMAGES[:2]), "a label is no integer below 10"),
        (
            python2("labels", [1, 2], IMAGES[:2]).replace(b"U\x02u1", b"U\x02f8"),
            "no array of bytes",
        ),
        (b"\x80\x02" + b"r\xff\xff\xff\xff" + b".", "no file of CIFAR that can be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=line):
            data.load(tmp_path / "a", "test")
    (tmp_path / "a" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match="data_batch_3 is missing"):
        data.load(tmp_path / "a")
    write_cifar(tmp_path / "b", "100 binary")
    (tmp_path / "b" / "test.bin").write_bytes(bytes(3073))
    with pytest.raises(DataError, match="3,073 bytes, expected records of 3074"):
        data.load(tmp_path / "b", "test")


def test_train_and_evaluate_by_commands(tmp_path, capsys):
    write_cifar(tmp_path / "cifar", "10 binary")
    np.savez(tmp_path / "set.npz", images=PIXELS.transpose(0, 2, 3, 1), labels=LABELS)
    for path, size in ((tmp_path / "cifar", 32), (tmp_path / "set.npz", 32)):
        out = tmp_path / f"run-{path.stem}"
        common = ["--epochs", "1", "--batch", "4", "--device", "cpu", "--out", str(out)]
        assert main(["train", "--data", str(path), "--size", str(size), *common]) == 0
        assert main(["evaluate", str(out / "last.safetensors")]) == 0
        assert "accuracy" in capsys.readouterr().out
