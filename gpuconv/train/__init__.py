"""Training: the loop, its history, its checkpoints, and what happens when it is interrupted."""

from gpuconv.train.callback import Callback
from gpuconv.train.interrupt import Interrupted
from gpuconv.train.state import Position
from gpuconv.train.trainer import Trainer

__all__ = ["Callback", "Interrupted", "Position", "Trainer"]
