"""A loader's batches made on a device: the bits of the loader itself, wherever the images lie."""

import numpy as np
import pytest
from simulated import DEVICE

from gpuconv.arrays import to_device, to_numpy
from gpuconv.cuda.runtime import runtime
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
from gpuconv.data.draws import MAX_SIDE, moves, permutation
from gpuconv.data.loader import ORDER
from gpuconv.data.on_device import SLOTS, batches_for
from gpuconv.data.rng import key_of

RNG = np.random.default_rng(81)
COUNT = 103
DATA = Dataset(RNG.integers(0, 256, (COUNT, 3, 6, 8), np.uint8), np.arange(COUNT) % 7)
FLOATS = Dataset(RNG.random((COUNT, 1, 5, 5), np.float32), np.arange(COUNT) % 7)
MOVES = Compose([Shift(2), HorizontalFlip(), RandomCrop(5, padding=1)])
SETTINGS = {"seed": 9, "size": 9, "mean": [0.2], "std": 0.3}


def made(batches, epoch, start, slot_of, most):
    """The batches of an epoch as the Trainer has them: prepared ahead, then one by one."""
    first = start
    while True:
        count, size = batches.prepare(epoch, first, most)
        if not count:
            return
        for number in range(count):
            if batches.feed is not None:
                batches.feed()
            x, labels = batches.load(size, slot_of(number))
            np.testing.assert_array_equal(batches.labels(epoch, first + number), to_numpy(labels))
            yield to_numpy(x), to_numpy(labels)
        first += count


def on_device(number):
    return to_device(np.array([number], np.uint32), DEVICE)


@pytest.fixture(params=["resident", "streamed"])
def room(request, monkeypatch):
    """Where images lie for lack of memory, or not."""
    if request.param == "streamed":
        monkeypatch.setattr(type(runtime(DEVICE)), "free_memory", lambda self: 4 * 103 * 144 - 1)
    return request.param


@pytest.mark.parametrize("slot_of", [int, on_device])
@pytest.mark.parametrize("augment", [None, MOVES, Affine(15, 0.2)])
@pytest.mark.parametrize("data", [DATA, FLOATS])
def test_batches_are_the_loaders(data, augment, slot_of, room):
    loader = Loader(data, 10, augment=augment, **SETTINGS)
    batches = batches_for(loader, DEVICE)
    whole = data is DATA and not isinstance(augment, Affine)
    assert (batches.feed is None) == (whole and room == "resident")
    for epoch, start, most in ((0, 0, 4), (2, 3, 64), (2, 10, 1), (1, 1, 2)):
        expected = list(loader.batches(epoch, start))
        found = list(made(batches, epoch, start, slot_of, most))
        for number, ((x, labels), (own_x, own_labels)) in enumerate(
            zip(found, expected, strict=True)
        ):
            assert x.dtype == np.float32
            assert labels.dtype == np.int64
            np.testing.assert_array_equal(x, own_x)
            np.testing.assert_array_equal(labels, own_labels)
            np.testing.assert_array_equal(batches.host(epoch, start + number)[0], own_x)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 1000, 60_000])
def test_the_order_of_an_epoch_is_the_loaders(count):
    for seed, epoch in ((0, 0), (-7, 3)):
        data = Dataset(np.zeros((count, 1, 1, 1), np.uint8), np.zeros(count, np.int64))
        order = permutation(key_of(seed, epoch, ORDER), count)
        np.testing.assert_array_equal(order, Loader(data, 1, seed=seed).order(epoch))


@pytest.mark.slow
def test_an_order_in_which_two_images_bits_begin_alike():
    """So alike that only what makes room for their indices differs, and against their order."""
    count, seed, pair = 1_100_000, 4, [191_380, 715_655]
    rng = CounterRNG(seed, 0, np.arange(count), ORDER)
    a, b = CounterRNG(seed, 0, np.array(pair), ORDER).bits()
    assert a > b
    assert a >> np.uint64(21) == b >> np.uint64(21)
    np.testing.assert_array_equal(permutation(key_of(seed, 0, ORDER), count), rng.permutation())


