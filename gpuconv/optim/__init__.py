"""Optimisers, learning-rate schedules and gradient clipping, with PyTorch's formulas and names."""

from gpuconv.optim.adam import Adam, AdamW
from gpuconv.optim.average import EMA
from gpuconv.optim.clip import clip_grad_norm
from gpuconv.optim.lars import LARS
from gpuconv.optim.optimizer import Optimizer
from gpuconv.optim.schedules import CosineLR, OneCycleLR, Schedule, StepLR, WarmupLR
from gpuconv.optim.sgd import SGD

__all__ = [
    "EMA",
    "LARS",
    "SGD",
    "Adam",
    "AdamW",
    "CosineLR",
    "OneCycleLR",
    "Optimizer",
    "Schedule",
    "StepLR",
    "WarmupLR",
    "clip_grad_norm",
]
