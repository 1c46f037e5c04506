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

    from gpuconv import checkpoint, data, explain, models, nn, onnx, ops, optim
    from gpuconv.arrays import to_device, to_numpy
    from gpuconv.autograd import Tensor, enable_grad, no_grad
    from gpuconv.checkpoint import load, save
    from gpuconv.cpu.precision import float64_sums, no_winograd
    from gpuconv.interop.torch import load_torch
    from gpuconv.nn.summary import summary
    from gpuconv.page import show
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
    "onnx",
    "ops",
    "optim",
    "save",
    "set_thread_count",
    "show",
    "summary",
    "thread_count",
    "to_device",
    "to_numpy",
]

_HOME = {
    "gpuconv.arrays": ("to_device", "to_numpy"),
    "gpuconv.autograd": ("Tensor", "enable_grad", "no_grad"),
    "gpuconv.checkpoint": ("load", "save"),
    "gpuconv.cpu.precision": ("float64_sums", "no_winograd"),
    "gpuconv.interop.torch": ("load_torch",),
    "gpuconv.nn.summary": ("summary",),
    "gpuconv.page": ("show",),
    "gpuconv.threads": ("set_thread_count", "thread_count"),
    "gpuconv.train": ("Trainer",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    if name in __all__:
        return importlib.import_module(f"gpuconv.{name}")
    raise AttributeError(f"module 'gpuconv' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
