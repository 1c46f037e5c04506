"""A loader's batches on a device, by one launch each: kernels/image_batch.cu.

uint8 images that take at most a quarter of the device's free memory are copied there once, with
their labels. A batch is then a few numbers for each image: which one, and how it is shifted,
cropped, mirrored. The host draws these ahead for many batches and copies them together. All other
images come batch by batch, through two buffers of pinned memory, while the step before runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuconv.cuda.launch_config import (
    CACHED,
    Launch,
    LaunchConfig,
    defines,
    fast_divisions,
    loop_grid,
    require_int32,
    vector_width,
)
from gpuconv.data.dataset import to_float
from gpuconv.data.draws import WORDS, draw_rows, moves, permutation, words_of
from gpuconv.data.loader import AUGMENT, ORDER, Loader
from gpuconv.data.rng import key_of
from gpuconv.distributed.communicator import part

if TYPE_CHECKING:
    from gpuconv.cuda.runtime import Runtime

Shape = tuple[int, ...]
SLOTS = 64  # batches whose rows are drawn and copied together
SHARE = 4  # images may take the free memory divided by this
BLOCK = 128  # threads: kernels/image_batch.cu
LEVELS = 256  # of a uint8 pixel
NO_STEPS = np.zeros((0, 4), np.int64)


@lru_cache(maxsize=CACHED)
def config_image_batch(
    shape: Shape, source: Shape, dtype: str, slots: int, stride: int, words: int = WORDS
) -> LaunchConfig:
    """A batch of `shape` (N, C, rows, columns) from images of `source` (any number, C, H, W).

    dtype: of the images, "uint8" or "float32". slots, stride: batches in the table, and images in
    each of them; words: of an image there, see `words_of`. The number `first` no shape decides.
    """
    N, C, rows, columns = shape
    count, _, H, W = source
    each = C * rows * columns
    require_int32("image_batch", images=count, elements_of_the_batch=N * each)
    vec = vector_width(each)
    divisions = fast_divisions(per_image=each // vec, channels=C, columns=columns)
    scalars = {
        "vectors": N * each // vec,
        **{"slots": slots, "stride": stride, "channels": C, "height": H, "width": W},
        **{"all_top": -((rows - H) // 2), "all_left": -((columns - W) // 2)},
        **{"columns": columns, "per_image": each // vec, **divisions},
    }
    sizes = {
        **{"x": N * each, "batch_labels": N, "images": count * C * H * W, "labels": count},
        **{"table": slots * stride * words, "values": C * LEVELS, "slot": 1},
    }
    pixel = {"uint8": "unsigned char", "float32": "float"}[dtype]
    grid = loop_grid(N * each // vec, BLOCK)
    macros = defines(VEC=vec, PIXEL=pixel, WORDS=words)
    launch = Launch("image_batch.cu", "image_batch", grid, BLOCK, macros, scalars, sizes)
    return LaunchConfig((launch,))


def moves_of(loader: Loader) -> np.ndarray | None:
    """What the loader does with a data set's images as they are, for `draw_rows`; None for images
    that are no uint8, and for an augmentation that the kernel does not know.
    """
    images, (_, height, width) = loader.dataset.images, loader.input_shape
    if images.dtype != np.uint8:
        return None
    return moves(loader.augment, images.shape[2:], (height, width))


def values_of(loader: Loader) -> np.ndarray:
    """What each level of a pixel is in x: float32 (channels, LEVELS), by the loader's own code."""
    levels = np.arange(LEVELS, dtype=np.uint8)
    levels = np.broadcast_to(levels, (1, loader.input_shape[0], 1, LEVELS))
    return to_float(levels, None, loader.mean, loader.std)[0, :, 0]


