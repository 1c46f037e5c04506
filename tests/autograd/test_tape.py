"""The tape: gradients of shared, branching and frozen parts, hooks, modes, what stays untouched."""

import threading

import numpy as np
import pytest

import gpuconv
from gpuconv import nn
from gpuconv.autograd import (
    Tensor,
    checkpoint,
    enable_grad,
    no_grad,
    operators,
    record,
    state,
)
from gpuconv.nn import functional as F

RNG = np.random.default_rng


def leaf(*shape, seed=0, dtype=np.float64):
    return Tensor(RNG(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def central(function, x, step=1e-6):
    """The gradient of a scalar function at array x, by central differences."""
    dx = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        old = x[i]
        x[i] = old + step
        above = function()
        x[i] = old - step
        dx[i] = (above - function()) / (2 * step)
        x[i] = old
    return dx


FORMULAS = {
    "sum and product": lambda a, b: (a * b + a).sum(),
    "number on either side": lambda a, b: (2 * a - b / 4 + 1 - (3 - a)).mean(),
    "itself twice": lambda a, b: (a + a * a - a).sum() + b.sum(),
    "quotient": lambda a, b: (a / (b * b + 1)).sum() + (1 / (a * a + 2)).sum(),
    "powers": lambda a, b: ((a * a + 1) ** 1.5).sum() * b.mean(),
    "matrix product": lambda a, b: (a @ b.reshape(4, 3)).sum() ** 2,
    "stacks of matrices": lambda a, b: (a.reshape(2, 3, 2) @ b.reshape(2, 6)).sum() ** 2,
    "axes in another order": lambda a, b: (
        operators.transpose(a.reshape(2, 3, 2), (1, 2, 0)).reshape(3, 4) * b
    ).sum(),
    "index": lambda a, b: (a[1:, 2] * b[0, :2]).sum() + a[0, 0],
    "index twice": lambda a, b: (a[[0, 0, 2]] * 3).sum() + b[1].sum(),
    "sums along axes": lambda a, b: (a.sum(0) * b.mean(axis=0, keepdims=True)).sum(),
    "shapes": lambda a, b: (a.flatten() * b.reshape(-1)).sum() + (-a).reshape((4, 3))[0].sum(),
    "broadcast": lambda a, b: (a * b[0] + b[:, :1] + b[1, 1]).sum(),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_operators_have_the_gradients_of_central_differences(name):
    a, b = leaf(3, 4, seed=1), leaf(3, 4, seed=2)
    FORMULAS[name](a, b).backward()
    for x in (a, b):
        numeric = central(lambda: float(FORMULAS[name](a, b)), x.data)
        np.testing.assert_allclose(x.grad, numeric, 1e-6, 1e-8)


def test_gradients_that_share_memory_are_told_apart():
    x, y = leaf(2, 3), leaf(2, 3, seed=1)
    (x + y).sum().backward()
    assert not np.shares_memory(x.grad, y.grad)
    x.grad += 1
    np.testing.assert_array_equal(y.grad, np.ones((2, 3)))


def test_a_gradient_adds_up_and_whoever_kept_the_old_one_still_has_it():
    x = leaf(3)
    (2 * x).sum().backward()
    first = x.grad
    (3 * x).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 5.0))
    np.testing.assert_array_equal(first, np.full(3, 2.0))


def test_one_tensor_joined_twice_and_used_beside():
    x = leaf(2, 3, 4, 5)
    dy = RNG(1).standard_normal((2, 9, 4, 5))
    y = F.cat([x, F.relu(x), x])
    y.backward(dy)
    expected = dy[:, :3] + np.where(x.data > 0, dy[:, 3:6], 0) + dy[:, 6:]
    np.testing.assert_allclose(x.grad, expected, 1e-12)


def test_backward_twice_is_refused_but_with_retain_graph():
    x = leaf(4)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad, 4 * x.data)
    with pytest.raises(RuntimeError, match="each forward pass serves one"):
        y.backward()


def test_what_backward_refuses():
    x = leaf(2, 2)
    with pytest.raises(ValueError, match="needs the gradient of its elements"):
        (2 * x).backward()
    with pytest.raises(ValueError, match=r"the gradient has shape \(2,\)"):
        (2 * x).backward(np.ones(2))
    with pytest.raises(RuntimeError, match="requires a gradient"):
        Tensor([1.0]).backward()