def test_more_batches_than_are_drawn_at_once():
    loader = Loader(DATA, 1, seed=2, augment=Shift(1))
    found = list(made(batches_for(loader, DEVICE), 0, 0, int, 50))
    assert len(found) == COUNT > SLOTS
    for (x, labels), (own_x, own_labels) in zip(found, loader.batches(0), strict=True):
        np.testing.assert_array_equal(x, own_x)
        np.testing.assert_array_equal(labels, own_labels)


def test_without_shuffling_and_without_the_last_batch():
    loader = Loader(DATA, 25, shuffle=False, drop_last=True)
    found = list(made(batches_for(loader, DEVICE), 0, 0, int, 3))
    assert len(found) == 4
    np.testing.assert_array_equal(np.concatenate([x for x, _ in found]), DATA.batch(range(100)))


def test_a_batch_larger_than_the_set():
    loader = Loader(DATA, 1000, seed=3)
    ((x, labels),) = made(batches_for(loader, DEVICE), 4, 0, int, 64)
    ((own_x, own_labels),) = loader.batches(4)
    np.testing.assert_array_equal(x, own_x)
    np.testing.assert_array_equal(labels, own_labels)


def test_a_new_batch_leaves_the_last_ones_arrays_alone_or_takes_them():
    batches = batches_for(Loader(DATA, 10), DEVICE)
    batches.prepare(0, 0, 2)
    (x, labels), (later_x, later_labels) = batches.load(10, 0), batches.load(10, 1)
    assert not np.array_equal(to_numpy(x), to_numpy(later_x))
    assert not np.array_equal(to_numpy(labels), to_numpy(later_labels))
    pair = [batches.load(10, on_device(number)) for number in (0, 1)]
    assert runtime(DEVICE).address(pair[0][0]) == runtime(DEVICE).address(pair[1][0])
    np.testing.assert_array_equal(to_numpy(pair[0][0]), to_numpy(later_x))


def test_an_image_longer_than_a_row_of_the_table_could_say():
    floats = Dataset(RNG.random((3, 1, 1, 40_000), np.float32), np.arange(3))
    ((x, _),) = made(batches_for(Loader(floats, 3), DEVICE), 0, 0, int, 1)
    np.testing.assert_array_equal(x, next(Loader(floats, 3).batches(0))[0])


def test_what_it_says(room):
    on = runtime(DEVICE).name
    said = batches_for(Loader(DATA, 10), DEVICE).note
    if room == "resident":
        assert said == f"103 images are on {on}: 0.0 MB"
    else:
        assert said == (
            f"batches are copied to {on} one by one: 0.00 GB of images are more than a quarter of"
            " the 0.00 GB free"
        )
    float_note = batches_for(Loader(FLOATS, 10), DEVICE).note
    assert float_note.endswith("one by one: they are float32, not uint8")
    turned = batches_for(Loader(DATA, 10, augment=Affine()), DEVICE).note
    assert turned.endswith("for the kernel does not know their augmentation")


def test_what_is_no_loader_of_ours():
    class Other(Loader):
        pass

    assert batches_for([(DATA.images, DATA.labels)], DEVICE) is None
    assert batches_for(Other(DATA, 10), DEVICE) is None
    assert batches_for(Loader(DATA, COUNT + 1, drop_last=True), DEVICE) is None


def test_what_is_too_long_for_the_table():
    side = MAX_SIDE
    assert moves(None, (side, 3), (side, 4)) is not None
    assert moves(Shift(1), (side - 2, 3), (side - 2, 3)) is not None
    assert moves(None, (side + 1, 3), (side + 1, 4)) is None
    assert moves(Shift(1), (3, side - 1), (3, side - 1)) is None
    padded = Compose([HorizontalFlip(), Compose([RandomCrop((side - 3, 5), 2)])])
    assert moves(padded, (side - 3, 5), (side - 3, 5)) is None


def test_an_augmentation_of_ones_own_is_the_hosts():
    class Darker(Shift):
        def __call__(self, images, rng):
            return super().__call__(images, rng) // 2

    for augment in (Darker(1), Compose([Shift(1), Darker(1)]), lambda images, rng: images):
        loader = Loader(DATA, 50, augment=augment)
        batches = batches_for(loader, DEVICE)
        assert batches.feed is not None
        found = [x for x, _ in made(batches, 0, 0, int, 3)]
        np.testing.assert_array_equal(
            np.concatenate(found), np.concatenate([x for x, _ in loader.batches(0)])
        )
