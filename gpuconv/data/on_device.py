"""A loader's batches on a device, by one launch each: kernels/image_batch.cu.

uint8 images that take at most a quarter of the device's free memory are copied there once, with
their labels. A batch is then a few numbers for each image: which one, and how it is shifted,
cropped, mirrored. The host draws these ahead for many batches and copies them together. All other
images come batch by batch, through two buffers of pinned memory, while the step before runs.
"""

from __future__ import annotations

from collections.abc import Callable
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
from gpuconv.data.augment import moves_only
from gpuconv.data.dataset import to_float
from gpuconv.data.loader import Loader
from gpuconv.data.placement import WORDS, Placement

if TYPE_CHECKING:
    from gpuconv.cuda.runtime import Runtime

Shape = tuple[int, ...]
SLOTS = 64  # batches whose rows are drawn and copied together
SHARE = 4  # images may take the free memory divided by this
BLOCK = 128  # threads: kernels/image_batch.cu
LEVELS = 256  # of a uint8 pixel


@lru_cache(maxsize=CACHED)
def config_image_batch(
    shape: Shape, source: Shape, dtype: str, slots: int, stride: int
) -> LaunchConfig:
    """A batch of `shape` (N, C, rows, columns) from images of `source` (any number, C, H, W).

    dtype: of the images, "uint8" or "float32". slots, stride: batches in the table, and images in
    each of them. The number `first` no shape decides.
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
        **{"columns": columns, "per_image": each // vec, **divisions},
    }
    sizes = {
        **{"x": N * each, "batch_labels": N, "images": count * C * H * W, "labels": count},
        **{"table": slots * stride * WORDS, "values": C * LEVELS, "slot": 1},
    }
    pixel = {"uint8": "unsigned char", "float32": "float"}[dtype]
    grid = loop_grid(N * each // vec, BLOCK)
    macros = defines(VEC=vec, PIXEL=pixel)
    launch = Launch("image_batch.cu", "image_batch", grid, BLOCK, macros, scalars, sizes)
    return LaunchConfig((launch,))


def draw_rows(loader: Loader, epoch: int, indices: np.ndarray, rows: np.ndarray) -> None:
    """Write the kernel's table for images in an epoch: int32 (n, WORDS)."""
    placed = Placement(len(indices), *loader.dataset.images.shape[2:])
    loader.place(placed, epoch, indices)
    placed.write(rows, indices)


def values_of(loader: Loader) -> np.ndarray:
    """What each level of a pixel is in x: float32 (channels, LEVELS), by the loader's own code."""
    levels = np.arange(LEVELS, dtype=np.uint8)
    levels = np.broadcast_to(levels, (1, loader.input_shape[0], 1, LEVELS))
    return to_float(levels, None, loader.mean, loader.std)[0, :, 0]


