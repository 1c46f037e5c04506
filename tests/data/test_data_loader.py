"""Loader and augmentation: pure functions of (seed, epoch, image), so a resumed run is the same."""

import itertools

import numpy as np
import pytest

from gpuconv.data import (
    Affine,
    Compose,
    CounterRNG,
    Dataset,
    HorizontalFlip,
    Loader,
    RandomCrop,
    Shift,
)

RNG = np.random.default_rng(5)
COUNT = 103
DATA = Dataset(RNG.integers(1, 256, (COUNT, 2, 6, 8), np.uint8), np.arange(COUNT) % 7)
FLOATS = Dataset(RNG.random((COUNT, 1, 5, 5), np.float32), np.arange(COUNT) % 7)
ALL = Compose([Shift(2), HorizontalFlip(), RandomCrop(5, padding=1), Affine(15, 0.2)])


def same(left, right) -> None:
    pairs = list(itertools.zip_longest(left, right))
    for (x, labels), (other_x, other_labels) in pairs:
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("augment", [None, ALL])
@pytest.mark.parametrize("data", [DATA, FLOATS])
def test_any_start_continues_the_epoch_bit_for_bit(data, augment, drop_last):
    options = {"seed": 9, "augment": augment, "drop_last": drop_last, "size": 9, "mean": 0.2}
    full = list(Loader(data, 10, **options).batches(3))
    assert len(full) == (10 if drop_last else 11)
    for start in (0, 1, 7, len(full) - 1, len(full)):
        resumed = Loader(data, 10, **options)
        list(itertools.islice(resumed, start))  # what ran before must not matter
        same(full[start:], resumed.batches(3, start))


def test_iterating_goes_from_epoch_to_epoch():
    loader = Loader(DATA, 16, seed=1)
    for epoch in range(3):
        assert loader.epoch == epoch
        same(loader, Loader(DATA, 16, seed=1).batches(epoch))
    list(loader.batches(0))
    assert loader.epoch == 3
    loader.epoch = 1
    same(loader, loader.batches(1))


def test_every_epoch_reads_every_image_once_in_its_own_order():
    loader = Loader(DATA, 16, seed=4)
    orders = [loader.order(epoch) for epoch in range(4)]
    orders += [Loader(DATA, 16, seed=5).order(0)]
    for order in orders:
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(COUNT))
    for left, right in itertools.combinations(orders, 2):
        assert (left == right).mean() < 0.1
    x, labels = zip(*loader.batches(2), strict=True)
    np.testing.assert_array_equal(np.concatenate(x), DATA.batch(orders[2]))
    np.testing.assert_array_equal(np.concatenate(labels), DATA.labels[orders[2]])


def test_shapes_types_and_lengths():
    loader = Loader(DATA, 20, shuffle=False, size=(10, 8))
    batches = list(loader)
    assert [x.shape for x, _ in batches] == [(20, 2, 10, 8)] * 5 + [(3, 2, 10, 8)]
    assert {x.dtype.name for x, _ in batches} == {"float32"}
    assert {labels.dtype.name for _, labels in batches} == {"int64"}
    assert len(loader) == 6
    assert len(Loader(DATA, 20, drop_last=True)) == len(list(Loader(DATA, 20, drop_last=True))) == 5
    assert loader.input_shape == (2, 10, 8)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), DATA.labels)
    same(batches, loader)  # without shuffling the epochs are alike


def splitmix(z: int) -> int:
    """SplitMix64's next number after state `z`, in Python's integers."""
    mask = 2**64 - 1
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [7, 0, -1, 2**64 + 7, 2**63])
def test_random_numbers_by_definition(seed):
    assert splitmix(0) == 0xE220A8397B1DCDAF  # published first output for seed 0
    key = splitmix(splitmix(splitmix(0 ^ 3) ^ (seed % 2**64)) ^ 2)
    for image in (0, 5, 59_999):
        rng = CounterRNG(seed, 2, np.array([image]), stream=3)
        for count in (1, 2, 3):
            state = (splitmix(image ^ key) + count * 0x9E3779B97F4A7C15) % 2**64
            assert rng.bits().tolist() == [splitmix(state)]


def test_the_order_is_the_same_on_every_machine():
    """Checkpoints resume by it: if this changes, old runs do not continue as they began."""
    assert Loader(DATA, 1, seed=7).order(2)[:8].tolist() == [27, 16, 13, 99, 20, 85, 30, 2]


@pytest.mark.parametrize(
    ("batch_size", "words"),
    [
        (0, "at least 1, got 0"),
        (-4, "got -4"),
        (2.5, "got 2.5"),
        (True, "got True"),
    ],
)
def test_batch_sizes_that_cannot_be(batch_size, words):
    data = Dataset(DATA.images, DATA.labels, name="toy")
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        Loader(data, batch_size)
    assert "\n" not in str(caught.value)


