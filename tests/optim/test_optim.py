"""Optimisers and schedules: against their formulas in scalar float64 loops, and against PyTorch."""

from __future__ import annotations

import json
import math
import sys

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
    arrays = [rng.random(kernels.MIN_SHARDED + 7, dtype=np.float32) for _ in range(4)]
    scalars = tuple(np.float32(s) for s in (1, 0.1, 0.1, 0.999, 0.001, 1e-8, 0.01, 0.03))
    whole, cut = [a.copy() for a in arrays], [a.copy() for a in arrays]
    kernels.adam(*whole, *scalars)
    kernels.run_sharded(kernels.adam, (*cut, *scalars))
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


# ---- what changes between two steps ------------------------------------------------------------

MAKERS = {
    "sgd": lambda p, **k: optim.SGD(p, lr=0.1, **k),
    "momentum": lambda p, **k: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, **k),
    "nesterov": lambda p, **k: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, **k),
    "adam": lambda p, **k: optim.Adam(p, lr=0.1, weight_decay=0.1, **k),
    "adamw": lambda p, **k: optim.AdamW(p, lr=0.1, **k),
    "amsgrad": lambda p, **k: optim.Adam(p, lr=0.1, betas=(0.5, 0.5), amsgrad=True, **k),
}
every_optimizer = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def stepped(make, change, steps=3):
    """The data of one parameter after steps, with `change(parameter, optimizer)` before the last.

    Made once by an optimiser that prepares its steps, once by one that is built anew from its state
    before each of them.
    """
    found = []
    for anew in (False, True):
        rng = np.random.default_rng(3)
        p = Parameter(rng.standard_normal((5, 4)))
        optimizer = make([p])
        for step in range(steps):
            if step == steps - 1:
                change(p, optimizer)
            if anew:
                state = optimizer.state_dict()
                optimizer = make([p])
                optimizer.load_state_dict(state)
            p.grad = rng.standard_normal((5, 4))
            optimizer.step()
        found.append(np.array(p.data))
    return found


def replace(p, _):
    p.data = p.data + 1


def transpose(p, _):
    p.data = np.asfortranarray(p.data)


def strided(p, _):
    wide = np.zeros((5, 8))
    wide[:, ::2] = p.data
    p.data = wide[:, ::2]


def another_rate(_, optimizer):
    optimizer.param_groups[0]["lr"] = 0.03


def another_decay(_, optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.3


def scaled_rate(_, optimizer):
    optimizer.lr = 0.02


@every_optimizer
@pytest.mark.parametrize(
    "change", [replace, transpose, strided, another_rate, another_decay, scaled_rate]
)
def test_what_changes_between_steps_counts(make, change):
    ours, anew = stepped(make, change)
    assert ours.tobytes() == anew.tobytes()
    untouched, _ = stepped(make, lambda p, o: None)
    assert (ours.tobytes() == untouched.tobytes()) == (change in (transpose, strided))


@every_optimizer
def test_what_no_longer_fits_is_refused_and_nothing_changes(make):
    params = parameters()
    optimizer = make(params)
    for _ in range(2):
        for p in params:
            p.grad = np.ones(p.shape)
        optimizer.step()
    before, steps = [p.data.copy() for p in params], list(optimizer.steps)
    arrays = {name: a.copy() for name, a in optimizer.state_dict()["arrays"].items()}

    def refused(error, text):
        with pytest.raises(error, match=text):
            optimizer.step()
        assert all(np.array_equal(p.data, b) for p, b in zip(params[:3], before, strict=False))
        assert optimizer.steps == steps
        kept = optimizer.state_dict()["arrays"]
        assert all(np.array_equal(kept[name], a) for name, a in arrays.items())

    last, own = params[-1], params[-1].data
    last.grad = np.ones((5, 33))
    refused(ValueError, r"parameter 3 has shape \(33, 5\), its grad \(5, 33\)")
    last.grad = [1.0]
    refused(TypeError, "parameter 3 is on cpu, its grad on None")
    last.grad = np.ones((33, 5))
    for key, value in (("lr", -1.0), ("weight_decay", math.nan), ("lr", "0.1")):
        good = optimizer.param_groups[0][key]
        optimizer.param_groups[0][key] = value
        refused((ValueError, TypeError), f"{key} must be a")
        optimizer.param_groups[0][key] = good
    last.data = own.astype(np.int64)
    refused(TypeError, "parameter 3 must be float32 or float64, got int64")
    own.flags.writeable = False
    last.data = own[:]
    refused(ValueError, "parameter 3 is a read-only array")
    if arrays:
        last.data = own.astype(np.float32)
        refused(ValueError, "parameter 3 became float32 x 165, its state is float64 x 165")
    last.data = own.copy()
    optimizer.step()
    assert optimizer.steps == [step + 1 for step in steps]


def test_a_step_makes_few_python_calls():
    """What is prepared once is not made again: for ten parameters fewer than 60 calls."""
    params = [Parameter(np.zeros(9, np.float32)) for _ in range(10)]
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    calls = []

    def step():
        optimizer.zero_grad()
        for p in params:
            p.grad = np.ones(9, np.float32)
        optimizer.step()

    for _ in range(3):
        step()
    sys.setprofile(lambda frame, event, _: calls.append(frame) if event == "call" else None)
    try:
        step()
    finally:
        sys.setprofile(None)
    assert len(calls) < 60


# ---- groups ------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_groups_equal_pytorch(name):
    torch = pytest.importorskip("torch")
    own = {"SGD": {"momentum": 0.5}, "Adam": {"betas": (0.5, 0.9)}, "AdamW": {"eps": 1e-2}}[name]

    def groups(params):
        return [
            {"params": params[:1], "lr": 0.3, "weight_decay": 0.1},
            {"params": params[1:3]},
            {"params": params[3:], **own},
        ]

    arguments = {"lr": 0.03, **({"momentum": 0.9} if name == "SGD" else {})}
    params = run(lambda p: getattr(optim, name)(groups(p), **arguments), 6)
    theirs = [torch.tensor(p.data, requires_grad=True) for p in parameters()]
    optimizer = getattr(torch.optim, name)(groups(theirs), **arguments)
    for grads in gradients(6):
        for p, g in zip(theirs, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
    for ours, p in zip(params, theirs, strict=True):
        np.testing.assert_allclose(ours.data, p.detach().numpy(), rtol=0, atol=1e-12)


def test_the_rate_of_groups():
    a, b, c = (Parameter(np.ones(2)) for _ in range(3))
    groups = [{"params": [a], "lr": 0.01}, {"params": b}, {"params": iter([c]), "lr": 0.4}]
    optimizer = optim.SGD(groups, lr=0.1)
    assert optimizer.lr == 0.1  # the group's that has none of its own
    schedule = optim.CosineLR(0.1, 10)
    for step in range(10):
        optimizer.lr = schedule(step)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[1] == schedule(step)
        np.testing.assert_allclose(rates, schedule(step) * np.array([0.1, 1, 4]), rtol=1e-15)
    optimizer.lr = 0  # a rate of zero loses no group's share
    optimizer.lr = 0.1
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1, 0.4]
    assert optim.SGD([{"params": a, "lr": 0.2}, {"params": b, "lr": 0.3}]).lr == 0.3
    frozen = optim.SGD([{"params": a}, {"params": b, "lr": 0.3}], lr=0.0)
    with pytest.raises(ValueError, match="have no ratio to lr=0"):
        frozen.lr = 0.1
    optimizer = optim.Adam([{"params": a}, {"params": b, "betas": (0.5, 0.5)}])
    optimizer.momentum = 0.8
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.999), (0.8, 0.5)]


