"""Loss scaling against PyTorch's GradScaler, and against a statement of it in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpuconv import optim
from gpuconv.arrays import to_device, to_numpy
from gpuconv.nn import Parameter

STEPS = 24
BAD = {0: np.inf, 1: np.nan, 7: -np.inf, 8: np.inf, 15: np.nan}


def gradients():
    """A step's gradients of two parameters, before they were scaled."""
    rng = np.random.default_rng(11)
    for step in range(STEPS):
        first, second = rng.normal(size=(3, 5)), rng.normal(size=7)
        yield step, first.astype(np.float32), second.astype(np.float32)


OPTIMIZERS = [  # by PyTorch's names too
    ("Adam", {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.01}),
    ("AdamW", {"lr": 0.01}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.05}),
]


def run(device, name, arguments, clip=None, steps=STEPS):
    """(parameters, scaler, optimiser, scale after each step)."""
    start = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5), np.ones(7, np.float32)
    params = [Parameter(to_device(a.copy(), device)) for a in start]
    optimizer = getattr(optim, name)(params, **arguments)
    scaler = optim.LossScaler(device, scale=2.0**12, growth=3)
    scales = []
    for step, *found in gradients():
        if step == steps:
            break
        scale, counts = scaler.scale, list(optimizer.steps)
        for p, g in zip(params, found, strict=True):
            scaled = g * np.float32(scale)
            if step in BAD and p is params[-1]:
                scaled[3] = BAD[step]
            p.grad = to_device(scaled, device)
        scaler.unscale(params)
        if clip is not None:
            optim.clip_grad_norm(params, clip, scaler)
        optimizer.step(scaler)
        scaler.settle(optimizer, counts)
        scales.append(scaler.scale)
    return params, scaler, optimizer, scales


@pytest.mark.parametrize("device", ["reference", "sim"])
def test_the_scale_follows_its_rule(device):
    scale, good, expected, skipped = 2.0**12, 0, [], 0
    for step in range(STEPS):
        if step in BAD:
            scale, good, skipped = scale / 2, 0, skipped + 1
        else:
            good += 1
            if good == 3:
                scale, good = scale * 2, 0
        expected.append(scale)
    _, scaler, optimizer, scales = run(device, "Adam", {})
    assert scales == expected
    assert scaler.skipped == skipped == 5
    assert optimizer.steps == [STEPS - skipped] * 2
    assert scaler.state_dict() == {"scale": scale, "good": good}


@pytest.mark.torch
@pytest.mark.parametrize("device", ["reference", "sim"])
@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize(("name", "arguments"), OPTIMIZERS)
def test_pytorchs_scaler_gives_the_same_weights(device, clip, name, arguments):
    torch = pytest.importorskip("torch")
    params, _, _, scales = run(device, name, arguments, clip)
    theirs = [torch.linspace(-1, 1, 15).reshape(3, 5).clone(), torch.ones(7)]
    theirs = [torch.nn.Parameter(t) for t in theirs]
    optimizer = getattr(torch.optim, name)(theirs, **arguments)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    for (step, *found), expected in zip(gradients(), scales, strict=True):
        loss = sum((t * torch.from_numpy(g)).sum() for t, g in zip(theirs, found, strict=True))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if step in BAD:
            theirs[-1].grad[3] = float(BAD[step])
        scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == expected
    for p, t in zip(params, theirs, strict=True):
        np.testing.assert_allclose(to_numpy(p.data), t.detach().numpy(), rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("device", ["reference", "sim"])
def test_adam_does_not_count_a_skipped_step(device):
    """Steps 0 and 1 are skipped: step 2 moves every weight by the rate, as a first step does."""
    params, *_ = run(device, "Adam", {"lr": 0.25}, steps=3)
    moved = to_numpy(params[1].data) - 1
    np.testing.assert_allclose(np.abs(moved), 0.25, rtol=1e-5)


@pytest.mark.parametrize("device", ["reference", "sim"])
def test_lars_keeps_still_with_a_skipped_step_and_goes_on(device):
    """By its formula over the steps that are not skipped; of one axis no ratio and no decay."""
    rate, momentum, decay, trust = 0.5, 0.9, 0.01, 0.1
    arguments = {"lr": rate, "momentum": momentum, "weight_decay": decay, "trust": trust}
    params, scaler, optimizer, _ = run(device, "LARS", arguments)
    expected = [np.linspace(-1, 1, 15).reshape(3, 5), np.ones(7)]
    buffers = [np.zeros(p.shape) for p in expected]
    for step, *found in gradients():
        if step in BAD:
            continue
        for p, b, g in zip(expected, buffers, found, strict=True):
            d = g.astype(np.float64)
            if p.ndim > 1:
                own = np.sqrt((p**2).sum())
                ratio = trust * own / (np.sqrt((d**2).sum()) + decay * own)
                d = ratio * (d + decay * p)
            b[...] = momentum * b + d
            p -= rate * b
    for p, exact in zip(params, expected, strict=True):
        np.testing.assert_allclose(to_numpy(p.data), exact, rtol=1e-5, atol=1e-6)
    assert scaler.skipped == len(BAD)
    assert optimizer.steps == [STEPS - len(BAD)] * 2


@pytest.mark.parametrize("device", ["reference", "sim"])
def test_averages_keep_still_with_a_skipped_step(device):
    from gpuconv import nn

    model = nn.Linear(2, 1, rng=0).to(device)
    average, scaler = optim.EMA(model, 0.5), optim.LossScaler(device)
    average.update(scaler)
    before = {name: a.copy() for name, a in average.state_dict().items()}
    for p in model.parameters():
        p.data = to_device(np.full(p.shape, 9, np.float32), device)
        p.grad = to_device(np.full(p.shape, np.inf, np.float32), device)
    scaler.unscale(model.parameters())
    average.update(scaler)
    for name, a in average.state_dict().items():
        np.testing.assert_array_equal(a, before[name])


@pytest.mark.parametrize("device", ["reference", "sim"])
def test_a_scale_below_1_ends_the_run_and_nothing_moves_any_more(device):
    p = Parameter(to_device(np.ones(3, np.float32), device))
    optimizer, scaler = optim.SGD([p], lr=1.0), optim.LossScaler(device, scale=2.0)
    for bad in (True, True, False):
        p.grad = to_device(np.full(3, np.inf if bad else 1, np.float32), device)
        scaler.unscale([p])
        optimizer.step(scaler)
    np.testing.assert_array_equal(to_numpy(p.data), 1)
    assert scaler.scale == 0.5
    with pytest.raises(FloatingPointError, match="the loss scale fell below 1: gradients are not"):
        scaler.settle(optimizer, [0])


@pytest.mark.parametrize("device", ["reference", "sim"])
def test_its_state_goes_on_where_it_was(device):
    scaler = optim.LossScaler(device, scale=8, growth=3)
    scaler.load_state_dict({"scale": 4.0, "good": 2})
    p = Parameter(to_device(np.ones(3, np.float32), device))
    p.grad = to_device(np.full(3, 4, np.float32), device)
    scaler.unscale([p])
    np.testing.assert_array_equal(to_numpy(p.grad), 1)
    assert scaler.state_dict() == {"scale": 8.0, "good": 0}
    assert math.isfinite(scaler.scale)
    with pytest.raises(ValueError, match="LossScaler: scale must be"):
        scaler.load_state_dict({"scale": 0.5, "good": 2})
    with pytest.raises(TypeError, match="LossScaler: growth"):
        optim.LossScaler(device, growth=1.5)
