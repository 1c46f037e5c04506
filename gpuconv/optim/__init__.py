"""Optimisers, learning-rate schedules and gradient clipping, with PyTorch's formulas and names."""

from gpuconv.optim.average import EMA
from gpuconv.optim.clip import clip_grad_norm
from gpuconv.optim.optimizer import SGD, Adam, AdamW, Optimizer
from gpuconv.optim.schedules import CosineLR, OneCycleLR, Schedule, StepLR

__all__ = [
    "EMA",
    "SGD",
    "Adam",
    "AdamW",
    "CosineLR",
    "OneCycleLR",
    "Optimizer",
    "Schedule",
    "StepLR",
    "clip_grad_norm",
]
