"""Models by name."""

from gpuconv.models.alexnet import alexnet, alexnet_2012, zfnet
from gpuconv.models.densenet import densenet121
from gpuconv.models.googlenet import googlenet
from gpuconv.models.googlenet_paper import googlenet_paper
from gpuconv.models.harley import harley_lenet, harley_pixels, harley_weights
from gpuconv.models.lenet import lenet, lenet5
from gpuconv.models.own import from_file, is_file, replace_head
from gpuconv.models.resnet import resnet18, resnet34, resnet50
from gpuconv.models.vgg import vgg16, vgg16_bn, vgg19
from gpuconv.models.zoo import MODELS, build, named

__all__ = [
    "MODELS",
    "alexnet",
    "alexnet_2012",
    "build",
    "densenet121",
    "from_file",
    "googlenet",
    "googlenet_paper",
    "harley_lenet",
    "harley_pixels",
    "harley_weights",
    "is_file",
    "lenet",
    "lenet5",
    "named",
    "replace_head",
    "resnet18",
    "resnet34",
    "resnet50",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "zfnet",
]
