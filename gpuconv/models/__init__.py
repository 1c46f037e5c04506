"""Models by name."""

from gpuconv.models.lenet import lenet
from gpuconv.models.zoo import MODELS, build

__all__ = ["MODELS", "build", "lenet"]
