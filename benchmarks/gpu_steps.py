"""Whole training steps and epochs on a card, gpuconv's and PyTorch's in turn.

A step is forward, cross-entropy, backward and SGD with momentum. Both libraries begin with the same
weights and take the same images and labels, which lie on the device: eight sets, one after another,
so that no step repeats the one before it. Steps follow each other without waiting, as in training,
and the host's clock runs from one synchronisation to the next.

gpuconv runs in each of PRECISIONS, and PyTorch beside it in the modes that compute alike: "strict"
float32, its default with all it offers ("tf32", channels-last, cuDNN's benchmark), the default as a
CUDA "graph", and autocast in "bf16" and "fp16", there with scaled gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gpuconv import autograd, data, models, nn, optim
from gpuconv.arrays import to_device, to_numpy
from gpuconv.train import Trainer, recorded

CASES = (("lenet", 64), ("lenet", 128), ("lenet", 512), ("resnet18", 128), ("vgg16", 32))
PRECISIONS = ("ieee", "tf32-conv", "bf16", "fp16")
# PyTorch's modes, and the precision that each stands beside.
MODES = {
    "strict": "ieee",
    "tf32": "tf32-conv",
    "graph": "tf32-conv",
    "bf16": "bf16",
    "fp16": "fp16",
}
# How far the losses of a mode may be from ours, and ours from those in float32, as a part of them.
NEAR = {"strict": 1e-3, "tf32": 0.01, "graph": 0.01, "bf16": 0.05, "fp16": 0.02}
NEAR_FLOAT32 = {"ieee": 0.0, "tf32-conv": 0.01, "bf16": 0.05, "fp16": 0.02}
SETS, FIRST, WARM, ROUNDS = 8, 3, 5, 5
RATE, MOMENTUM = 0.01, 0.9
EPOCH_BATCH, EPOCHS = 128, 3


class Side(NamedTuple):
    """One library's step. `step(i)` takes set i and returns the loss, still on the device;
    `reset()` brings back the first weights.
    """

    step: Callable[[int], Any]
    reset: Callable[[], None]
    synchronize: Callable[[], object]

    def first_losses(self) -> list[float]:
        self.reset()
        return [float(self.step(i)) for i in range(FIRST)]

    def seconds(self, least: float) -> float:
        """Seconds a step, of as many as take `least` seconds; the first few are not counted."""
        for i in range(WARM):
            self.step(i % SETS)
        self.synchronize()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < least or count < SETS:
            self.step(count % SETS)
            count += 1
            if count % SETS == 0:  # a queue without an end would hide what the last steps take
                self.synchronize()
        self.synchronize()
        return (time.perf_counter() - began) / count


def sets_of(model: nn.Module, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    shape = (batch, *(model.input_shape or ()))
    return [(rng.standard_normal(shape, np.float32), rng.integers(0, 10, batch))
            for _ in range(SETS)]  # fmt: skip


def network(name: str) -> nn.Module:
    """The first weights of a seed; without dropout, whose masks differ between the libraries."""
    model = models.MODELS[name](seed=0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def ours(
    name: str,
    batch: int,
    device: str,
    synchronize: Callable[[], object],
    precision: str = "ieee",
    record: bool = True,
) -> Side:
    """record: replay the step (gpuconv.train.recorded), as a Trainer does."""
    model, loss = network(name).to(device), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    weights = {key: np.array(to_numpy(a)) for key, a in model.state_dict().items()}
    moments = optimizer.state_dict()
    scaler = optim.LossScaler(device) if precision == "fp16" else None
    scale = scaler.state_dict() if scaler else {}
    sets = [(to_device(x, device), to_device(y, device)) for x, y in sets_of(model, batch)]

    def plain(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        with autograd.precision(precision, scaler and scaler.factor):
            scores = model(x)
        value = loss(scores, y)
        value.backward()
        if scaler is not None:
            scaler.unscale(optimizer.params)
        optimizer.step(scaler)
        return value

    once = recorded(plain, model, optimizer) if record else plain

    def reset() -> None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        if scaler is not None:
            scaler.load_state_dict(scale)

    return Side(lambda i: once(*sets[i]), reset, synchronize)


def alike(found: list[float], expected: list[float], near: float) -> None:
    """ArithmeticError where a loss differs by more than `near` of it, or is none."""
    for step, (a, b) in enumerate(zip(found, expected, strict=True), 1):
        if not abs(a - b) <= near * abs(b):
            raise ArithmeticError(f"the loss of step {step} is {a:.6g}, not {b:.6g}")


def compare(
    ours: Callable[[str, bool], Side], rivals: dict[str, Callable[[], Side]], seconds: float
) -> list[dict[str, Any]]:
    """gpuconv's step alone in each precision, in float32 beside the same step unrecorded, and
    beside each of PyTorch's modes; ratio above 1: ours is faster.

    ours(precision, record). Each side's first losses are compared before the times and again after
    them. A mode that this PyTorch cannot run is named; other losses than ours are an
    ArithmeticError.
    """
    sides: list[dict[str, Any]] = []
    part, exact = seconds / ROUNDS, None
    for precision in PRECISIONS:
        mine = ours(precision, True)
        first = mine.first_losses()
        exact = exact or first
        alike(first, exact, NEAR_FLOAT32[precision])
        alone = [mine.seconds(part) for _ in range(ROUNDS)]
        alike(mine.first_losses(), first, 0.0)
        side = {"precision": precision}
        sides.append(side | {"ours": float(np.median(alone)), "first_losses": first})
        if precision == "ieee":
            timed = _beside(mine, partial(ours, precision, False), first, 0.0, part)
            sides.append(side | {"mode": "unrecorded", "library": "gpuconv"} | timed)
        for mode, make in rivals.items():
            if MODES[mode] == precision:
                sides.append(
                    side | {"mode": mode} | _tried(_beside, mine, make, first, NEAR[mode], part)
                )
    return sides


def _beside(
    mine: Side, make: Callable[[], Side], first: list[float], near: float, seconds: float
) -> dict[str, Any]:
    """Rounds of ours and of another side in turn, whose losses are near ours before and after."""
    other = make()
    alike(other.first_losses(), first, near)
    pairs = [(mine.seconds(seconds), other.seconds(seconds)) for _ in range(ROUNDS)]
    alike(mine.first_losses(), first, 0.0)
    alike(other.first_losses(), first, near)
    return in_turn(pairs)


def _tried(act: Callable[..., dict[str, Any]], *given: Any) -> dict[str, Any]:
    """What `act` returns; the error where this PyTorch cannot do it."""
    try:
        return act(*given)
    except (ImportError, RuntimeError) as error:
        return {"error": " ".join(f"not timed: {error}".split())[:300]}


def in_turn(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    ours_median, their_median = (float(np.median(side)) for side in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    return {
        "ours": ours_median,
        "theirs": their_median,
        "ratio": float(np.median(ratios)),
        "spread": [ratios[0], ratios[-1]],
    }


# ---- epochs --------------------------------------------------------------------------------------


def compare_epochs(
    device: str, images: data.Dataset, rivals: dict[str, Callable[[int], list[float]]]
) -> list[dict[str, Any]]:
    """As `compare`, of whole epochs: all but the first, in which both compile and plan."""
    sides: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        mine = our_epochs(device, images, 1 + EPOCHS, precision)[1:]
        side = {"precision": precision}
        sides.append(side | {"ours": float(np.median(mine))})
        for mode, run in rivals.items():
            if MODES[mode] == precision:
                sides.append(side | {"mode": mode} | _tried(_epochs_beside, mine, run))
    return sides


def _epochs_beside(mine: list[float], run: Callable[[int], list[float]]) -> dict[str, Any]:
    return in_turn(list(zip(mine, run(1 + EPOCHS)[1:], strict=True)))


def our_epochs(device: str, images: data.Dataset, epochs: int, precision: str) -> list[float]:
    """Seconds of the training steps of each epoch of LeNet, by `Trainer.fit`; no evaluation."""
    model = network("lenet").to(device)
    update = optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), update, seed=0, progress=False, precision=precision
    )
    batch = min(EPOCH_BATCH, len(images))
    loader = data.Loader(images, batch, seed=0, size=32, mean=33.3 / 255, std=78.6 / 255)
    return [row["seconds"] for row in trainer.fit(loader, None, epochs)]
