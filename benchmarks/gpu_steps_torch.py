"""PyTorch's training steps and epochs, which gpu_steps.py holds ours against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_steps import EPOCH_BATCH, MOMENTUM, RATE, Side, network, sets_of

from gpuconv import data


def theirs(name: str, batch: int, mode: str, device: str) -> Side:
    """PyTorch's own modules: torchvision's where there is one of this name."""
    net = rival_network(name)
    begun = network(name)
    weights = {key: torch.from_numpy(np.array(a)) for key, a in begun.state_dict().items()}
    form = torch.channels_last if mode != "strict" and name != "lenet" else torch.contiguous_format
    net = net.to(device).to(memory_format=form).train()
    update = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    once, reset_scale = step_of(net, update, mode, device)
    sets = [
        (
            torch.from_numpy(x).to(device).contiguous(memory_format=form),
            torch.from_numpy(y).to(device),
        )
        for x, y in sets_of(begun, batch)
    ]

    def reset() -> None:
        net.load_state_dict(weights, strict=False)
        for state in update.state.values():
            if state.get("momentum_buffer") is not None:  # in place: a graph holds its address
                state["momentum_buffer"].zero_()
        reset_scale()

    def on_a_card() -> object:
        return torch.cuda.synchronize() if device == "cuda" else None

    if mode == "graph" and device == "cuda":
        return Side(captured(once, sets), reset, on_a_card)
    return Side(lambda i: once(*sets[i]), reset, on_a_card)


def step_of(net: Any, update: Any, mode: str, device: str) -> tuple[Any, Callable[[], object]]:
    """PyTorch's training step, a function of images and labels that returns the loss, and what
    brings back the first loss scale.
    """
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mode)
    scaler = torch.amp.GradScaler(device, enabled=mode == "fp16")
    scale = scaler.state_dict()

    def once(x: Any, y: Any) -> Any:
        precise(mode)
        update.zero_grad(set_to_none=mode != "graph")
        with torch.autocast(device, half or torch.bfloat16, enabled=half is not None):
            value = torch.nn.functional.cross_entropy(net(x), y)
        scaler.scale(value).backward()
        scaler.step(update)
        scaler.update()
        return value.detach()

    return once, lambda: scaler.load_state_dict(scale)


def precise(mode: str) -> None:
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = mode != "strict"
    torch.backends.cuda.matmul.allow_tf32 = False  # as it comes: TF32 is for convolutions


def captured(once: Callable[[Any, Any], Any], sets: list[Any]) -> Callable[[int], Any]:
    """`once` as a CUDA graph, over inputs that are copied into its own."""
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


def their_epochs(mode: str, device: str, images: data.Dataset, epochs: int) -> list[float]:
    """The same of PyTorch: the set lies on the device, and is shuffled there."""
    net = rival_network("lenet").to(device).train()
    update = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)
    pixels = np.pad(images.images, ((0, 0), (0, 0), (2, 2), (2, 2))).astype(np.float32)
    x = torch.from_numpy((pixels - 33.3) / 78.6).to(device)
    y = torch.from_numpy(images.labels.astype(np.int64)).to(device)

    once, _ = step_of(net, update, mode, device)
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
