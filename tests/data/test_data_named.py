"""Named sets: MNIST itself, the search order, downloads from a server on this machine."""

import gzip
import hashlib
import http.server
import socket
import threading

import numpy as np
import pytest

from gpuconv.data import DataError, load, named, save_image, write_idx

STEMS = [stem for stems in named._STEMS.values() for stem in stems]
RNG = np.random.default_rng(11)
TOY = {
    STEMS[0]: RNG.integers(0, 256, (12, 4, 4), np.uint8),
    STEMS[1]: (np.arange(12) % 10).astype(np.uint8),
    STEMS[2]: RNG.integers(0, 256, (5, 4, 4), np.uint8),
    STEMS[3]: np.array([9, 8, 7, 1, 0], np.uint8),
}

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def put(folder, form="{}.gz", arrays=TOY):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, array in arrays.items():
        write_idx(folder / form.format(stem), array)
    return folder


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Every place of the search order, empty, and the toy set under Fashion-MNIST's name."""
    put(tmp_path / "source", "{}")
    sums = {
        stem: hashlib.sha256((tmp_path / "source" / stem).read_bytes()).hexdigest()
        for stem in STEMS
    }
    monkeypatch.setitem(named.SHA256, "fashion-mnist", sums)
    monkeypatch.setitem(named.MIRRORS, "fashion-mnist", (f"http://127.0.0.1:{free_port()}/",))
    monkeypatch.setattr(named, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(named, "EMBEDDED", tmp_path / "embedded")
    monkeypatch.setenv("GPUCONV_DATA", str(tmp_path / "asked"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """Answers GET with `files[name]`, else 404; remembers what was asked."""

    def __init__(self):
        self.files, self.asked, self.cut = {}, [], 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path.strip("/"))
                content = outer.files.get(outer.asked[-1])
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content) + outer.cut))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(places, monkeypatch):
    running = Server()
    for stem in STEMS:
        running.files[f"{stem}.gz"] = gzip.compress((places / "source" / stem).read_bytes())
    monkeypatch.setitem(named.MIRRORS, "fashion-mnist", (running.url,))
    yield running
    running.http.shutdown()
    running.http.server_close()


