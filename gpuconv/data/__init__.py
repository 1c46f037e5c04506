"""Data: MNIST and other sets, IDX files, folders of pictures, batches, augmentation."""

from gpuconv.data.augment import Affine, Augment, Compose, HorizontalFlip, RandomCrop, Shift
from gpuconv.data.dataset import Dataset, to_float
from gpuconv.data.errors import DataError
from gpuconv.data.folder import from_folder, load_image, save_image
from gpuconv.data.idx import read_idx, write_idx
from gpuconv.data.loader import Loader
from gpuconv.data.named import load
from gpuconv.data.rng import CounterRNG

__all__ = [
    "Affine",
    "Augment",
    "Compose",
    "CounterRNG",
    "DataError",
    "Dataset",
    "HorizontalFlip",
    "Loader",
    "RandomCrop",
    "Shift",
    "from_folder",
    "load",
    "load_image",
    "read_idx",
    "save_image",
    "to_float",
    "write_idx",
]
