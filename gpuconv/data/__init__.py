"""Data: MNIST and other sets, IDX files, folders of pictures, batches, augmentation."""

from gpuconv.data.augment import Affine, Augment, Compose, HorizontalFlip, RandomCrop, Shift
from gpuconv.data.dataset import Dataset, Scale, to_float
from gpuconv.data.folder import from_folder
from gpuconv.data.idx import read_idx, write_idx
from gpuconv.data.loader import Loader
from gpuconv.data.named import installed, load
from gpuconv.data.pairs import from_pairs
from gpuconv.data.picture import load_image, save_image
from gpuconv.data.preprocessing import Picture, Preprocessing, mean_and_std
from gpuconv.data.rng import CounterRNG
from gpuconv.errors import DataError

__all__ = [
    "Affine",
    "Augment",
    "Compose",
    "CounterRNG",
    "DataError",
    "Dataset",
    "HorizontalFlip",
    "Loader",
    "Picture",
    "Preprocessing",
    "RandomCrop",
    "Scale",
    "Shift",
    "from_folder",
    "from_pairs",
    "installed",
    "load",
    "load_image",
    "mean_and_std",
    "read_idx",
    "save_image",
    "to_float",
    "write_idx",
]