def test_a_function_that_returns_what_it_saved_keeps_it():
    """The gradient of such a function is not the tape's own: it must never be overwritten."""
    constant = RNG(0).standard_normal((4, 6)).astype(np.float32)
    before = constant.copy()
    x = leaf(4, 6, dtype=np.float32)

    def weigh(t):
        return record("weigh", t.data * constant, (t,), lambda dy, over: (constant,), fresh=False)

    for use in (lambda t: F.relu(t), lambda t: t + t * 2, lambda t: F.dropout(t, 0.5, 3)):
        x.grad = None
        weigh(use(x)).sum().backward()
        np.testing.assert_array_equal(constant, before)
        x.grad += 1
        np.testing.assert_array_equal(constant, before)


def test_what_a_hook_has_seen_stays_as_it_was():
    x = leaf(4, 6, dtype=np.float32)
    seen = []
    y = F.relu(x * 1.5)
    y.register_hook(lambda g: seen.append((g, g.copy())))
    z = F.relu(y + y * 2)
    z.register_hook(lambda g: seen.append((g, g.copy())))
    (z * z).sum().backward()
    assert len(seen) == 2
    for kept, copy in seen:
        np.testing.assert_array_equal(kept, copy)


@pytest.mark.parametrize("watch", ["hook", "module hook", "record"])
def test_a_gradient_that_two_share_and_one_shows_stays_as_it_was(watch):
    x, seen = leaf(4, 6, dtype=np.float32), []

    def shown(t):
        if watch == "module hook":
            module = nn.Identity()
            module.register_full_backward_hook(lambda m, dx, dy: seen.append(dy[0]))
            return module(t)
        if watch == "record":
            return record(
                "show", t.data, (t,), lambda dy, over: (seen.append(dy), (dy,))[1], fresh=False
            )
        t.register_hook(seen.append)
        return t

    y = F.relu(x * 0.5) + shown(F.relu(x * 1.5))  # both branches get one and the same array
    z = shown(F.relu(x * 1.5)) + F.relu(x * 0.5)
    (y + z * 2).sum().backward()
    assert len(seen) == 2
    for gradient, value in zip(sorted(seen, key=np.sum), (1, 2), strict=True):
        np.testing.assert_array_equal(gradient, np.full((4, 6), value))


def test_the_users_gradient_stays_as_it_was():
    x, dy = leaf(4, 6, dtype=np.float32), RNG(1).standard_normal((4, 6)).astype(np.float32)
    before = dy.copy()
    F.relu(F.relu(x) + x).backward(dy)
    np.testing.assert_array_equal(dy, before)


def test_hooks_replace_gradients_and_can_be_removed():
    x = leaf(3)
    y = x * 2
    handle = y.register_hook(lambda g: g * 10)
    leaf_handle = x.register_hook(lambda g: g + 1)
    y.sum().backward(retain_graph=True)
    np.testing.assert_array_equal(x.grad, np.full(3, 21.0))
    handle.remove()
    leaf_handle.remove()
    x.grad = None
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 2.0))


def test_a_hook_of_a_leaf_sees_the_sum_of_all_its_uses_once():
    x, seen = leaf(3), []
    x.register_hook(lambda g: seen.append(g.copy()))
    (x * 2 + x * 3).sum().backward()
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], np.full(3, 5.0))


def test_retain_grad_keeps_a_results_gradient():
    x = leaf(3)
    y = x * 2
    y.retain_grad()
    (y * y).sum().backward()
    np.testing.assert_allclose(y.grad, 2 * y.data)


def test_no_grad_and_enable_grad():
    x = leaf(3)
    with no_grad():
        y = x * 2
        with enable_grad():
            z = x * 3
    assert not y.requires_grad
    assert y.is_leaf
    assert z.requires_grad

    @no_grad()
    def function(t):
        return t * 2

    assert not function(x).requires_grad
    assert (x * 2).requires_grad


# ---- modules -----------------------------------------------------------------------------------


