"""Dataset: what it refuses, and batches against the definition."""

import numpy as np
import pytest

from gpuconv.data import DataError, Dataset, to_float

RNG = np.random.default_rng(2)
PIXELS = RNG.integers(0, 256, (10, 3, 5, 7), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
DATA = Dataset(PIXELS, LABELS, ("a", "b", "c"), "toy")


def floats(count: int = 3) -> np.ndarray:
    return np.zeros((count, 1, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (PIXELS, LABELS[:9], "10 images but 9 labels"),
        (PIXELS, np.where(np.arange(10) == 4, 3, LABELS), "image 4 has label 3, expected 0 to 2"),
        (PIXELS, LABELS - 1, "image 0 has label -1"),
        (PIXELS[:0], LABELS[:0], "no images"),
        (PIXELS, LABELS.astype(float), "float64"),
        (PIXELS, LABELS[:, None], "expected (10,) integers"),
        (PIXELS.astype(np.int32), LABELS, "int32"),
        (PIXELS[0, 0], LABELS, "(5, 7)"),
        (PIXELS[..., :0], LABELS, "(10, 3, 5, 0)"),
    ],
)
def test_what_a_dataset_refuses(images, labels, words):
    with pytest.raises(DataError) as caught:
        Dataset(images, labels, ("a", "b", "c"), "toy")
    assert str(caught.value).startswith("toy: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1500, 2999])
def test_nan_names_the_first_image(bad, at):
    images = floats(3000)
    images[at:, 0, 1, 1] = bad
    with pytest.raises(DataError, match=f"image {at} holds NaN"):
        Dataset(images, np.zeros(3000, int))


def test_uint8_images_are_not_copied_and_types_are_fixed():
    assert np.shares_memory(DATA.images, PIXELS)
    assert DATA.labels.dtype == np.int64
    assert len(DATA) == 10
    assert DATA.image_shape == (3, 5, 7)
    assert Dataset(floats().astype(np.float64), [0, 0, 4]).images.dtype == np.float32
    flat = Dataset(np.zeros((2, 28, 28), np.uint8), [0, 4])
    assert flat.image_shape == (1, 28, 28)
    assert flat.classes == ("0", "1", "2", "3", "4")


def test_subset_and_split():
    some = DATA.subset([7, 2])
    np.testing.assert_array_equal(some.images, PIXELS[[7, 2]])
    np.testing.assert_array_equal(some.labels, [1, 2])
    assert some.classes == DATA.classes
    assert np.shares_memory(DATA.subset(slice(2, 4)).images, PIXELS)
    with pytest.raises(ValueError, match="no image 10, expected 0 to 9"):
        DATA.subset([1, 10])
    with pytest.raises(ValueError, match="no image -1"):
        DATA.subset([-1])
    with pytest.raises(ValueError, match="list of integers"):
        DATA.subset([0.5])
    with pytest.raises(DataError, match="no images"):
        DATA.subset([])

    numbered = Dataset(np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1), np.zeros(100, int))
    first, rest = numbered.split(0.7, seed=3)
    again, _ = numbered.split(0.7, seed=3)
    other, _ = numbered.split(0.7, seed=4)
    assert (len(first), len(rest)) == (70, 30)
    both = np.concatenate([first.images.ravel(), rest.images.ravel()])
    np.testing.assert_array_equal(np.sort(both), np.arange(100))
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("fraction", [0, 1, -1, 2, 0.01, 0.99, float("nan")])
def test_a_split_with_an_empty_side_is_refused(fraction):
    with pytest.raises(ValueError, match="cannot split 10 images"):
        DATA.split(fraction)


@pytest.mark.parametrize("size", [None, 7, (5, 7), (8, 12), 10])
@pytest.mark.parametrize(
    ("mean", "std"), [(None, None), (0.25, 0.5), ([0.1, 0.2, 0.3], [1, 2, 4]), (None, 0.5)]
)
def test_batch_is_its_definition(size, mean, std):
    chosen = [9, 0, 0, 4]
    rows, columns = (size, size) if isinstance(size, int) else size or (5, 7)
    top, left = (rows - 5) // 2, (columns - 7) // 2
    expected = np.zeros((4, 3, rows, columns))
    expected[:, :, top : top + 5, left : left + 7] = PIXELS[chosen] / 255
    expected -= np.reshape(0 if mean is None else mean, (-1, 1, 1))
    expected /= np.reshape(1 if std is None else std, (-1, 1, 1))
    x = DATA.batch(chosen, size, mean, std)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6)


def test_scaling_is_exact_and_padding_is_black():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    np.testing.assert_array_equal(to_float(ramp).ravel(), expected)
    x = to_float(np.zeros((2, 1, 28, 28), np.uint8), 32, mean=0.1307, std=0.3081)
    assert len(np.unique(x)) == 1  # no frame around a black picture
    exact = RNG.standard_normal((2, 1, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(to_float(exact), exact)


def test_no_images_is_an_empty_batch():
    assert DATA.batch([], size=8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 6}, "size 6x6 is smaller than the images, 5x7"),
        ({"mean": [1, 2]}, "mean has 2 numbers, expected 1 or 3"),
        ({"std": 0}, "std must be positive"),
        ({"std": [1, 1, -1]}, "std must be positive"),
        ({"mean": float("nan")}, "mean must be finite"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        DATA.batch([0], **options)


def test_a_label_that_can_be_no_class():
    images = np.zeros((2, 1, 1, 1), np.uint8)
    with pytest.raises(
        DataError, match="toy: there is a label 2,000,000,000, expected labels below"
    ):
        Dataset(images, np.array([1, 2_000_000_000], np.int32), name="toy")
    assert len(Dataset(images, [0, 99_999]).classes) == 100_000


def test_a_split_takes_its_share_of_every_class():
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    data = Dataset(np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1), labels)
    for seed in range(5):
        first, rest = data.split(0.9, seed)
        assert np.bincount(first.labels).tolist() == [45, 27, 18]
        both = np.concatenate([first.images.ravel(), rest.images.ravel()])
        np.testing.assert_array_equal(np.sort(both), np.arange(100))
    counts = [np.bincount(data.split(0.9, s, stratified=False)[0].labels)[0] for s in range(9)]
    assert len(set(counts)) > 1
    assert data.split(0.9, 0)[0].images.tobytes() == data.split(0.9, 0)[0].images.tobytes()
