"""Training: the loop, its history, its checkpoints, and what happens when it is interrupted."""

from gpuconv.train.callback import Callback
from gpuconv.train.config import PRESETS, RunConfig, extended, run_config, source, stored_config
from gpuconv.train.folder import make_run_folder
from gpuconv.train.interrupt import Interrupted
from gpuconv.train.memory import peak_memory
from gpuconv.train.recorded import recorded
from gpuconv.train.run import Run, prepare, test
from gpuconv.train.state import TrainState
from gpuconv.train.trainer import Trainer
from gpuconv.train.warmup import warm_up

__all__ = [
    "PRESETS",
    "Callback",
    "Interrupted",
    "Run",
    "RunConfig",
    "TrainState",
    "Trainer",
    "extended",
    "make_run_folder",
    "peak_memory",
    "prepare",
    "recorded",
    "run_config",
    "source",
    "stored_config",
    "test",
    "warm_up",
]
