"""Batches made on the device against the host's loader: equal bits, whatever moves the images."""

import numpy as np
import pytest
from kernel_runs import F4, how_of, run

from gpuconv.data import Compose, Dataset, HorizontalFlip, Loader, RandomCrop, Shift
from gpuconv.data.draws import WORDS, draw_rows, words_of
from gpuconv.data.loader import AUGMENT
from gpuconv.data.on_device import config_image_batch, moves_of, values_of
from gpuconv.data.rng import key_of


def moving(rng, height, width):
    """An augmentation of up to four steps, in any order, also one inside another."""
    steps = []
    for _ in range(rng.integers(0, 5)):
        kind = rng.integers(0, 3)
        if kind == 0:
            steps.append(Shift(int(rng.integers(0, 4))))
        elif kind == 1:
            steps.append(HorizontalFlip(float(rng.choice([0.5, 0.5, 1]))))
        else:
            padding = int(rng.integers(0, 3))
            height = int(rng.integers(1, height + 2 * padding + 1))
            width = int(rng.integers(1, width + 2 * padding + 1))
            steps.append(RandomCrop((height, width), padding))
    if len(steps) > 2:
        steps = [steps[0], Compose(steps[1:])]
    chosen = {0: None, 1: steps[0] if steps else None}.get(len(steps), Compose(steps))
    return chosen, height, width


def loader_of(seed):
    """A loader of small images: channels, sizes, augmentation, padding and scale at random."""
    rng = np.random.default_rng([71, seed])
    C, H, W = (int(n) for n in (rng.choice([1, 1, 2, 3, 4]), *rng.integers(1, 9, 2)))
    count = int(rng.integers(3, 20))
    data = Dataset(rng.integers(0, 256, (count, C, H, W), np.uint8), rng.integers(0, 9, count))
    augment, height, width = moving(rng, H, W)
    size = None, (height + -height % 4, width), (height + int(rng.integers(4)), width + 1)
    mean = None if seed % 5 == 0 else rng.standard_normal(C).tolist()
    std = None if seed % 5 == 1 else (rng.random(C) + 0.1).tolist()
    batch = int(rng.integers(1, count + 1))
    return Loader(data, batch, seed=seed, augment=augment, size=size[seed % 3], mean=mean, std=std)


def table_of(loader, epoch, slots):
    """The rows of the first batches of an epoch; what is never read holds 99."""
    indices = loader.order(epoch)[: slots * loader.batch_size]
    steps, key = moves_of(loader), key_of(loader.seed, epoch, AUGMENT)
    table = np.full((slots * loader.batch_size, words_of(steps)), 99, np.int32)
    draw_rows(steps, indices, key, *loader.dataset.images.shape[2:], 0, 0, table)
    return table


def compare(case, loader=None, **how):
    loader, epoch, slots = loader or loader_of(case), case % 4, 3
    images, labels = loader.dataset.images, loader.dataset.labels
    inputs = {"images": images, "labels": labels, "values": values_of(loader)}
    inputs["table"] = table_of(loader, epoch, slots)
    words = inputs["table"].shape[1]
    for number, (x, answers) in enumerate(list(loader.batches(epoch))[:slots]):
        N, C, H, W = x.shape
        config = config_image_batch(x.shape, images.shape, "uint8", slots, loader.batch_size, words)
        outputs = {"x": ((N, H, W, C), F4), "batch_labels": ((N,), np.int64)}
        first = case % (number + 1)  # the slot is the sum of a number and what the device counts
        inputs["slot"] = np.array([number - first + slots * (case % 2)], np.uint32)
        found = run(config, inputs, outputs, {"first": first}, **how)
        np.testing.assert_array_equal(found["x"], x.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(found["batch_labels"], answers)


@pytest.mark.parametrize("seed", range(16))
def test_batches_equal_the_loaders(seed):
    compare(seed, **how_of(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(16, 300))
def test_batches_equal_the_loaders_at_length(seed):
    compare(seed, **how_of(seed))


@pytest.mark.parametrize("size", [(6, 9), (3, 8), (4, 5)])
def test_images_in_the_middle(size):
    """The table has their indices alone."""
    rng = np.random.default_rng(73)
    images = Dataset(rng.integers(0, 256, (11, 2, 3, 5), np.uint8), np.arange(11))
    loader = Loader(images, 4, seed=5, size=size, mean=0.3, std=0.2)
    assert table_of(loader, 0, 1).shape == (4, 1)
    compare(5, loader)


def test_every_value_of_a_pixel_is_the_hosts_own():
    """Also where the scale leaves subnormal numbers, which the device's arithmetic has not."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    for mean, std in ((None, None), (0.1307, 0.3081), (0, 1e38), (1e-40, 1), (3e38, 1e-3)):
        with np.errstate(all="ignore"):
            loader = Loader(Dataset(images, [3]), 1, mean=mean, std=std)
            ((x, _),) = loader
            values = values_of(loader)
        inputs = {"images": images, "labels": np.array([3]), "values": values}
        inputs |= {"table": table_of(loader, 0, 1), "slot": np.zeros(1, np.uint32)}
        config = config_image_batch(x.shape, images.shape, "uint8", 1, 1, 1)
        outputs = {"x": ((1, 16, 16, 1), F4), "batch_labels": ((1,), np.int64)}
        found = run(config, inputs, outputs, {"first": 0})
        assert found["x"].tobytes() == x.tobytes()


@pytest.mark.parametrize(
    ("shape", "words"),
    [((3, 2, 3, 5), WORDS), ((2, 4, 3, 3), WORDS), ((3, 2, 3, 5), 1), ((2, 1, 1, 40_000), 1)],
)
def test_prepared_floats_are_copied(shape, words):
    """Of every layout of theirs in the table's order, and of any length; a NaN stays the same."""
    rng = np.random.default_rng(72)
    images = rng.standard_normal((5, *shape[1:])).astype(F4)
    images.view(np.uint32)[0, 0, 0, 0] = 0x7FC01234
    order = rng.permutation(5)[: shape[0]]
    table = np.zeros((shape[0], words), np.int32)
    draw_rows(np.zeros((0, 4), np.int64), order, np.uint64(0), *shape[2:], 0, 0, table)
    inputs = {"images": images, "labels": np.arange(5), "values": np.zeros((shape[1], 256), F4)}
    inputs |= {"table": table, "slot": np.zeros(1, np.uint32)}
    N, C, H, W = shape
    outputs = {"x": ((N, H, W, C), F4), "batch_labels": ((N,), np.int64)}
    config = config_image_batch(shape, images.shape, "float32", 1, N, words)
    found = run(config, inputs, outputs, {"first": 0})
    assert (
        found["x"].tobytes() == np.ascontiguousarray(images[order].transpose(0, 2, 3, 1)).tobytes()
    )
    np.testing.assert_array_equal(found["batch_labels"], order)
