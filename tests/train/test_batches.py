"""What a Trainer takes as data: any iterable of (x, labels); what it refuses, in a line."""

import json

import numpy as np
import pytest

from gpuconv import Trainer, data, nn, optim

RNG = np.random.default_rng(2)
IMAGES = RNG.random((24, 1, 8, 8), np.float32)
LABELS = (IMAGES.mean((1, 2, 3)) > 0.5).astype(np.int64)
BATCHES = [(IMAGES[i : i + 8], LABELS[i : i + 8]) for i in range(0, 24, 8)]


def trainer(**options):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    nn.init.initialize(network, seed=0)
    optimizer = optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    return Trainer(network, "cross_entropy", optimizer, progress=False, **options)


def state_after(train, validation=None, epochs=2):
    run = trainer()
    run.fit(train, validation, epochs=epochs)
    return {name: array.tobytes() for name, array in run.model.state_dict().items()}


class Indexed:
    """A sequence without __iter__ that knows its length and raises no IndexError."""

    def __len__(self):
        return len(BATCHES)

    def __getitem__(self, k):
        return BATCHES[k % 3]


class Unsized:
    def __iter__(self):
        return iter(BATCHES)


@pytest.mark.parametrize("source", [tuple(BATCHES), Indexed(), Unsized()])
def test_every_iterable_gives_the_bits_of_a_list(source):
    assert state_after(source, source) == state_after(BATCHES)
    run = trainer()
    assert run.evaluate(source)["images"] == 24
    assert run.evaluate(iter(BATCHES)) | {"confusion": 0} == run.evaluate(BATCHES) | {
        "confusion": 0
    }


@pytest.mark.torch
def test_pytorchs_data_loaders(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.utils.data import DataLoader, IterableDataset, TensorDataset

    pairs = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    loader = DataLoader(pairs, batch_size=8)
    expected = state_after(BATCHES)
    assert state_after(loader, loader) == expected
    assert state_after([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in BATCHES]) == expected

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(pairs)

    assert state_after(DataLoader(Stream(), batch_size=8)) == expected
    run = trainer(out=tmp_path / "run")
    run.fit(loader, epochs=1)
    run.fit(loader, epochs=2, resume=True)
    assert {n: a.tobytes() for n, a in run.model.state_dict().items()} == expected
    probabilities = run.predict(loader)
    np.testing.assert_array_equal(probabilities, run.predict(torch.from_numpy(IMAGES), 8))
    with pytest.raises(ValueError, match="predict: the loader shuffles"):
        run.predict(DataLoader(pairs, batch_size=8, shuffle=True))
    shuffled = DataLoader(pairs, batch_size=5, shuffle=True, drop_last=True)
    assert len(json.loads(json.dumps(run.fit(shuffled, epochs=1)))) == 1


REFUSED = [
    (lambda: iter(BATCHES), TypeError, "fit: train: an iterator ends after one pass; give a list"),
    (lambda: 7, TypeError, "fit: train: expected a data.Loader or an iterable .* got int"),
    (lambda: (IMAGES, LABELS), TypeError, r"expected .x, labels. pairs, got arrays: data\.Loader"),
    (lambda: [{"x": 1}], TypeError, r"a batch must be .x, labels., got a dict"),
    (lambda: [(1, 2, 3)], TypeError, r"a batch must be .x, labels., got a tuple of 3"),
    (lambda: [(IMAGES[0], LABELS[0])], ValueError, r"are one example, .*data\.from_pairs"),
    (
        lambda: [(x.transpose(0, 2, 3, 1), y) for x, y in BATCHES],
        ValueError,
        r"images of shape \(8, 8, 8, 1\) are channels last .NHWC., expected .N, C, H, W.: x\.tran",
    ),
    (lambda: [(x * 255, y) for x, y in BATCHES], ValueError, "images from 0 to 255, expected 0 to"),
    (lambda: [], ValueError, "fit: the training set has no batches"),
]


@pytest.mark.parametrize(("make", "error", "line"), REFUSED)
def test_what_would_be_taken_wrong_is_refused_in_a_line(make, error, line):
    with pytest.raises(error, match=line) as refused:
        trainer().fit(make())
    assert "\n" not in str(refused.value)


def test_images_are_compared_with_what_the_network_reads():
    features = RNG.random((4, 8, 5, 1), np.float32)  # 8 channels, as the first layer expects
    network = nn.Sequential(nn.Conv2d(8, 2, (2, 1)), nn.Flatten(), nn.Linear(8, 2))
    run = Trainer(network, "cross_entropy", optim.SGD(network.parameters(), 0.1), progress=False)
    run.fit([(features, LABELS[:4])])
    standardised = [((x - 0.5) * 200, y) for x, y in BATCHES]  # below 0 too
    trainer().fit(standardised)
    with pytest.raises(ValueError, match="predict: images from 0 to 255"):
        trainer().predict(IMAGES * 255)


def test_pairs_become_a_data_set():
    pixels = (IMAGES * 255).astype(np.uint8)
    pairs = list(zip(pixels, LABELS, strict=True))
    for given in (pairs, iter(pairs), [(x[0], int(y)) for x, y in pairs]):
        found = data.from_pairs(given)
        np.testing.assert_array_equal(found.images, pixels)
        np.testing.assert_array_equal(found.labels, LABELS)
    loader = data.Loader(found, batch_size=8, shuffle=False)
    assert state_after(loader) == state_after(list(loader))


def test_pillows_pictures_and_classes():
    from PIL import Image

    class Pictures:
        classes = ("a", "b")

        def __len__(self):
            return 3

        def __getitem__(self, k):
            return Image.fromarray(RNG.integers(0, 256, (6, 7, 3), np.uint8)), k % 2

    found = data.from_pairs(Pictures())
    assert found.image_shape == (3, 6, 7)
    assert found.classes == ("a", "b")


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        ([], "there are no pairs"),
        ([IMAGES[0]], r"example 0 is a ndarray, expected .image, label."),
        ([(IMAGES[0], LABELS)], r"example 0 has a label of int64 with shape \(24,\)"),
        ([(IMAGES[0], 0.5)], "example 0 has a label of float64"),
        ([(IMAGES[0], 0), (IMAGES[0, :, 1:], 1)], "image 1 is float32 of .1, 7, 8., the first is"),
        ([(IMAGES[0].transpose(1, 2, 0), 0)], r"channels last .NHWC., .* images\.transpose"),
        ([(IMAGES[0] * 255, 0)], "floats from 0 to 255, expected uint8, or floats from 0 to 1"),
    ],
)
def test_pairs_that_are_none_are_refused(pairs, line):
    with pytest.raises(data.DataError, match=line):
        data.from_pairs(pairs)