class Batches:
    """The batches of a loader, with its bits, on "sim" or "cuda", whose images are there.

    `prepare` draws what batches of an epoch need, `load` makes one of them. note: one line that
    says where the images are. feed: None, or to be called before each batch is loaded, in order,
    where the images come with their batches.
    """

    feed: Callable[[], None] | None = None

    def __init__(self, loader: Loader, on: Runtime, steps: np.ndarray) -> None:
        """steps: of `moves_of`."""
        self.loader, self._on, self._steps = loader, on, steps
        # Images of a batch, and of one that is left over: of this rank's part of it.
        whole = min(loader.batch_size, len(loader.dataset))
        left = len(loader.dataset) % whole
        self._batch, self._rest = (
            len(range(count)[part(count, loader.rank, loader.ranks)]) for count in (whole, left)
        )
        self._whole = len(loader.dataset) // whole
        self._orders: dict[int, np.ndarray] = {}  # of this epoch and the next
        self._words = words_of(steps)
        self._table = on.empty((SLOTS * self._batch, self._words), np.int32)
        # The half with the rows of SLOTS batches, and the (epoch, first) of these; those after them
        # are drawn into the other.
        self._rows, self._half = Pair(on, self._table.shape, np.int32), 0
        self._drawn, self._ahead = (-1, 0), (-1, 0)
        self._values = on.asarray(values_of(loader))
        self._zero = on.zeros(1, np.uint32)
        self._static: dict[int, tuple[Any, Any]] = {}
        self._allocate(loader.dataset.images)

    def _allocate(self, images: np.ndarray) -> None:
        """Make the arrays on the device that batches are taken from."""
        self._images = self._on.asarray(images)
        self._labels = self._on.asarray(self.loader.dataset.labels)
        self.note = f"{len(images):,} images are on {self._on.name}: {images.nbytes / 1e6:,.1f} MB"

    def prepare(self, epoch: int, first: int, most: int) -> tuple[int, int]:
        """Make batches first, first + 1, ... of the epoch those of slots 0, 1, ...: at most so
        many, at most SLOTS, of one size. Returns how many, and the size; (0, 0) after the last.

        What was launched before may still run: the copy waits for it in the current queue.
        """
        whole = self._whole
        if first >= len(self.loader):
            return 0, 0
        drawn, begin = self._drawn
        if not (drawn == epoch and begin <= first < begin + SLOTS):
            self._draw(epoch, first)
            self._drawn, self._half, begin = self._ahead, 1 - self._half, first
        count = min(most, begin + SLOTS - first, whole - first) if first < whole else 1
        size = self._batch if first < whole else self._rest
        begin = (first - begin) * self._batch
        self._rows.copy(self._half, begin, self._table[: count * size], self._on.queue())
        return count, size

    def ahead(self) -> None:
        """Draw what `prepare` will want next: for when the device works."""
        epoch, first = self._drawn
        more = first + SLOTS < len(self.loader)
        self._draw(epoch, first + SLOTS) if more else self._draw(epoch + 1, 0)

    def _draw(self, epoch: int, first: int) -> None:
        """Have the rows of the epoch's batches from `first` on in the half that is not in use."""
        if self._ahead == (epoch, first):
            return
        self._ahead = -1, 0
        self._orders = {e: o for e, o in self._orders.items() if e >= self._drawn[0]}
        key, indices = key_of(self.loader.seed, epoch, AUGMENT), self._indices(epoch, first, SLOTS)
        size, place, half = self._images.shape[2:], self._place(first), 1 - self._half
        draw_rows(self._steps, indices, key, *size, *place, self._rows.take(half))
        self._ahead = epoch, first

    def _place(self, batch: int) -> tuple[int, int]:
        """`place` and `places` of `draw_rows`, of a batch."""
        return 0, 0

    def load(self, size: int, slot: Any) -> tuple[Any, Any]:
        """(x, labels) of the batch in a slot: float32 (size, C, H, W), channels last in memory, and
        int64 (size,).

        slot: an int, then the arrays are new; or a uint32 array of one element on the device, then
        they are the same at each call for a size, so that the launch can be repeated as it is.
        """
        first = 0
        if isinstance(slot, int):
            (x, labels), first, slot = self._new(size), slot, self._zero
        else:
            if size not in self._static:
                self._static[size] = self._new(size)
            x, labels = self._static[size]
        images = self._images
        if not size:  # more ranks than images left
            return self._on.as_nchw(x), labels
        config = config_image_batch(
            (size, *self.loader.input_shape), images.shape, str(images.dtype),
            SLOTS, self._batch, self._words,
        )  # fmt: skip
        self._on.run(
            config, {"first": first}, x=x, batch_labels=labels, images=images,
            labels=self._labels, table=self._table, values=self._values, slot=slot,
        )  # fmt: skip
        return self._on.as_nchw(x), labels

    def host(self, epoch: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The same batch as the loader has it, NumPy's arrays."""
        return self.loader.batch(epoch, self._indices(epoch, batch, 1))

    def labels(self, epoch: int, batch: int) -> np.ndarray:
        """The labels of a batch, int64 (size,), NumPy's."""
        return self.loader.dataset.labels[self._indices(epoch, batch, 1)]

    def _indices(self, epoch: int, first: int, count: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = np.arange(len(self.loader.dataset))
            if self.loader.shuffle:
                order = permutation(key_of(self.loader.seed, epoch, ORDER), len(order))
            self._orders[epoch] = order
        if self.loader.ranks > 1:
            batches = range(first, min(first + count, len(self.loader)))
            return np.concatenate([self.loader.indices(order, batch) for batch in batches])
        size = self.loader.batch_size
        found: np.ndarray = order[first * size : (first + count) * size]
        return found

    def _new(self, size: int) -> tuple[Any, Any]:
        C, H, W = self.loader.input_shape
        return self._on.empty((size, H, W, C)), self._on.empty(size, np.int64)


class Streamed(Batches):
    """The same where the images come with their batches, each in one of two places in turn.

    Where the kernel does not know what the loader does (steps None), they come as it made them.
    Batch i of an epoch is in place i % 2.
    """

    def __init__(self, loader: Loader, on: Runtime, steps: np.ndarray | None, why: str) -> None:
        self._why, self._known = why, steps is not None
        super().__init__(loader, on, NO_STEPS if steps is None else steps)

    def _allocate(self, images: np.ndarray) -> None:
        on, batch, known = self._on, self._batch, self._known
        shape = images.shape[1:] if known else self.loader.input_shape
        dtype = np.dtype(np.uint8 if known else np.float32)
        self._images = on.empty((2 * batch, *shape), dtype)
        self._labels = on.empty(2 * batch, np.int64)
        self._pixels, self._numbers = Pair(on, (batch, *shape), dtype), Pair(on, (batch,), np.int64)
        self._copies = on.queue(private=True)
        self.note = f"batches are copied to {on.name} one by one: {self._why}"

    def prepare(self, epoch: int, first: int, most: int) -> tuple[int, int]:
        count, size = super().prepare(epoch, first, most)
        if count:
            self._prepared, self._next, self._end = epoch, first, first + count
            self._read = [self._on.queue().record()] * 2  # events after which a place is free
            self._stage(first)
        return count, size

    def _place(self, batch: int) -> tuple[int, int]:
        return batch % 2 * self._batch, 2 * self._batch

    def feed(self) -> None:
        """Copy the next batch while this one is used, and let the current queue wait for this."""
        queue, place = self._on.queue(), self._next % 2
        self._next += 1
        self._read[1 - place] = queue.record()  # what used the batch before is launched by now
        if self._next < self._end:
            self._stage(self._next)
        queue.wait(self._pixels.copied[place])

    def _stage(self, number: int) -> None:
        """Start the copy of a prepared batch, in the copies' own queue."""
        indices, half = self._indices(self._prepared, number, 1), number % 2
        count, begin = len(indices), half * self._batch
        pixels, labels = self._pixels.take(half)[:count], self._numbers.take(half)[:count]
        if self._known:
            np.take(self.loader.dataset.images, indices, axis=0, out=pixels, mode="clip")
        else:
            pixels[:], _ = self.loader.batch(self._prepared, indices)
        labels[:] = self.loader.dataset.labels[indices]
        self._copies.wait(self._read[half])
        self._numbers.copy(half, 0, self._labels[begin : begin + count], self._copies)
        self._pixels.copy(half, 0, self._images[begin : begin + count], self._copies)


class Pair:
    """Two equal arrays of pinned memory: one is filled while the other is copied."""

    def __init__(self, on: Runtime, shape: Shape, dtype: Any) -> None:
        self._arrays = [on.pinned(shape, dtype) for _ in range(2)]
        self.copied: list[Any] = [None, None]  # events after the last copy of each

    def take(self, half: int) -> np.ndarray:
        """One of them, once its last copy is done."""
        if self.copied[half] is not None:
            self.copied[half].synchronize()
        return self._arrays[half]

    def copy(self, half: int, begin: int, to: Any, queue: Any) -> None:
        """Start to copy its elements from `begin` on to an array of the device."""
        queue.copy(to, self._arrays[half][begin : begin + len(to)])
        self.copied[half] = queue.record()

    def __del__(self) -> None:
        """A copy that goes on may not touch memory that others have by then."""
        with suppress(Exception):  # of a driver that is gone already, and of what was never made
            self.take(0), self.take(1)


def batches_for(loader: Any, device: str) -> Batches | None:
    """The loader's batches on "sim" or "cuda"; None for what is no `Loader`: a list of batches."""
    if type(loader) is not Loader or not len(loader):
        return None
    from gpuconv.cuda.runtime import runtime  # late: loading data needs no device

    on, images, steps = runtime(device), loader.dataset.images, moves_of(loader)
    free = on.free_memory()
    if steps is None and images.dtype == np.uint8:
        why = "the host prepares them, for the kernel does not know their augmentation"
    elif steps is None:
        why = f"they are {images.dtype}, not uint8"
    elif images.nbytes > free // SHARE:
        sizes = images.nbytes / 1e9, free / 1e9
        why = "{:,.2f} GB of images are more than a quarter of the {:,.2f} GB free".format(*sizes)
    else:
        return Batches(loader, on, steps)
    return Streamed(loader, on, steps, why)
