"""gpuconv: convolutional networks with hand-written kernels, a fast CPU path, a NumPy reference.

    import gpuconv
    model = gpuconv.load("model.safetensors")
    with gpuconv.no_grad():
        scores = model(x).numpy()

Everything is imported when it is first used, so `import gpuconv` itself is quick.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as type checkers know it; `typing` itself takes a while to import
if TYPE_CHECKING:
    from typing import Any

    from gpuconv import checkpoint, data, explain, models, nn, ops, optim
    from gpuconv.arrays import to_device, to_numpy
    from gpuconv.autograd import Tensor, enable_grad, no_grad
    from gpuconv.checkpoint import load, save
    from gpuconv.cpu.precision import float64_sums, no_winograd
    from gpuconv.interop.torch import load_torch
    from gpuconv.nn.summary import summary
    from gpuconv.threads import set_thread_count, thread_count
    from gpuconv.train import Trainer

__version__ = "0.2.0"

__all__ = [
    "Tensor",
    "Trainer",
    "checkpoint",
    "data",
    "enable_grad",
    "explain",
    "float64_sums",
    "load",
    "load_torch",
    "models",
    "nn",
    "no_grad",
    "no_winograd",
    "ops",
    "optim",
    "save",
    "set_thread_count",
    "summary",
    "thread_count",
    "to_device",
    "to_numpy",
]

_HOME = {
    "Tensor": "gpuconv.autograd",
    "Trainer": "gpuconv.train",
    "enable_grad": "gpuconv.autograd",
    "float64_sums": "gpuconv.cpu.precision",
    "load": "gpuconv.checkpoint",
    "load_torch": "gpuconv.interop.torch",
    "no_winograd": "gpuconv.cpu.precision",
    "no_grad": "gpuconv.autograd",
    "save": "gpuconv.checkpoint",
    "set_thread_count": "gpuconv.threads",
    "summary": "gpuconv.nn.summary",
    "thread_count": "gpuconv.threads",
    "to_device": "gpuconv.arrays",
    "to_numpy": "gpuconv.arrays",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in __all__:
        return importlib.import_module(f"gpuconv.{name}")
    raise AttributeError(f"module 'gpuconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