def test_a_batch_larger_than_the_set_is_one_batch():
    """PyTorch's meaning: with drop_last there is none."""
    loader = Loader(DATA, COUNT + 1, shuffle=False)
    ((x, labels),) = loader
    assert len(loader) == 1
    np.testing.assert_array_equal(x, DATA.batch(np.arange(COUNT)))
    np.testing.assert_array_equal(labels, DATA.labels)
    for batch_size, batches in ((COUNT + 1, 0), (COUNT, 1), (COUNT - 1, 1)):
        loader = Loader(DATA, batch_size, drop_last=True)
        assert len(loader) == len(list(loader)) == batches


def test_what_does_not_fit_fails_at_once():
    with pytest.raises(ValueError, match="smaller than the images"):
        Loader(DATA, 8, size=4)
    with pytest.raises(ValueError, match="std"):
        Loader(DATA, 8, std=0)
    with pytest.raises(ValueError, match="cannot crop 9x9 from 6x8"):
        Loader(DATA, 8, augment=RandomCrop(9, padding=1))
    for epoch, start in ((0, 14), (0, -1), (-1, 0)):
        with pytest.raises(ValueError, match="there is no batch"):
            Loader(DATA, 8).batches(epoch, start)


def test_random_numbers_are_uniform_and_independent():
    rng = CounterRNG(0, 0, np.arange(100_000))
    first, second = rng.uniform(), rng.uniform()
    other_epoch = CounterRNG(0, 1, np.arange(100_000)).uniform()
    for one in (first, second, other_epoch):
        assert 0 <= one.min() <= one.max() < 1
        counts = np.histogram(one, 20, (0, 1))[0]
        assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi-square, 19 degrees: p about 1e-4
    for left, right in itertools.combinations((first, second, other_epoch), 2):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.015
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.015
    whole = rng.integers(-2, 2)
    assert np.bincount(whole + 2).min() > 19_000
    assert len(np.bincount(whole + 2)) == 5


def check_each(images, augment, candidates) -> None:
    """Every result is one of the candidates for its image, and the batch does not matter."""
    before = images.copy()
    indices = np.arange(len(images))
    out = augment(images, CounterRNG(1, 2, indices))
    np.testing.assert_array_equal(images, before)
    assert out.dtype == images.dtype
    seen = set()
    for index, result in enumerate(out):
        matches = [
            k for k, one in enumerate(candidates(images[index])) if np.array_equal(one, result)
        ]
        assert matches
        seen.add(matches[0])
        alone = augment(images[index : index + 1], CounterRNG(1, 2, indices[index : index + 1]))
        np.testing.assert_array_equal(alone[0], result)
    assert len(seen) == len(candidates(images[0]))  # each one occurs


@pytest.mark.parametrize("images", [DATA.images, FLOATS.images])
def test_shift_flip_and_crop_by_definition(images):
    _, height, width = images.shape[1:]

    def windows(image, padding, rows, columns):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
        return [
            padded[:, top : top + rows, left : left + columns]
            for top in range(height + 2 * padding - rows + 1)
            for left in range(width + 2 * padding - columns + 1)
        ]

    check_each(images, Shift(1), lambda image: windows(image, 1, height, width))
    check_each(images, RandomCrop((5, 5)), lambda image: windows(image, 0, 5, 5))
    check_each(images, HorizontalFlip(), lambda image: [image, image[..., ::-1]])
    np.testing.assert_array_equal(Shift(0)(images, CounterRNG(0, 0, np.arange(COUNT))), images)


@pytest.mark.parametrize("images", [DATA.images, FLOATS.images])
def test_affine_keeps_still_turns_and_scales(images):
    rng = CounterRNG(0, 0, np.arange(COUNT))
    np.testing.assert_array_equal(Affine(0, 0)(images, rng), images)
    smooth = np.zeros((200, 1, 21, 21), np.float32)
    smooth[:, 0, 5:16, 5:16] = 1
    turned = Affine(30, 0.3)(smooth, CounterRNG(0, 0, np.arange(200)))
    assert (turned[:, 0, 10, 10] == 1).all()
    assert 0 <= turned.min() <= turned.max() <= 1 + 1e-6
    areas = turned.sum(axis=(1, 2, 3)) / 121
    assert areas.min() < 0.6
    assert areas.max() > 1.5


def test_affine_turns_by_the_angle():
    class Fixed(CounterRNG):
        def uniform(self, low=0.0, high=1.0):
            return np.full(len(self), high)

    image = RNG.integers(0, 256, (1, 1, 7, 7), np.uint8)
    turned = Affine(90, 0)(image, Fixed(0, 0, np.arange(1)))
    assert any(np.array_equal(turned[0, 0], np.rot90(image[0, 0], k)) for k in (1, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shift(-1),
        lambda: Shift(1.5),
        lambda: RandomCrop(0),
        lambda: RandomCrop(3, -1),
        lambda: HorizontalFlip(1.1),
        lambda: Affine(-1),
        lambda: Affine(5, 1.0),
    ],
)
def test_impossible_augmentations(make):
    with pytest.raises((TypeError, ValueError), match="must be"):
        make()
