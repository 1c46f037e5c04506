"""Optimisers and schedules: against their formulas in scalar float64 loops, and against PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpuconv import nn, optim
from gpuconv.nn import Parameter
from gpuconv.optim import kernels

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
            p.add_grad(g.copy())
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


def adam_by_hand(p, grads, lr, betas, eps, weight_decay, decoupled):
    m = v = 0.0
    for t, g in enumerate(grads, 1):
        if decoupled:
            p = p - lr * weight_decay * p
        else:
            g = g + weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0] ** t)) / (math.sqrt(v / (1 - betas[1] ** t)) + eps)
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
    size = 2 * kernels.GRAIN + 7
    arrays = [rng.random(size, dtype=np.float32) for _ in range(4)]
    scalars = tuple(np.float32(s) for s in (1, 0.1, 0.1, 0.999, 0.001, 0.01, 0.03, 1e-8))
    whole, cut = [a.copy() for a in arrays], [a.copy() for a in arrays]
    kernels.adam(*whole, *scalars)
    kernels.update(kernels.adam, tuple(cut), scalars)
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
    with pytest.raises(TypeError, match="t_max must be a whole number, got"):
        optim.CosineLR(0.1, 2.5)
    with pytest.raises(ValueError, match="max_lr must be a finite number"):
        optim.OneCycleLR(math.nan, 10)
    with pytest.raises(ValueError, match="pct_start must be at most 1"):
        optim.OneCycleLR(0.1, 10, pct_start=1.5)
    with pytest.raises(ValueError, match="unknown anneal_strategy 'cosine'; did you mean 'cos'"):
        optim.OneCycleLR(0.1, 10, anneal_strategy="cosine")
    with pytest.raises(ValueError, match="step 10 is beyond total_steps=10"):
        optim.OneCycleLR(0.1, 10)(10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clip_grad_norm(dtype):
    params = parameters(dtype)
    for p, g in zip(params[:3], gradients(1, dtype)[0], strict=False):
        p.grad = np.asfortranarray(g)
    before = [p.grad.copy() for p in params[:3]]
    norm = math.sqrt(sum(float(x) ** 2 for g in before for x in g.ravel()))
    assert math.isclose(optim.clip_grad_norm(params, 1e9), norm, rel_tol=1e-12)
    assert all(np.array_equal(p.grad, b) for p, b in zip(params, before, strict=False))
    assert math.isclose(optim.clip_grad_norm(params, 0.5), norm, rel_tol=1e-12)
    for p, b in zip(params, before, strict=False):
        assert np.all(np.abs(p.grad - b * (0.5 / (norm + 1e-6))) <= np.finfo(dtype).eps * abs(b))
    assert params[3].grad is None


def test_clip_grad_norm_shows_nonfinite_and_does_not_overflow():
    p = Parameter(np.zeros(2, np.float32))
    p.grad = np.array([3e30, 4e30], np.float32)
    assert math.isclose(optim.clip_grad_norm([p], 1.0), 5e30, rel_tol=1e-6)
    assert np.allclose(p.grad, [0.6, 0.8])
    p.grad = np.array([math.nan, 1], np.float32)
    assert math.isnan(optim.clip_grad_norm([p], 1.0))
    with pytest.raises(ValueError, match="max_norm must be a finite number"):
        optim.clip_grad_norm([p], -1.0)


def test_ema_is_the_weighted_sum_of_all_steps():
    """decay**t of the first values, and (1 - decay) * decay**(t - s) of those of step s."""
    rng = np.random.default_rng(4)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(dtype=np.float64)
    average, steps = optim.EMA(model, 0.9), []
    for _ in range(7):
        for array in model.state_dict().values():
            array[...] = rng.standard_normal(array.shape) * 9
        steps.append({name: array.copy() for name, array in model.state_dict().items()})
        average.update()
    shares = [0.9**6, *(0.1 * 0.9 ** (6 - s) for s in range(1, 7))]
    assert sum(shares) == pytest.approx(1)
    with average.applied():
        found = {name: array.copy() for name, array in model.state_dict().items()}
    for name, value in found.items():
        expected = sum(share * step[name] for share, step in zip(shares, steps, strict=True))
        if name == "1.num_batches_tracked":
            expected = steps[-1][name]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-13)
        assert model.state_dict()[name].tobytes() == steps[-1][name].tobytes()


def test_ema_that_fails_within_gives_the_weights_back():
    model = nn.Linear(2, 2)
    average, own = optim.EMA(model, 0.5), model.weight.data
    average.update()
    with pytest.raises(RuntimeError, match="no"), average.applied():
        raise RuntimeError("no")
    assert model.weight.data is own


@pytest.mark.parametrize("decay", [1.0, -0.1, np.nan])
def test_ema_refuses_a_decay(decay):
    with pytest.raises(ValueError, match="EMA: decay must be"):
        optim.EMA(nn.Linear(1, 1), decay)


def test_ema_refuses_another_models_state():
    average = optim.EMA(nn.Linear(2, 3))
    average.update()
    with pytest.raises(ValueError, match="2 averages that are not this model's 2 arrays"):
        optim.EMA(nn.Linear(3, 2)).load_state_dict(average.state_dict())


@pytest.mark.torch
def test_ema_equals_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from torch.optim import swa_utils

    rng = np.random.default_rng(5)
    model, twin = nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    average = optim.EMA(model, 0.97)
    update = swa_utils.get_ema_multi_avg_fn(0.97)
    rival = swa_utils.AveragedModel(twin, multi_avg_fn=update, use_buffers=True)
    for step in range(20):
        for name, array in model.state_dict().items():
            array[...] = step if array.dtype == np.int64 else rng.standard_normal(array.shape)
            twin.state_dict()[name].copy_(torch.tensor(array))
        average.update()
        rival.update_parameters(twin)
    expected = rival.module.state_dict()
    for name, value in average.state_dict().items():
        if value.dtype != np.int64:  # of which PyTorch's versions make different things
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=0, atol=1e-5)
