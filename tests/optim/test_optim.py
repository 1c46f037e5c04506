"""Optimisers: against their formulas in scalar float64 loops, and against PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpuconv import optim
from gpuconv.nn import Parameter
from gpuconv.optim import kernels
from gpuconv.threads import over_shards

SHAPES = [(4, 3, 3, 2), (7,), (1,), (33, 5)]


def parameters(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [Parameter(rng.standard_normal(shape).astype(dtype)) for shape in SHAPES]


def gradients(steps, dtype=np.float64, seed=1):
    rng = np.random.default_rng(seed)
    return [[rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(steps)]


def run(make, steps, dtype=np.float64):
    params = parameters(dtype)
    optimizer = make(params)
    for grads in gradients(steps, dtype):
        optimizer.zero_grad()
        for p, g in zip(params, grads, strict=True):
            p.grad = g.copy()
        optimizer.step()
    return params


def sgd_by_hand(p, grads, lr, momentum=0, nesterov=False, weight_decay=0, dampening=0):
    buffer = None
    for g in grads:
        d = g + weight_decay * p
        if momentum:
            buffer = d if buffer is None else momentum * buffer + (1 - dampening) * d
            d = d + momentum * buffer if nesterov else buffer
        p = p - lr * d
    return p


def adam_by_hand(p, grads, lr, betas, eps, weight_decay, decoupled, amsgrad=False):
    m = v = largest = 0.0
    for t, g in enumerate(grads, 1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        largest = max(largest, v) if amsgrad else v
        p = p - lr * (m / (1 - betas[0] ** t)) / (math.sqrt(largest / (1 - betas[1] ** t)) + eps)
    return p


SGD_CASES = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.03},
    {"lr": 0.05, "momentum": 0.9},
    {"lr": 0.05, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
]
ADAM_CASES = [
    {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
    {"lr": 3e-2, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    {"lr": 3e-2, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.1, "amsgrad": True},
]


@pytest.mark.parametrize("case", SGD_CASES)
def test_sgd_is_its_formula(case):
    params = run(lambda p: optim.SGD(p, **case), 5)
    for i, (start, end) in enumerate(zip(parameters(), params, strict=True)):
        for at in np.ndindex(start.shape):
            expected = sgd_by_hand(start.data[at], [g[i][at] for g in gradients(5)], **case)
            assert abs(end.data[at] - expected) <= 1e-13 * (1 + abs(expected))


@pytest.mark.parametrize("case", ADAM_CASES)
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_is_its_formula(case, decoupled):
    kind = optim.AdamW if decoupled else optim.Adam
    params = run(lambda p: kind(p, **case), 5)
    for i, (start, end) in enumerate(zip(parameters(), params, strict=True)):
        for at in np.ndindex(start.shape):
            seen = [g[i][at] for g in gradients(5)]
            expected = adam_by_hand(start.data[at], seen, **case, decoupled=decoupled)
            assert abs(end.data[at] - expected) <= 1e-12 * (1 + abs(expected))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "case"),
    [("SGD", c) for c in SGD_CASES] + [(n, c) for n in ("Adam", "AdamW") for c in ADAM_CASES],
)
def test_optimizers_equal_pytorch(name, case, dtype):
    torch = pytest.importorskip("torch")
    params = run(lambda p: getattr(optim, name)(p, **case), 20, dtype)
    theirs = [torch.tensor(p.data, requires_grad=True) for p in parameters(dtype)]
    optimizer = getattr(torch.optim, name)(theirs, **case)
    for grads in gradients(20, dtype):
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    bound = 2e-5 if dtype is np.float32 else 1e-12
    for ours, p in zip(params, theirs, strict=True):
        assert np.all(np.abs(ours.data - p.detach().numpy()) <= bound)


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, 0.1, 0.9), optim.Adam, optim.AdamW])
def test_step_keeps_the_array_and_its_type_and_leaves_the_gradient(make):
    for dtype in (np.float32, np.float64):
        params = parameters(dtype)
        params[1].data = params[1].data[::-1]  # no view of it is contiguous
        arrays = [p.data for p in params]
        before = [a.copy() for a in arrays]
        optimizer = make(params)
        for p, g in zip(params, gradients(1, dtype)[0], strict=True):
            p.grad = np.asfortranarray(g)
        grads = [p.grad.copy() for p in params]
        optimizer.step()
        for p, a, old, g in zip(params, arrays, before, grads, strict=True):
            assert p.data is a
            assert a.dtype == dtype
            assert np.all(a != old)
            assert np.array_equal(p.grad, g)


def test_parameters_without_gradient_are_skipped_and_do_not_age():
    params = parameters()
    optimizer = optim.Adam(params, lr=0.1, weight_decay=0.5)
    params[0].grad = np.ones(params[0].shape)
    before = [p.data.copy() for p in params]
    optimizer.step()
    assert optimizer.steps == [1, 0, 0, 0]
    assert [np.array_equal(p.data, b) for p, b in zip(params, before, strict=True)] == [
        False, True, True, True,
    ]  # fmt: skip
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_a_parameter_given_twice_is_updated_once():
    p = Parameter(np.ones(3))
    p.grad = np.ones(3)
    optim.SGD([p, p], lr=0.25).step()
    assert np.array_equal(p.data, np.full(3, 0.75))


def test_shards_change_no_bit():
    rng = np.random.default_rng(3)
    arrays = [rng.random(2 * kernels.GRAIN + 7, dtype=np.float32) for _ in range(4)]
    scalars = tuple(np.float32(s) for s in (1, 0.1, 0.1, 0.999, 0.001, 1e-8, 0.01, 0.03))
    whole, cut = [a.copy() for a in arrays], [a.copy() for a in arrays]
    kernels.adam(*whole, *scalars)
    over_shards(kernels.adam, cut, *scalars, grain=kernels.GRAIN)
    for a, b in zip(whole, cut, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, 0.1, 0.9), optim.Adam, optim.AdamW])
def test_state_dict_resumes_bit_for_bit(make):
    whole = run(make, 6)
    params = parameters()
    first = make(params)
    for step, grads in enumerate(gradients(6)):
        if step == 3:
            saved = first.state_dict()
            saved["arrays"] = {k: a.copy() for k, a in saved["arrays"].items()}
            first = make(params)
            first.lr = 0.7  # load_state_dict brings the old one back
            first.load_state_dict(saved)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        first.step()
    for a, b in zip(whole, params, strict=True):
        assert a.data.tobytes() == b.data.tobytes()


def test_load_state_dict_refuses_what_does_not_fit():
    params = parameters()
    for p in params:
        p.grad = np.ones(p.shape)
    adam = optim.Adam(params)
    adam.step()
    state = adam.state_dict()
    with pytest.raises(ValueError, match="state is Adam's, this optimiser is SGD"):
        optim.SGD(params).load_state_dict(state)
    with pytest.raises(ValueError, match="of 4 parameters, here are 2"):
        optim.Adam(params[:2]).load_state_dict(state)
    wrong = dict(state["arrays"]) | {"exp_avg.1": np.zeros(3)}
    with pytest.raises(ValueError, match=r"parameter 1 needs a state of 2 arrays of shape \(7,\)"):
        optim.Adam(params).load_state_dict(state | {"arrays": wrong})
    with pytest.raises(ValueError, match="unknown arrays in the state: other"):
        optim.Adam(params).load_state_dict(state | {"arrays": state["arrays"] | {"other": wrong}})


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_bad_hyperparameters_are_named(kind, bad):
    names = ["lr", "weight_decay"] + (["momentum", "dampening"] if kind is optim.SGD else ["eps"])
    for name in names:
        with pytest.raises(ValueError, match=f"{kind.__name__}: {name} must be a finite number"):
            kind(parameters(), **{name: bad})
    if kind is not optim.SGD:
        with pytest.raises(ValueError, match=r"betas\[1\] must be a finite number >= 0 and < 1"):
            kind(parameters(), betas=(0.9, bad))
        with pytest.raises(ValueError, match=r"betas\[0\] must be"):
            kind(parameters(), betas=(1.0, 0.9))


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="params is empty"):
        optim.SGD([])
    with pytest.raises(TypeError, match="params must be Parameters, got ndarray"):
        optim.SGD([np.zeros(3)])
    with pytest.raises(TypeError, match="lr must be a number, got"):
        optim.SGD(parameters(), lr="0.1")
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        optim.SGD(parameters(), nesterov=True)
    optimizer = optim.SGD(parameters())
    with pytest.raises(ValueError, match="lr must be a finite number"):
        optimizer.lr = math.nan
    optimizer.params[1].grad = np.zeros((7, 1))
    with pytest.raises(ValueError, match=r"parameter 1 has shape \(7,\), its grad \(7, 1\)"):
        optimizer.step()
    adam = optim.Adam([p := Parameter(np.ones(3))])
    p.grad = np.ones(3)
    adam.step()
    p.data = p.data.astype(np.float32)
    with pytest.raises(ValueError, match="make the optimiser after"):
        adam.step()


# ---- gradients whose squares overflow ------------------------------------------------------------


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize(
    ("dtype", "huge"),
    [("float32", 2e19), ("float32", 3e38), ("float64", 2e154), ("float64", 1e308)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_adam_goes_on_after_a_huge_gradient(kind, dtype, huge, sign):
    """One of `huge`, then 199 of 1 from 1 at lr 0.1: 0.39945 in exact arithmetic, to 5 digits."""
    p = Parameter(np.ones(3, dtype))
    optimizer = kind([p], lr=0.1, weight_decay=0.0)
    for step in range(200):
        p.grad = np.full(3, huge * sign if step == 0 else 1.0, dtype)
        optimizer.step()
    expected = 0.39945 if sign > 0 else 2 - 0.39945
    assert np.all(np.abs(p.data - expected) < 1e-5)
    assert np.all(np.isfinite(optimizer.state_dict()["arrays"]["exp_avg_sq.0"]))


def test_a_gradient_that_is_not_finite_is_not_hidden():
    for bad in (np.inf, np.nan):
        p = Parameter(np.ones(1, np.float32))
        p.grad = np.full(1, bad, np.float32)
        optim.Adam([p]).step()
        assert not np.isfinite(p.data[0])