def test_a_group_added_later():
    a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
    optimizer = optim.SGD([a], lr=0.25)
    optimizer.add_param_group({"params": b, "lr": 0.5})
    a.grad = b.grad = np.ones(2)
    optimizer.step()
    assert (a.data[0], b.data[0]) == (0.75, 0.5)
    assert [group["params"] for group in optimizer.state_dict()["param_groups"]] == [[0], [1]]


def test_bad_groups_are_refused():
    a, b = Parameter(np.ones(2)), Parameter(np.ones(2))
    with pytest.raises(ValueError, match="a parameter is in two groups"):
        optim.SGD([{"params": [a, b]}, {"params": [b]}])
    with pytest.raises(ValueError, match="unknown SGD setting 'learning_rate'"):
        optim.SGD([{"params": [a], "learning_rate": 0.1}])
    with pytest.raises(TypeError, match="a group is a dict with 'params'"):
        optim.SGD([{"params": [a]}, b])
    with pytest.raises(ValueError, match="params is empty"):
        optim.SGD([{"params": [a]}, {"params": []}])
    with pytest.raises(ValueError, match="weight_decay must be a finite number"):
        optim.SGD([{"params": [a], "weight_decay": -1}])


@every_optimizer
def test_groups_resume_bit_for_bit(make):
    def groups(params):
        return [{"params": params[:2], "lr": 0.05}, {"params": params[2:]}]

    def rated(optimizer, step):
        optimizer.lr = optim.CosineLR(0.1, 9)(step)

    whole, resumed = parameters(), parameters()
    a, b = make(groups(whole)), make(groups(resumed))
    for step, grads in enumerate(gradients(6)):
        if step == 3:
            state = json.loads(
                json.dumps({k: v for k, v in b.state_dict().items() if k != "arrays"})
            )
            state["arrays"] = {k: v.copy() for k, v in b.state_dict()["arrays"].items()}
            b = make(groups(resumed))
            b.load_state_dict(state)
        for params, optimizer in ((whole, a), (resumed, b)):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.copy()
            rated(optimizer, step)
            optimizer.step()
    for p, q in zip(whole, resumed, strict=True):
        assert p.data.tobytes() == q.data.tobytes()
    with pytest.raises(ValueError, match=r"groups of \[2, 2\] parameters, here are \[4\]"):
        make(parameters()).load_state_dict(state)


