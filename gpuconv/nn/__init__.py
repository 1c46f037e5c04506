"""Layers, containers, losses and initialisers."""

from gpuconv.nn import init
from gpuconv.nn.activation import Dropout, Identity, ReLU, ScaledTanh, Sigmoid, Softmax, Tanh
from gpuconv.nn.containers import Concat, Residual, Sequential
from gpuconv.nn.conv import Conv2d
from gpuconv.nn.layer import Buffer, Layer, Parameter
from gpuconv.nn.linear import Flatten, Linear
from gpuconv.nn.losses import LOSSES, ArticleLoss, CrossEntropyLoss, HingeLoss
from gpuconv.nn.pool import AvgPool2d, MaxPool2d, SumPool2d

__all__ = [
    "LOSSES",
    "ArticleLoss",
    "AvgPool2d",
    "Buffer",
    "Concat",
    "Conv2d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "HingeLoss",
    "Identity",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Parameter",
    "ReLU",
    "Residual",
    "ScaledTanh",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SumPool2d",
    "Tanh",
    "init",
]