def test_mnist_is_the_published_one(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GPUCONV_DATA", raising=False)
    train, test = load("mnist"), load("mnist", "test")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.images.dtype == np.uint8
    assert train.classes == tuple("0123456789")
    assert np.bincount(train.labels).tolist() == TRAIN_COUNTS
    assert np.bincount(test.labels).tolist() == TEST_COUNTS
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    # ba89... is the raw train file's: header and pixels
    header = bytes.fromhex("00000803 0000ea60 0000001c 0000001c".replace(" ", ""))
    digest = hashlib.sha256(header + train.images.tobytes()).hexdigest()
    assert digest == "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    share = np.bincount(train.images.ravel(), minlength=256) / train.images.size
    mean = share @ np.arange(256) / 255
    assert mean == pytest.approx(0.1307, abs=5e-5)
    assert (share @ (np.arange(256) / 255 - mean) ** 2) ** 0.5 == pytest.approx(0.3081, abs=5e-5)


def test_the_attribution_lies_beside_the_files():
    text = (named.EMBEDDED / "mnist" / "ATTRIBUTION.md").read_text()
    assert all(digest in text for digest in named.SHA256["mnist"].values())
    assert "Attribution-ShareAlike 3.0" in text


def test_fashion_mnist_where_the_system_has_it(monkeypatch, tmp_path):
    if not (named.SYSTEM / "fashion-mnist").is_dir():
        pytest.skip("the package dataset-fashion-mnist is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = load("fashion-mnist", "test")
    assert np.bincount(data.labels).tolist() == [1000] * 10
    assert data.classes[9] == "Ankle boot"


@pytest.mark.parametrize("place", ["asked", "cache/gpuconv", "system", "embedded"])
def test_each_place_is_searched_in_order(places, place):
    order = ["asked", "cache/gpuconv", "system", "embedded"]
    for later in order[order.index(place) :]:
        put(places / later / "fashion-mnist")
    for after in order[order.index(place) + 1 :]:  # would be an error if it were read
        (places / after / "fashion-mnist" / f"{STEMS[2]}.gz").write_bytes(b"wrong")
    data = load("fashion-mnist", "test")
    np.testing.assert_array_equal(data.images[:, 0], TOY[STEMS[2]])
    np.testing.assert_array_equal(data.labels, TOY[STEMS[3]])
    assert data.name == "fashion-mnist test"


def test_a_given_root_is_the_only_place(places):
    put(places / "asked" / "fashion-mnist")
    put(places / "mine")
    put(places / "above" / "fashion-mnist", "{}")
    for root in ("mine", "above"):
        assert len(load("fashion-mnist", root=places / root)) == 12
    with pytest.raises(FileNotFoundError, match="put them there, or leave out root"):
        load("fashion-mnist", root=places / "none")


def test_a_changed_file_is_an_error(places):
    changed = {**TOY, STEMS[3]: TOY[STEMS[3]] // 2}
    put(places / "asked" / "fashion-mnist", arrays=changed)
    assert len(load("fashion-mnist", "train")) == 12
    with pytest.raises(DataError, match="not the published fashion-mnist file: sha256") as caught:
        load("fashion-mnist", "test")
    assert f"{STEMS[3]}.gz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_is_kept(places, server):
    data = load("fashion-mnist", "test")
    np.testing.assert_array_equal(data.images[:, 0], TOY[STEMS[2]])
    assert server.asked == [f"{stem}.gz" for stem in STEMS[2:]]
    kept = sorted(file.name for file in (places / "cache/gpuconv/fashion-mnist").iterdir())
    assert kept == sorted(server.asked)
    load("fashion-mnist", "test")
    assert len(server.asked) == 2


def test_the_next_mirror_is_asked(places, server, monkeypatch):
    dead = f"http://127.0.0.1:{free_port()}/"
    monkeypatch.setitem(named.MIRRORS, "fashion-mnist", (dead, server.url))
    assert len(load("fashion-mnist", "test")) == 5


def test_a_cache_that_cannot_be_written_is_a_warning(places, server):
    (places / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="could not be kept") as warned:
        data = load("fashion-mnist", "test")
    assert len(data) == 5
    assert all("\n" not in str(one.message) for one in warned)


@pytest.mark.parametrize("fault", ["changed", "page", "truncated", "cut", "404", "refused"])
def test_downloads_that_fail(places, server, fault):
    name = f"{STEMS[2]}.gz"
    good = server.files[name]
    if fault == "changed":
        server.files[name] = gzip.compress(b"something else")
    elif fault == "page":
        server.files[name] = b"<html>Log in to this network</html>"
    elif fault == "truncated":
        server.files[name] = good[:-9]
    elif fault == "cut":
        server.cut = 7
    elif fault == "404":
        del server.files[name]
    else:
        server.http.shutdown()
        server.http.server_close()
    words = {
        "changed": "sha256",
        "page": "sha256",
        "truncated": "damaged gzip data",
        "cut": "of",
        "404": "HTTP Error 404: Not Found",
        "refused": "refused",
    }[fault]
    with pytest.raises(OSError, match=words) as caught:
        load("fashion-mnist", "test")
    text = str(caught.value)
    assert "\n" not in text
    assert server.url + name in text  # what was tried
    assert str(places / "cache/gpuconv/fashion-mnist") in text  # and the way out
    assert "GPUCONV_DATA" in text
    assert not list((places / "cache").rglob("*.*"))


@pytest.mark.parametrize(
    ("name", "near"),
    [("mnsit", "mnist"), ("MNIST", "mnist"), ("fashion_mnist", "fashion-mnist"), ("qqq", None)],
)
def test_unknown_names(places, monkeypatch, name, near):
    monkeypatch.chdir(places)
    with pytest.raises(ValueError, match="unknown data set") as caught:
        load(name)
    assert (f"did you mean '{near}'" in str(caught.value)) == (near is not None)
    assert "\n" not in str(caught.value)


def test_unknown_splits_and_paths(places):
    with pytest.raises(ValueError, match="did you mean 'train'"):
        load("mnist", "tarin")
    for path in (places / "none", str(places / "none"), "./none", "none.idx"):
        with pytest.raises(FileNotFoundError, match="no such file or folder"):
            load(path)


@pytest.mark.parametrize("form", ["{}", "{}.gz"])
def test_a_folder_of_idx_files(places, form):
    folder = put(places / "mine", form)
    for split, stem in (("train", STEMS[0]), ("test", STEMS[2])):
        data = load(folder, split)
        np.testing.assert_array_equal(data.images[:, 0], TOY[stem])
        assert data.classes == tuple("0123456789")
        assert data.name == f"mine {split}"


def test_idx_files_that_do_not_fit(places):
    folder = put(places / "mine")
    (folder / f"{STEMS[3]}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"no {STEMS[3]}"):
        load(folder, "test")
    write_idx(folder / f"{STEMS[3]}.gz", TOY[STEMS[3]][:4])
    with pytest.raises(DataError, match="5 images but 4 labels"):
        load(folder, "test")
    write_idx(folder / f"{STEMS[3]}.gz", np.array([0, 1, -1, 2, 3], np.int8))
    with pytest.raises(DataError, match="image 2 has label -1"):
        load(folder, "test")
    write_idx(folder / f"{STEMS[3]}.gz", np.array([0, 1, 2, 3, 2_000_000_000], np.int32))
    with pytest.raises(DataError, match=r"there is a label 2,000,000,000"):
        load(folder, "train")
    bad = np.zeros((5, 4, 4), np.float32)
    bad[3] = np.nan
    write_idx(folder / f"{STEMS[2]}.gz", bad)
    write_idx(folder / f"{STEMS[3]}.gz", TOY[STEMS[3]])
    with pytest.raises(DataError, match="image 3 holds NaN"):
        load(folder, "test")


def test_an_idx_pair_by_its_images(places):
    write_idx(places / "my-images.idx3.gz", TOY[STEMS[2]])
    with pytest.raises(FileNotFoundError, match="labels are not beside it"):
        load(places / "my-images.idx3.gz")
    write_idx(places / "my-labels.idx1.gz", TOY[STEMS[3]])
    np.testing.assert_array_equal(load(places / "my-images.idx3.gz").labels, TOY[STEMS[3]])


def pictures(folder, *classes, count=5):
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = np.full((4, 4), 50 * label + index, np.uint8)
            save_image(folder / name / f"{index}.png", picture)
    return folder


def test_a_folder_of_pictures_is_split_here(places):
    folder = pictures(places / "shapes", "circle", "square")
    train, test = load(folder, "train"), load(folder, "test", size=8)
    assert (len(train), len(test)) == (8, 2)
    assert test.images.shape[2:] == (8, 8)
    values = [*train.images[:, 0, 0, 0], *test.images[:, 0, 0, 0]]
    assert sorted(values) == [0, 1, 2, 3, 4, 50, 51, 52, 53, 54]


def test_a_folder_of_pictures_with_its_own_split(places):
    folder = places / "shapes"
    pictures(folder / "train", "circle", "square")
    with pytest.raises(FileNotFoundError, match="none named test"):
        load(folder, "test")
    pictures(folder / "test", "circle", "square", count=1)
    assert len(load(folder, "train")) == 10
    test = load(folder, "test")
    assert (len(test), test.name, test.classes) == (2, "shapes test", ("circle", "square"))
    pictures(folder / "test", "star", count=1)
    with pytest.raises(DataError, match=r"different classes \(star\)"):
        load(folder, "test")
