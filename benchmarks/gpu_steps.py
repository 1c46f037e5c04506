"""Whole training steps and epochs on a card, gpuconv's and PyTorch's in turn.

A step is forward, cross-entropy, backward and SGD with momentum. Both libraries begin with the same
weights and take the same images and labels, which lie on the device: eight sets, one after another,
so that no step repeats the one before it. Steps follow each other without waiting, as in training,
and the host's clock runs from one synchronisation to the next.

PyTorch runs in four modes: "strict" float32, its default with all it offers ("tf32", channels-last,
cuDNN's benchmark), "bf16" autocast, and the default as a CUDA "graph".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gpuconv import data, models, nn, optim
from gpuconv.arrays import to_device, to_numpy
from gpuconv.train import Trainer, recorded

CASES = (("lenet", 64), ("lenet", 128), ("lenet", 512), ("resnet18", 128), ("vgg16", 32))
MODES = ("strict", "tf32", "bf16", "graph")
NEAR = {"strict": 1e-3, "tf32": 0.01, "bf16": 0.05, "graph": 0.01}  # of a loss
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
    name: str, batch: int, device: str, synchronize: Callable[[], object], record: bool = True
) -> Side:
    """record: replay the step (gpuconv.train.recorded), as a Trainer does."""
    model, loss = network(name).to(device), nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    weights = {key: np.array(to_numpy(a)) for key, a in model.state_dict().items()}
    moments = optimizer.state_dict()
    sets = [(to_device(x, device), to_device(y, device)) for x, y in sets_of(model, batch)]

    def plain(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return value

    once = recorded(plain, model, optimizer) if record else plain

    def reset() -> None:
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)

    return Side(lambda i: once(*sets[i]), reset, synchronize)


def theirs(name: str, batch: int, mode: str, device: str) -> Side:
    """PyTorch's own modules: torchvision's where there is one of this name."""
    import torch

    net = rival_network(name)
    begun = network(name)
    weights = {key: torch.from_numpy(np.array(a)) for key, a in begun.state_dict().items()}
    form = torch.channels_last if mode != "strict" and name != "lenet" else torch.contiguous_format
    net = net.to(device).to(memory_format=form).train()
    update = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    sets = [
        (
            torch.from_numpy(x).to(device).contiguous(memory_format=form),
            torch.from_numpy(y).to(device),
        )
        for x, y in sets_of(begun, batch)
    ]

    def once(x: Any, y: Any) -> Any:
        precise(mode)
        update.zero_grad(set_to_none=mode != "graph")
        with torch.autocast(device, torch.bfloat16, enabled=mode == "bf16"):
            value = torch.nn.functional.cross_entropy(net(x), y)
        value.backward()
        update.step()
        return value.detach()

    def reset() -> None:
        net.load_state_dict(weights, strict=False)
        for state in update.state.values():
            if state.get("momentum_buffer") is not None:  # in place: a graph holds its address
                state["momentum_buffer"].zero_()

    def on_a_card() -> object:
        return torch.cuda.synchronize() if device == "cuda" else None

    if mode == "graph" and device == "cuda":
        return Side(captured(once, sets), reset, on_a_card)
    return Side(lambda i: once(*sets[i]), reset, on_a_card)


def precise(mode: str) -> None:
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = mode != "strict"
    torch.backends.cuda.matmul.allow_tf32 = False  # as it comes: TF32 is for convolutions


def captured(once: Callable[[Any, Any], Any], sets: list[Any]) -> Callable[[int], Any]:
    """`once` as a CUDA graph, over inputs that are copied into its own."""
    import torch

    x, y = (a.clone() for a in sets[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once(x, y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = once(x, y)

    def step(i: int) -> Any:
        x.copy_(sets[i][0])
        y.copy_(sets[i][1])
        graph.replay()
        return value

    return step


def rival_network(name: str) -> Any:
    """PyTorch's network with the parameters' names of ours, without dropout."""
    import torch

    if name == "lenet":
        t = torch.nn
        parts = {
            "conv1": t.Conv2d(1, 6, 5), "relu1": t.ReLU(), "pool1": t.MaxPool2d(2),
            "conv2": t.Conv2d(6, 16, 5), "relu2": t.ReLU(), "pool2": t.MaxPool2d(2),
            "flat": t.Flatten(), "fc1": t.Linear(400, 120), "relu3": t.ReLU(),
            "fc2": t.Linear(120, 100), "relu4": t.ReLU(), "fc3": t.Linear(100, 10),
        }  # fmt: skip
        net = t.Sequential()
        for key, part in parts.items():
            net.add_module(key, part)
        return net
    import torchvision

    net = getattr(torchvision.models, name)(weights=None)
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return net


def alike(found: list[float], expected: list[float], near: float) -> None:
    """ArithmeticError where a loss differs by more than `near` of it, or is none."""
    for step, (a, b) in enumerate(zip(found, expected, strict=True), 1):
        if not abs(a - b) <= near * abs(b):
            raise ArithmeticError(f"the loss of step {step} is {a:.6g}, not {b:.6g}")


def compare(
    mine: Side, plain: Side, rivals: dict[str, Callable[[], Side]], seconds: float
) -> list[dict[str, Any]]:
    """gpuconv's step alone, beside `plain`, the same step unrecorded, and beside each of PyTorch's
    modes; ratio above 1: ours is faster.

    Each side's first losses are compared before the times and again after them. A mode that this
    PyTorch cannot run is named; other losses than ours are an ArithmeticError.
    """
    first = mine.first_losses()
    alone = [mine.seconds(seconds / ROUNDS) for _ in range(ROUNDS)]
    alike(mine.first_losses(), first, 0.0)
    sides: list[dict[str, Any]] = [{"ours": float(np.median(alone)), "first_losses": first}]
    alike(plain.first_losses(), first, 0.0)
    part = seconds / ROUNDS
    pairs = [(mine.seconds(part), plain.seconds(part)) for _ in range(ROUNDS)]
    sides.append({"mode": "unrecorded", "library": "gpuconv"} | in_turn(pairs))
    for mode, make in rivals.items():
        try:
            other = make()
            alike(other.first_losses(), first, NEAR[mode])
            pairs = [(mine.seconds(part), other.seconds(part)) for _ in range(ROUNDS)]
            alike(mine.first_losses(), first, 0.0)
            alike(other.first_losses(), first, NEAR[mode])
            sides.append({"mode": mode} | in_turn(pairs))
        except (ImportError, RuntimeError) as error:
            sides.append({"mode": mode, "error": " ".join(f"not timed: {error}".split())[:300]})
    return sides


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
    mine = our_epochs(device, images, 1 + EPOCHS)[1:]
    sides: list[dict[str, Any]] = [{"ours": float(np.median(mine))}]
    for mode, run in rivals.items():
        try:
            other = run(1 + EPOCHS)[1:]
        except (ImportError, RuntimeError) as error:
            sides.append({"mode": mode, "error": " ".join(f"not timed: {error}".split())[:300]})
            continue
        sides.append({"mode": mode} | in_turn(list(zip(mine, other, strict=True))))
    return sides


def our_epochs(device: str, images: data.Dataset, epochs: int) -> list[float]:
    """Seconds of the training steps of each epoch of LeNet, by `Trainer.fit`; no evaluation."""
    model = network("lenet").to(device)
    update = optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    trainer = Trainer(model, nn.CrossEntropyLoss(), update, seed=0, progress=False)
    batch = min(EPOCH_BATCH, len(images))
    loader = data.Loader(images, batch, seed=0, size=32, mean=33.3 / 255, std=78.6 / 255)
    return [row["seconds"] for row in trainer.fit(loader, None, epochs)]


def their_epochs(mode: str, device: str, images: data.Dataset, epochs: int) -> list[float]:
    """The same of PyTorch: the set lies on the device, and is shuffled there."""
    import torch

    net = rival_network("lenet").to(device).train()
    update = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    pixels = np.pad(images.images, ((0, 0), (0, 0), (2, 2), (2, 2))).astype(np.float32)
    x = torch.from_numpy((pixels - 33.3) / 78.6).to(device)
    y = torch.from_numpy(images.labels.astype(np.int64)).to(device)

    def once(some: Any, classes: Any) -> Any:
        precise(mode)
        update.zero_grad(set_to_none=mode != "graph")
        value = torch.nn.functional.cross_entropy(net(some), classes)
        value.backward()
        update.step()
        return value.detach()

    batch, seconds = min(EPOCH_BATCH, len(x)), []
    step: Callable[[int], Any] | None = None
    sets: list[Any] = [(x[:batch], y[:batch])]
    if mode == "graph" and device == "cuda":
        step = captured(once, sets)
    for _ in range(epochs):
        order, total = torch.randperm(len(x), device=device), torch.zeros((), device=device)
        began = time.perf_counter()
        for begin in range(0, len(x), batch):
            chosen = order[begin : begin + batch]
            sets[0] = x[chosen], y[chosen]
            total += step(0) if step and len(chosen) == batch else once(*sets[0])
        total.item()  # waits for the last step
        seconds.append(time.perf_counter() - began)
    return seconds
