"""A training step of each architecture, in gpuconv and in PyTorch, and the memory it takes.

    python benchmarks/model_steps.py gpuconv resnet18     bytes in use at the peak of a step
    python benchmarks/model_steps.py torch resnet18       the same of PyTorch's

What is printed is the process's peak resident size in steps 2 and 3 less its size once the
libraries are imported: parameters, gradients, momentum, activations, workspaces, and for gpuconv
its compiled loops. A process that measures gpuconv never imports PyTorch.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpuconv import models, nn, optim

BATCH = 8
RATE, MOMENTUM = 1e-3, 0.9
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Step(NamedTuple):
    """`run` does one training step and returns the loss; `gradients` and `state` by name."""

    run: Callable[[], float]
    gradients: Callable[[], dict[str, np.ndarray]]
    state: Callable[[], dict[str, np.ndarray]]


def network(name: str) -> nn.Module:
    """A model of the zoo with its first weights, in training mode, without dropout."""
    model = models.MODELS[name]()
    for _, layer in model.named_modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # the two libraries draw different masks
    return model


def batch(shape: tuple[int, ...], size: int = BATCH) -> tuple[np.ndarray, np.ndarray]:
    """Images (size, *shape) and labels (size,), the same for both libraries."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((size, *shape), np.float32), rng.integers(0, 10, size)


def ours(name: str) -> Step:
    """Forward, cross-entropy, backward, SGD with momentum, on the cpu path."""
    model, loss = network(name), nn.CrossEntropyLoss()
    assert model.input_shape is not None
    x, labels = batch(model.input_shape)
    update = optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)

    def run() -> float:
        update.zero_grad()
        value = loss(model(x), labels)
        value.backward()
        update.step()
        return float(value)

    def gradients() -> dict[str, np.ndarray]:
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    return Step(run, gradients, model.state_dict)


def theirs(name: str, dtype: Any = np.float32) -> Step:
    """The same step of the same network, its weights copied, in PyTorch."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
    import torch_twin

    model = network(name).to(dtype=dtype)
    assert model.input_shape is not None
    images, classes = batch(model.input_shape)
    x, labels = torch.from_numpy(images.astype(dtype)), torch.from_numpy(classes)
    twin = torch_twin.Twin(model)
    trained = {key: t for key, t in twin.tensors.items() if t.requires_grad}
    update = torch.optim.SGD(trained.values(), lr=RATE, momentum=MOMENTUM)

    def run() -> float:
        update.zero_grad()
        value = torch_twin.loss(twin(x), labels)
        value.backward()
        update.step()
        return value.item()

    def state() -> dict[str, np.ndarray]:
        return {key: t.detach().numpy() for key, t in twin.tensors.items()}

    return Step(run, lambda: {key: t.grad.numpy() for key, t in trained.items()}, state)


def peak(build: Callable[[str], Step], name: str) -> int:
    """Bytes at the peak of a step, over those of the process before the model is made."""
    before = resident("VmRSS")
    step = build(name)
    step.run()
    gc.collect()
    CLEAR.write_text("5")  # the peak begins anew
    step.run(), step.run()
    return resident("VmHWM") - before


def resident(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def main() -> None:
    library, name = sys.argv[1:]
    if library == "torch":
        import torch

        import gpuconv

        torch.set_num_threads(gpuconv.thread_count())
    else:
        import gpuconv.cpu.conv
    builders: dict[str, Any] = {"gpuconv": ours, "torch": theirs}
    print(peak(builders[library], name))


if __name__ == "__main__":
    main()
