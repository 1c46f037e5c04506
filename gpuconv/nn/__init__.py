"""Layers, containers, losses and initialisers."""

from gpuconv.autograd import Parameter, Tensor, checkpoint, enable_grad, no_grad
from gpuconv.nn import functional, init
from gpuconv.nn.activation import (
    Dropout,
    Identity,
    LeakyReLU,
    ReLU,
    ScaledTanh,
    Sigmoid,
    Softmax,
    Tanh,
)
from gpuconv.nn.containers import (
    Concat,
    DenseBlock,
    ModuleList,
    Residual,
    Sequential,
    recompute_blocks,
)
from gpuconv.nn.conv import Conv2d
from gpuconv.nn.linear import Flatten, Linear
from gpuconv.nn.losses import LOSSES, ArticleLoss, AuxiliaryLoss, CrossEntropyLoss, HingeLoss
from gpuconv.nn.module import Buffer, Module
from gpuconv.nn.norm import BatchNorm2d, LocalResponseNorm
from gpuconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d, SumPool2d
from gpuconv.nn.trace import Trace, output_shape, trace

__all__ = [
    "LOSSES",
    "AdaptiveAvgPool2d",
    "ArticleLoss",
    "AuxiliaryLoss",
    "AvgPool2d",
    "BatchNorm2d",
    "Buffer",
    "Concat",
    "Conv2d",
    "CrossEntropyLoss",
    "DenseBlock",
    "Dropout",
    "Flatten",
    "HingeLoss",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "ModuleList",
    "Parameter",
    "ReLU",
    "Residual",
    "ScaledTanh",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SumPool2d",
    "Tanh",
    "Tensor",
    "Trace",
    "checkpoint",
    "enable_grad",
    "functional",
    "init",
    "no_grad",
    "output_shape",
    "recompute_blocks",
    "trace",
]
