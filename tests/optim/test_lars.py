"""LARS and the warm-up: for large batches."""

import numpy as np
import pytest

from gpuconv import nn, optim, train
from gpuconv.arrays import to_device, to_numpy


def parameters(dtype=np.float64, device="cpu"):
    rng = np.random.default_rng(3)
    made = []
    for shape in ((4, 3, 3, 3), (5, 7), (5,)):
        p = nn.Parameter(rng.standard_normal(shape).astype(dtype))
        p.data = to_device(p.data, device)
        made.append(p)
    return made, [[rng.standard_normal(p.shape) for p in made] for _ in range(3)]


def expected(params, gradients, lr, momentum, decay, trust):
    """The article's algorithm 1, element by element in float64."""
    weights = [to_numpy(p.data).astype(np.float64) for p in params]
    buffers = [None] * len(weights)
    for of_step in gradients:
        for i, (w, g) in enumerate(zip(weights, of_step, strict=True)):
            d = g
            if w.ndim > 1:
                size, slope = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
                d = trust * size / (slope + decay * size) * (g + decay * w)
            buffers[i] = d if buffers[i] is None else momentum * buffers[i] + d
            weights[i] = w - lr * buffers[i]
    return weights


@pytest.mark.parametrize(
    ("device", "dtype", "bound"),
    [("cpu", np.float64, 1e-13), ("cpu", np.float32, 1e-6), ("sim", np.float32, 1e-6)],
)
def test_lars(device, dtype, bound):
    params, gradients = parameters(dtype, device)
    settings = {"lr": 0.5, "momentum": 0.9, "trust": 0.02}
    optimizer = optim.LARS(params, weight_decay=0.1, **settings)
    before = expected(params, gradients, decay=0.1, **settings)
    for of_step in gradients:
        for p, g in zip(params, of_step, strict=True):
            p.grad = to_device(g.astype(dtype), device)
        given = [p.grad for p in params]
        optimizer.step()
        assert all(p.grad is g for p, g in zip(params, given, strict=True))
    for p, w in zip(params, before, strict=True):
        assert (np.abs(to_numpy(p.data) - w) <= bound * np.abs(w).max()).all()


def test_lars_of_zeros():
    """Weights of zeros, and gradients of zeros, move as with SGD."""
    a, b = nn.Parameter(np.zeros((2, 2))), nn.Parameter(np.ones((2, 2)))
    optimizer = optim.LARS([a, b], lr=0.5, momentum=0.0)
    a.grad, b.grad = np.ones((2, 2)), np.zeros((2, 2))
    optimizer.step()
    assert (a.data == -0.5).all()
    assert (b.data == 1).all()


def test_lars_state_is_sgds():
    params, gradients = parameters()
    optimizer = optim.LARS(params, weight_decay=0.1)
    for p, g in zip(params, gradients[0], strict=True):
        p.grad = g
    optimizer.step()
    other = optim.LARS(parameters()[0], weight_decay=0.2)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["weight_decay"] == 0.1
    with pytest.raises(ValueError, match="trust"):
        optim.LARS(params, trust=0.0)


def test_warmup():
    after = optim.CosineLR(0.4, t_max=8)
    schedule = optim.WarmupLR(after, steps=4, share=0.25)
    shares = [0.25, 0.4375, 0.625, 0.8125, 1, 1]
    for step, share in enumerate(shares):
        assert schedule(step) == pytest.approx(after(step) * share, rel=1e-15)
    assert schedule.momentum(0) is None
    assert schedule.describe()["after"] == after.describe()
    cycle = optim.OneCycleLR(0.4, total_steps=9)
    assert optim.WarmupLR(cycle, 2).momentum(3) == cycle.momentum(3)
    for bad in ({"steps": 0}, {"steps": 2, "share": 1.5}, {"steps": 2, "after": -1}):
        with pytest.raises(ValueError, match="WarmupLR"):
            optim.WarmupLR(**{"after": 0.1, **bad})


def test_linear_scaling():
    """Goyal's rule: the batch four times, the rate too; it begins with the small batch's."""
    changes = {"lr": 0.1, "batch": 64, "base_batch": 16, "warmup": 2, "schedule": "step"}
    config = train.run_config(epochs=30, **changes)
    schedule = train.config.make_schedule(config, batches=10)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(10) == pytest.approx(0.25)
    assert schedule(20) == pytest.approx(0.4)
    assert schedule(100) == pytest.approx(0.04)
    config = train.run_config(**{**changes, "schedule": "none", "optimizer": "lars"})
    optimizer = train.config.make_optimizer(config, nn.Linear(2, 2))
    assert isinstance(optimizer, optim.LARS)
    assert optimizer.lr == pytest.approx(0.4)
    assert train.config.make_schedule(config, batches=10)(99) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="onecycle has a warm-up of its own"):
        train.run_config(warmup=1)