class Two(nn.Module):
    """A convolution whose output is read before and after its ReLU."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, rng=0)

    def forward(self, x):
        y = self.conv(x)
        z = F.relu(y)
        return y + z + F.max_pool2d(z, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_head_read_again_gives_its_own_value(dtype):
    model = Two().to("cpu", dtype)
    x = RNG(0).standard_normal((2, 3, 6, 7)).astype(dtype)
    results = []
    for fusing in (True, False):
        model.fusing = fusing
        given = Tensor(x, requires_grad=True)
        model.zero_grad()
        y = model(given)
        y.backward(RNG(1).standard_normal(y.shape).astype(dtype))
        results.append([y.data, given.grad, model.conv.weight.grad, model.conv.bias.grad])
    tolerance = 1e-4 if dtype is np.float32 else 1e-12
    for fused, plain in zip(*results, strict=True):
        np.testing.assert_allclose(fused, plain, tolerance, tolerance)


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, rng=0)

    def forward(self, x):
        self.kept = self.conv(x)
        return F.relu(self.kept)


def test_a_head_kept_beyond_the_call_has_the_weights_of_the_call():
    model, x = Keeps(), RNG(0).standard_normal((1, 2, 5, 5)).astype(np.float32)
    y = model(x)
    model.conv.weight.data[...] = 0
    np.testing.assert_array_equal(np.maximum(model.kept.data, 0), y.data)
    assert model.kept.requires_grad


def test_no_grad_around_a_head_alone_stops_its_gradient():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 2, 3, rng=0), nn.Linear(18, 2, rng=0)

        def forward(self, x):
            with no_grad():
                y = self.conv(x)
            return self.fc(F.relu(y).flatten(1))

    model = Half()
    model(np.ones((1, 1, 5, 5), np.float32)).sum().backward()
    assert model.conv.weight.grad is None
    assert model.fc.weight.grad is not None


def test_an_error_within_a_forward_leaves_nothing_behind():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, rng=0)

        def forward(self, x):
            self.conv(x)
            raise KeyError("mine")

    with pytest.raises(KeyError):
        Fails()(np.ones((1, 1, 5, 5), np.float32))
    assert (state.depth, state.pending, state.consumed, state.fusing) == (0, None, [], True)
    assert nn.ReLU()(np.float32([-1, 2])).data.tolist() == [0, 2]


def test_a_child_set_as_an_attribute_takes_the_others_place():
    model = nn.Sequential(conv=nn.Conv2d(1, 2, 3), flat=nn.Flatten(), fc=nn.Linear(18, 10))
    model.fc = nn.Linear(18, 5)
    assert model(np.ones((2, 1, 5, 5), np.float32)).shape == (2, 5)
    assert list(dict(model.named_children())) == ["conv", "flat", "fc"]
    assert model.state_dict()["fc.weight"].shape == (5, 18)


def test_frozen_parameters_get_no_gradient_and_those_before_them_do():
    model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.ReLU(), nn.Linear(4, 2, rng=1))
    model[2].requires_grad_(False)
    model(np.ones((2, 3), np.float32)).sum().backward()
    assert model[0].weight.grad is not None
    assert model[2].weight.grad is None
    model.requires_grad_(False)
    assert not model(np.ones((2, 3), np.float32)).requires_grad


def test_a_module_used_twice_sums_its_gradients():
    layer = nn.Linear(3, 3, rng=0).to("reference", np.float64)
    model = nn.Sequential(layer, nn.Tanh(), layer).to("reference")
    assert len(model.parameters()) == 2
    x = RNG(0).standard_normal((4, 3))
    model(x).sum().backward()
    numeric = central(lambda: float(model(x).sum()), layer.weight.data)
    np.testing.assert_allclose(layer.weight.grad, numeric, 1e-6, 1e-9)
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "2.bias", "2.weight"]


def test_forward_hooks_see_and_replace_and_keep_a_layer_apart():
    model = nn.Sequential(conv=nn.Conv2d(1, 2, 3, rng=0), relu=nn.ReLU(), pool=nn.MaxPool2d(3))
    x = RNG(0).standard_normal((1, 1, 5, 5)).astype(np.float32)
    plain, seen = model(x).data, []
    handles = [
        model.conv.register_forward_hook(lambda m, i, y: seen.append(y.data.copy())),
        model.relu.register_forward_pre_hook(lambda m, i: seen.append(i[0].data.copy())),
    ]
    np.testing.assert_allclose(model(x).data, plain, 1e-6)
    assert (seen[0] < 0).any()
    np.testing.assert_array_equal(seen[0], seen[1])
    handles.append(model.relu.register_forward_hook(lambda m, i, y: y * 2))
    np.testing.assert_allclose(model(x).data, 2 * plain, 1e-6)
    for handle in handles:
        handle.remove()
    np.testing.assert_array_equal(model(x).data, plain)
    assert model.plan((1, 5, 5)).startswith("conv2d_relu_max_pool2d")


def test_backward_hooks_see_both_gradients_and_replace_the_inputs():
    model = nn.Sequential(nn.Linear(3, 3, rng=0), nn.ReLU(), nn.Linear(3, 2, rng=1))
    x = Tensor(RNG(0).standard_normal((4, 3)).astype(np.float32), requires_grad=True)
    seen = []

    def guided(module, dx, dy):
        seen.append((dx[0].copy(), dy[0].copy()))
        return (np.maximum(dx[0], 0),)

    model[1].register_full_backward_hook(guided)
    y = model(x)
    hidden = x.data @ model[0].weight.data.T + model[0].bias.data
    y.sum().backward()
    dy = np.ones((4, 2), np.float32) @ model[2].weight.data
    np.testing.assert_allclose(seen[0][1], dy, 1e-6)
    np.testing.assert_allclose(seen[0][0], np.where(hidden > 0, dy, 0), 1e-6)
    expected = np.where((hidden > 0) & (dy > 0), dy, 0) @ model[0].weight.data
    np.testing.assert_allclose(x.grad, expected, 1e-5, 1e-6)


def test_a_backward_hook_of_a_first_layer_sees_no_dx():
    layer, seen = nn.Linear(3, 2, rng=0), []
    layer.register_full_backward_hook(lambda m, dx, dy: seen.append((dx, dy[0].shape)))
    layer(np.ones((4, 3), np.float32)).sum().backward()
    assert seen == [((None,), (4, 2))]


# ---- recomputation -----------------------------------------------------------------------------


def test_checkpoint_gives_the_same_bits_also_within_itself():
    def made():
        inner = nn.Sequential(nn.Linear(4, 4, rng=0), nn.Dropout(0.5, seed=3), nn.Tanh())
        return inner, nn.Linear(4, 2, rng=1)

    x = RNG(0).standard_normal((6, 4)).astype(np.float32)
    results = []
    for how in ("plain", "once", "nested"):
        inner, last = made()

        def run(t, inner=inner, last=last, how=how):
            middle = checkpoint(inner, t) if how == "nested" else inner(t)
            return last(F.dropout(middle, 0.3, 9))

        given = Tensor(x, requires_grad=True)
        y = run(given) if how == "plain" else checkpoint(run, given)
        y.sum().backward()
        parameters = [*inner.parameters(), *last.parameters()]
        results.append([y.data, given.grad, *[p.grad for p in parameters], inner[1].masks])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_recompute_of_batch_norm_counts_once_even_if_the_mode_changes():
    def made(recompute):
        block = nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, rng=0), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.4, 5)
        )
        block.recompute = recompute
        return nn.Sequential(block, nn.Conv2d(3, 1, 1, rng=1))

    x = RNG(0).standard_normal((2, 2, 5, 5)).astype(np.float32)
    results = []
    for recompute in (False, True):
        model = made(recompute)
        y = model(x)
        model.eval()  # between forward and backward
        y.backward(np.ones_like(y.data))
        results.append(
            [y.data, *[p.grad for p in model.parameters()], *model.state_dict().values()]
        )
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_checkpoint_of_weights_alone_finds_their_gradient():
    layer = nn.Linear(3, 2, rng=0)
    checkpoint(layer, np.ones((1, 3), np.float32)).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad, np.ones((2, 3)))


# ---- surroundings ------------------------------------------------------------------------------


def test_two_threads_train_side_by_side():
    def train(seed, into):
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3, rng=seed), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(27, 4, rng=seed),
        )  # fmt: skip
        optimizer = gpuconv.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x = RNG(seed).standard_normal((8, 1, 8, 8)).astype(np.float32)
        labels = RNG(seed).integers(0, 4, 8)
        for _ in range(20):
            optimizer.zero_grad()
            nn.CrossEntropyLoss()(model(x), labels).backward()
            optimizer.step()
        into[seed] = [p.data for p in model.parameters()]

    alone, together = {}, {}
    for seed in (1, 2):
        train(seed, alone)
    threads = [threading.Thread(target=train, args=(seed, together)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        for a, b in zip(alone[seed], together[seed], strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_optimiser_step_within_a_forward_sees_no_waiting_head():
    layer = nn.Linear(2, 2, rng=0)
    optimizer = gpuconv.optim.SGD(layer.parameters(), lr=1.0)
    before = layer.weight.data.copy()

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = layer

        def forward(self, x):
            y = self.fc(x)
            layer.weight.grad = np.ones((2, 2), np.float32)
            optimizer.step()
            return F.relu(y)

    x = np.float32([[1, 2]])
    np.testing.assert_allclose(Steps()(x).data, np.maximum(x @ before.T + layer.bias.data, 0), 1e-6)


def test_the_case_that_was_wrong():
    """A shortcut's gradient was once added into an array that backward still needed."""

    def made(device, dtype):
        body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, rng=0), nn.ReLU(), nn.Dropout(0.0))
        return nn.Residual(body).to(device, dtype)

    x = RNG(0).standard_normal((2, 3, 8, 9))
    dy = RNG(1).standard_normal(x.shape)
    exact = made("reference", np.float64)
    exact(x).backward(dy)
    fast = made("cpu", np.float32)
    fast(x.astype(np.float32)).backward(dy.astype(np.float32))
    for a, b in zip(exact.parameters(), fast.parameters(), strict=True):
        np.testing.assert_allclose(b.grad, a.grad, 1e-4, 1e-4)