def test_a_state_of_version_0_1():
    """It had one group and its settings under "hyperparameters"."""
    params = parameters()
    state = {
        "name": "SGD",
        "hyperparameters": {
            "lr": 0.5, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "dampening": 0.0,
        },
        "steps": [3, 3, 3, 0],
        "arrays": {f"momentum_buffer.{i}": np.full(SHAPES[i], 2.0) for i in range(3)},
    }  # fmt: skip
    optimizer = optim.SGD(params)
    optimizer.load_state_dict(state)
    before = [p.data.copy() for p in params]
    for p in params:
        p.grad = np.ones(p.shape)
    optimizer.step()
    for p, b in zip(params[:3], before[:3], strict=True):
        np.testing.assert_allclose(p.data, b - 0.5 * (0.9 * 2 + 1), rtol=1e-15, atol=1e-15)
    np.testing.assert_array_equal(params[3].data, before[3] - 0.5)
    assert optimizer.steps == [4, 4, 4, 1]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": [1, 1, 1, -1]}, "a count of steps must be a whole number"),
        ({"steps": None}, "damaged state: TypeError"),
        ({"param_groups": [{"params": [0, 1, 2, 3]}]}, "the state lacks betas, eps, lr"),
        ({"param_groups": 5}, "damaged state"),
        ({"arrays": {"exp_avg.0": np.ones((4, 3, 3, 2), complex)}}, "needs a state of 2 arrays"),
    ],
)
def test_a_damaged_state_is_one_line_and_changes_nothing(change, text):
    params = parameters(np.float32)
    for p in params:
        p.grad = np.ones(p.shape, np.float32)
    optimizer = optim.Adam(params)
    optimizer.step()
    state = optimizer.state_dict()
    kept = {name: a.copy() for name, a in state["arrays"].items()}
    with pytest.raises(ValueError, match=text) as info:
        optimizer.load_state_dict(state | change)
    assert "\n" not in str(info.value)
    for bad, told in ((np.full((33, 5), 1j), "is complex128"), (np.full((33, 5), 1e300), "hold")):
        arrays = state["arrays"] | {"exp_avg.3": bad}
        with pytest.raises(ValueError, match=f"Adam: exp_avg.3 .*{told}"):
            optimizer.load_state_dict(state | {"arrays": arrays})
    assert all(np.array_equal(optimizer.state_dict()["arrays"][k], a) for k, a in kept.items())


# ---- frozen parameters, weights that are not linked ----------------------------------------------


@every_optimizer
def test_frozen_parameters_stay(make):
    body, head = nn.Linear(4, 4, rng=0), nn.Linear(4, 2, rng=1)
    model = nn.Sequential(body, nn.ReLU(), head)
    body.requires_grad_(False)
    before = body.weight.data.copy(), head.weight.data.copy()
    optimizer = make(model.parameters())
    body.weight.grad = np.ones((4, 4), np.float32)  # one of before it was frozen
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    for _ in range(2):
        nn.CrossEntropyLoss()(model(x), np.arange(8) % 2).backward()
        norm = optim.clip_grad_norm(model.parameters(), 0.5)
        optimizer.step()
    head_norm = sum(float((p.grad.astype(float) ** 2).sum()) for p in head.parameters())
    assert np.sqrt(head_norm) <= min(norm, 0.5) * 1.0001  # a frozen gradient is no part of it
    assert np.array_equal(body.weight.data, before[0])
    assert not np.array_equal(head.weight.data, before[1])
    assert body.bias.grad is None
    assert optimizer.steps == [0, 0, 2, 2]
    body.requires_grad_(True)
    optimizer.zero_grad()
    nn.CrossEntropyLoss()(model(x), np.arange(8) % 2).backward()
    optimizer.step()
    assert not np.array_equal(body.weight.data, before[0])


@every_optimizer
@pytest.mark.parametrize("clip", [None, 0.01])
def test_weights_that_are_not_linked_stay_zero(make, clip):
    table = np.array([[1, 0, 1], [0, 1, 1]])
    conv = nn.Conv2d(2, 3, 3, connections=table, rng=0)
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(27, 4, rng=1))
    optimizer, average = make(model.parameters()), optim.EMA(model, 0.9)
    rng, off = np.random.default_rng(2), table.T == 0
    before = conv.weight.data.copy()
    for _ in range(4):
        optimizer.zero_grad()
        x = rng.standard_normal((6, 2, 5, 5)).astype(np.float32)
        nn.CrossEntropyLoss()(model(x), rng.integers(0, 4, 6)).backward()
        if clip:
            optim.clip_grad_norm(model.parameters(), clip)
        optimizer.step()
        average.update()
    assert np.all(conv.weight.data[off] == 0)
    assert np.all(conv.weight.data[~off] != before[~off])
    with average.applied():
        assert np.all(conv.weight.data[off] == 0)


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


def test_clipping_of_float64_that_overflows():
    p, q = Parameter(np.zeros(2)), Parameter(np.zeros(1))
    p.grad, q.grad = np.array([3e200, 0]), np.array([4e200])
    assert math.isclose(optim.clip_grad_norm([p, q], 1.0), 5e200, rel_tol=1e-12)
    assert np.allclose([*p.grad, *q.grad], [0.6, 0, 0.8])


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