class Batches:
    """The batches of a loader, with its bits, on "sim" or "cuda", whose images are there.

    `prepare` draws what batches of an epoch need, `load` makes one of them. slots: how many
    `prepare` takes at most. note: one line that says where the images are. feed: None, or to be
    called before each batch is loaded, in order, where the images come with their batches.
    """

    feed: Callable[[], None] | None = None

    def __init__(self, loader: Loader, on: Runtime, slots: int = SLOTS) -> None:
        self.loader, self.slots, self._on = loader, slots, on
        self._batch = min(loader.batch_size, len(loader.dataset))
        self._epoch, self._order = -1, np.zeros(0, np.int64)
        self._table = on.empty((slots * self._batch, WORDS), np.int32)
        self._rows = Pair(on, self._table.shape, np.int32)
        self._prepared = 0
        self._values = on.asarray(values_of(loader))
        self._zero = on.zeros(1, np.uint32)
        self._static: dict[int, tuple[Any, Any]] = {}
        self._place(loader.dataset.images)

    def _place(self, images: np.ndarray) -> None:
        """Make the arrays on the device that batches are taken from."""
        self._images = self._on.asarray(images)
        self._labels = self._on.asarray(self.loader.dataset.labels)
        self.note = f"{len(images):,} images are on {self._on.name}: {images.nbytes / 1e6:,.1f} MB"

    def prepare(self, epoch: int, first: int, count: int) -> None:
        """Put batches first, first + 1, ... of the epoch, at most `slots`, into slots 0, 1, ...

        What was launched before may still run: the copy waits for it in the current queue.
        """
        indices = self._indices(epoch, first, count)
        rows, queue, half = self._rows, self._on.queue(), self._prepared % 2
        self._draw(rows.take(half)[: len(indices)], indices)
        rows.copy(half, self._table[: len(indices)], queue)
        self._prepared += 1

    def _draw(self, rows: np.ndarray, indices: np.ndarray) -> None:
        """Write the rows of the kernel's table."""
        draw_rows(self.loader, self._epoch, indices, rows)

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
        config = config_image_batch(
            (size, *self.loader.input_shape), images.shape, str(images.dtype),
            self.slots, self._batch,
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
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.loader.order(epoch)
        size = self.loader.batch_size
        return self._order[first * size : (first + count) * size]

    def _new(self, size: int) -> tuple[Any, Any]:
        C, H, W = self.loader.input_shape
        return self._on.empty((size, H, W, C)), self._on.empty(size, np.int64)


class Streamed(Batches):
    """The same where the images come with their batches, each in one of two places in turn."""

    def __init__(self, loader: Loader, on: Runtime, why: str, slots: int = SLOTS) -> None:
        # What the kernel does of the loader's work: all of it, or nothing but a copy.
        self._whole = _kernel_does(loader)
        self._why = why
        super().__init__(loader, on, slots)

    def _place(self, images: np.ndarray) -> None:
        on, batch = self._on, self._batch
        shape = images.shape[1:] if self._whole else self.loader.input_shape
        dtype = np.dtype(np.uint8 if self._whole else np.float32)
        self._images, self._labels = (
            on.empty((2 * batch, *shape), dtype),
            on.empty(2 * batch, np.int64),
        )
        self._pixels, self._numbers = Pair(on, (batch, *shape), dtype), Pair(on, (batch,), np.int64)
        self._copies = on.queue(private=True)
        self.note = f"batches are copied to {on.name} one by one: {self._why}"

    def __del__(self) -> None:
        """A copy that goes on may not write to memory that others have by then."""
        self._copies.synchronize()

    def prepare(self, epoch: int, first: int, count: int) -> None:
        super().prepare(epoch, first, count)
        self._first, self._count, self._fed = first, count, 0
        self._read = [self._on.queue().record()] * 2  # events after which a place is free
        self._stage(0)

    def _draw(self, rows: np.ndarray, indices: np.ndarray) -> None:
        at = np.arange(len(indices))
        if self._whole:
            super()._draw(rows, indices)
        else:
            Placement(len(indices), *self.loader.input_shape[1:]).write(rows, at)
        rows[:, 0] = at // self._batch % 2 * self._batch + at % self._batch

    def feed(self) -> None:
        """Copy the next batch while this one is used, and let the current queue wait for this."""
        queue, half = self._on.queue(), self._fed % 2
        self._read[1 - half] = queue.record()  # what used the batch before is launched by now
        if self._fed + 1 < self._count:
            self._stage(self._fed + 1)
        queue.wait(self._pixels.copied[half])
        self._fed += 1

    def _stage(self, number: int) -> None:
        """Start the copy of a prepared batch, in the copies' own queue."""
        indices, half = self._indices(self._epoch, self._first + number, 1), number % 2
        count, begin = len(indices), half * self._batch
        pixels, labels = self._pixels.take(half)[:count], self._numbers.take(half)[:count]
        if self._whole:
            np.take(self.loader.dataset.images, indices, axis=0, out=pixels, mode="clip")
        else:
            pixels[:], _ = self.loader.batch(self._epoch, indices)
        labels[:] = self.loader.dataset.labels[indices]
        self._copies.wait(self._read[half])
        self._numbers.copy(half, self._labels[begin : begin + count], self._copies)
        self._pixels.copy(half, self._images[begin : begin + count], self._copies)


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

    def copy(self, half: int, to: Any, queue: Any) -> None:
        """Start to copy the first of its elements to an array of the device."""
        queue.copy(to, self._arrays[half][: len(to)])
        self.copied[half] = queue.record()


def batches_for(loader: Any, device: str) -> Batches | None:
    """The loader's batches on "sim" or "cuda"; None for what is no `Loader`: a list of batches."""
    if type(loader) is not Loader or not len(loader):
        return None
    from gpuconv.cuda.runtime import runtime  # late: loading data needs no device

    on, images = runtime(device), loader.dataset.images
    why, free = "", on.free_memory()
    if images.dtype != np.uint8:
        why = f"they are {images.dtype}, not uint8"
    elif not _kernel_does(loader):
        why = "the host computes their augmentation"
    elif images.nbytes > free // SHARE:
        sizes = images.nbytes / 1e9, free / 1e9
        why = "{:,.2f} GB of images are more than a quarter of the {:,.2f} GB free".format(*sizes)
    return Streamed(loader, on, why) if why else Batches(loader, on)


def _kernel_does(loader: Loader) -> bool:
    """Whether the kernel prepares the loader's images, else the host."""
    return loader.dataset.images.dtype == np.uint8 and moves_only(loader.augment)
