"""Learning-rate schedules: by hand, and against PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpuconv import optim

ONE_CYCLES = [
    {},
    {"pct_start": 0.5, "anneal_strategy": "linear", "div_factor": 10.0, "final_div_factor": 100.0},
    {"three_phase": True, "pct_start": 0.4},
    {"pct_start": 0.0},
    {"pct_start": 0.9, "cycle_momentum": False},
]


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ONE_CYCLES)
def test_one_cycle_equals_pytorch(case):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.5)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=50, **case)
    ours = optim.OneCycleLR(0.3, 50, **case)
    for step in range(50):
        group = optimizer.param_groups[0]
        assert math.isclose(ours(step), group["lr"], rel_tol=1e-12)
        expected = ours.momentum(step) if case.get("cycle_momentum", True) else 0.5
        assert math.isclose(expected, group["momentum"], rel_tol=1e-12)
        optimizer.step()
        theirs.step()


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_step_and_cosine_equal_pytorch():
    torch = pytest.importorskip("torch")
    for ours, name, arguments in [
        (optim.StepLR(0.4, 7, 0.3), "StepLR", {"step_size": 7, "gamma": 0.3}),
        (optim.CosineLR(0.4, 30, 0.01), "CosineAnnealingLR", {"T_max": 30, "eta_min": 0.01}),
    ]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
        theirs = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
        for step in range(31):
            # PyTorch multiplies from step to step, and so gathers rounding errors
            assert math.isclose(ours(step), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
            optimizer.step()
            theirs.step()


def test_schedules_by_hand():
    assert [optim.StepLR(1.0, 2, 0.5)(s) for s in range(5)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = optim.CosineLR(1.0, 4)
    assert np.allclose([cosine(s) for s in range(5)], [1, 0.5 + 8**-0.5, 0.5, 0.5 - 8**-0.5, 0])
    cycle = optim.OneCycleLR(1.0, 11, pct_start=6 / 11, anneal_strategy="linear", div_factor=2.0)
    assert np.allclose([cycle(s) for s in (0, 1, 5, 10)], [0.5, 0.6, 1.0, 0.5e-4])
    assert cycle.momentum(0) == 0.95
    assert optim.OneCycleLR(1.0, 1)(0) > 0  # one step: no division by zero
    assert optim.StepLR(1.0, 2).describe() == {
        "name": "StepLR", "lr": 1.0, "step_size": 2, "gamma": 0.1,
    }  # fmt: skip


def test_bad_schedules_are_named():
    with pytest.raises(ValueError, match="step_size must be at least 1, got 0"):
        optim.StepLR(0.1, 0)
    with pytest.raises(TypeError, match="t_max must be an int, got"):
        optim.CosineLR(0.1, 2.5)
    with pytest.raises(ValueError, match="max_lr must be a finite number"):
        optim.OneCycleLR(math.nan, 10)
    with pytest.raises(ValueError, match="pct_start must be a finite number >= 0 and <= 1"):
        optim.OneCycleLR(0.1, 10, pct_start=1.5)
    with pytest.raises(ValueError, match="unknown anneal_strategy 'cosine'; did you mean 'cos'"):
        optim.OneCycleLR(0.1, 10, anneal_strategy="cosine")
    with pytest.raises(ValueError, match="step 10 is beyond total_steps=10"):
        optim.OneCycleLR(0.1, 10)(10)
