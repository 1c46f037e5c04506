"""Layers, containers, losses and initialisers."""

from gpuconv.nn import init
from gpuconv.nn.activation import Dropout, Identity, ReLU, ScaledTanh, Sigmoid, Softmax, Tanh
from gpuconv.nn.containers import Concat, Residual, Sequential
from gpuconv.nn.conv import Conv2d
from gpuconv.nn.dense_block import DenseBlock
from gpuconv.nn.heads import AuxiliaryHeads
from gpuconv.nn.layer import Buffer, Fusible, Layer, Parameter
from gpuconv.nn.linear import Flatten, Linear
from gpuconv.nn.losses import LOSSES, ArticleLoss, AuxiliaryLoss, CrossEntropyLoss, HingeLoss
from gpuconv.nn.norm import BatchNorm2d, LocalResponseNorm
from gpuconv.nn.partial import PartialConv2d
from gpuconv.nn.pool import AdaptiveAvgPool2d, AvgPool2d, MaxPool2d, SumPool2d
from gpuconv.nn.recompute import Recompute, recompute_blocks

__all__ = [
    "LOSSES",
    "AdaptiveAvgPool2d",
    "ArticleLoss",
    "AuxiliaryHeads",
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
    "Fusible",
    "HingeLoss",
    "Identity",
    "Layer",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Parameter",
    "PartialConv2d",
    "ReLU",
    "Recompute",
    "Residual",
    "ScaledTanh",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SumPool2d",
    "Tanh",
    "init",
    "recompute_blocks",
]
