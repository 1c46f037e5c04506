"""Optimisers between two steps: what may change, groups of parameters, frozen and unlinked ones."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
from test_optim import SHAPES, gradients, parameters, run

from gpuconv import nn, optim
from gpuconv.nn import Parameter

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
        ({"steps": [1, 1, 1, -1]}, "a count of steps must be at least 0"),
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
