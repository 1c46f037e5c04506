"""Clipping of gradients, and the moving average of weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from test_optim import gradients, parameters

from gpuconv import nn, optim
from gpuconv.nn import Parameter


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


def test_clipping_of_float64_that_overflows():
    p, q = Parameter(np.zeros(2)), Parameter(np.zeros(1))
    p.grad, q.grad = np.array([3e200, 0]), np.array([4e200])
    assert math.isclose(optim.clip_grad_norm([p, q], 1.0), 5e200, rel_tol=1e-12)
    assert np.allclose([*p.grad, *q.grad], [0.6, 0, 0.8])


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
