"""What users of the tape get wrong, or try: it stays usable, and says in one line what is amiss."""

import copy
import pickle
import threading
import weakref

import numpy as np
import pytest

from gpuconv import nn, summary
from gpuconv.arrays import to_device
from gpuconv.autograd import Tensor, checkpoint, no_grad, state
from gpuconv.nn import functional as F
from gpuconv.sim.memory import Array

RNG = np.random.default_rng


def images(*shape, seed=0):
    return RNG(seed).standard_normal(shape).astype(np.float32)


def leaf(*shape, dtype=np.float64):
    return Tensor(RNG(0).standard_normal(shape).astype(dtype), requires_grad=True)


def nothing_left():
    found = state.depth, state.pending, state.consumed, state.fusing, state.recording, state.repeat
    return found == (0, None, [], True, True, None)


# ---- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusing", [True, False])
@pytest.mark.parametrize("x", [images(1, 2, 5, 5), np.zeros((1, 3, 5, 5), np.uint8)])
def test_an_error_of_a_waiting_head_leaves_nothing_behind(x, fusing):
    """A convolution computes when its neighbour is known: the module's end may be what fails."""
    inner = nn.Conv2d(3, 2, 3)
    inner.fusing = fusing
    for model in (
        inner,
        nn.Sequential(inner),
        nn.Sequential(nn.Sequential(inner, nn.BatchNorm2d(2))),
    ):
        with pytest.raises((TypeError, ValueError), match="conv2d: x "):
            model(x)
        assert nothing_left()
        with pytest.raises((TypeError, ValueError)), no_grad():
            model(x)
        assert nothing_left()
    with pytest.raises(ValueError, match="conv2d"):
        inner.plan((2, 5, 5))
    assert nothing_left()


def test_no_grad_ends_though_a_waiting_head_fails():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            with no_grad():
                y = self.conv(x)
            return y

    with pytest.raises(ValueError, match="conv2d"):
        Half()(images(1, 2, 5, 5))
    assert nothing_left()


def test_a_checkpoint_that_failed_can_run_again():
    dropout, calls = nn.Dropout(0.5, seed=1), []

    def function(x):
        y = dropout(x)
        calls.append(y)
        if len(calls) == 2:
            raise KeyError("mine")
        return y

    x = Tensor(images(20), requires_grad=True)
    y = checkpoint(function, x)
    with pytest.raises(KeyError):
        y.sum().backward(retain_graph=True)
    assert nothing_left()
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.where(y.data != 0, 2, 0))


# ---- checkpoint --------------------------------------------------------------------------------


def test_the_second_run_of_a_block_is_fused_as_the_first(monkeypatch):
    block = nn.Sequential(nn.Conv2d(2, 3, 3, rng=0), nn.ReLU(), nn.MaxPool2d(2))
    block.recompute = True
    y = nn.Sequential(block, nn.Flatten())(images(1, 2, 6, 6))
    names, record = [], F.record

    def noted(name, *rest, **options):
        names.append(name)
        return record(name, *rest, **options)

    monkeypatch.setattr(F, "record", noted)
    y.backward(np.ones_like(y.data))
    assert names == ["conv2d_relu_max_pool2d"]


def test_recompute_takes_whatever_forward_takes():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2, rng=0)

        def forward(self, x, times, shift=None, flag=None):
            assert flag == "on"
            return self.fc(x) * times + shift

    results = []
    for recompute in (False, True):
        model = Scaled()
        model.recompute = recompute
        x, shift = (
            Tensor(images(4, 3), requires_grad=True),
            Tensor(images(4, 2), requires_grad=True),
        )
        y = model(x, 3, shift=shift * 2, flag="on")
        y.sum().backward()
        results.append([y.data, x.grad, shift.grad, model.fc.weight.grad])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(TypeError, match="must return one tensor, got tuple"):
        checkpoint(lambda x: (x, x), x)


# ---- hooks and freezing ------------------------------------------------------------------------


def test_a_hook_on_what_was_fused_away_is_refused_and_one_set_before_is_called():
    class Watched(nn.Module):
        def __init__(self, before):
            super().__init__()
            self.conv, self.before, self.seen = nn.Conv2d(2, 2, 3, rng=0), before, []

        def forward(self, x):
            self.kept = self.conv(x)
            if self.before:
                self.kept.register_hook(self.seen.append)
            return F.relu(self.kept)

    x = images(1, 2, 5, 5)
    model = Watched(before=False)
    y = model(x)
    with pytest.raises(RuntimeError, match="register the hook before, or set fusing = False"):
        model.kept.register_hook(print)
    with pytest.raises(RuntimeError, match="fusing = False"):
        model.kept.retain_grad()
    model.fusing = False
    y = model(x)
    model.kept.retain_grad()
    y.sum().backward()
    np.testing.assert_array_equal(model.kept.grad, y.data > 0)
    model = Watched(before=True)
    model(x).sum().backward()
    np.testing.assert_array_equal(model.seen[0], y.data > 0)


def test_a_hook_may_set_attributes_of_the_container_that_calls():
    model = nn.Sequential(nn.Linear(3, 3, rng=0), nn.Linear(3, 2, rng=1))

    def keep(module, inputs, y):
        model.kept = y
        model.register_forward_hook(lambda *_: None)

    model[0].register_forward_hook(keep)
    assert model(images(4, 3)).shape == (4, 2)
    assert model.kept.shape == (4, 3)


def test_what_is_frozen_between_forward_and_backward_gets_no_gradient():
    layer = nn.Linear(3, 2, rng=0)
    y = layer(images(4, 3))
    layer.weight.requires_grad_(False)
    y.sum().backward()
    assert layer.weight.grad is None
    np.testing.assert_array_equal(layer.bias.grad, [4, 4])


@pytest.mark.parametrize("kind", [tuple, list])
def test_heads_in_a_tuple_or_a_list_and_one_alone(kind):
    heads = [Tensor(images(2, 3, seed=i), requires_grad=True) for i in range(3)]
    loss, labels = nn.AuxiliaryLoss(), [0, 2]
    plain = [nn.CrossEntropyLoss()(head, labels).item() for head in heads]
    assert loss(kind(heads), labels).item() == pytest.approx(plain[0] + 0.3 * sum(plain[1:]))
    assert loss(kind(heads[:1]), labels).item() == plain[0]
    loss(kind(heads), labels).backward()
    assert all(head.grad is not None for head in heads)


# ---- gradients given by hand -------------------------------------------------------------------


def test_a_gradient_is_taken_to_the_tensors_dtype_and_device():
    layer = nn.Linear(3, 2, rng=0)
    dy = RNG(1).standard_normal((4, 2))
    for given in (dy, dy.tolist(), Tensor(dy)):
        layer.zero_grad()
        layer(images(4, 3)).backward(given)
        assert layer.weight.grad.dtype == np.float32
    expected = layer.weight.grad
    layer.to("sim")
    layer(to_device(images(4, 3), "sim")).backward(dy)
    assert isinstance(layer.weight.grad, Array)
    np.testing.assert_allclose(np.asarray(Tensor(layer.weight.grad)), expected, 1e-5, 1e-6)


@pytest.mark.parametrize("hook", [lambda g: Tensor(g * 2), lambda g: g * np.full(6, 2.0)])
def test_a_hook_may_give_a_tensor_or_doubles(hook):
    x = leaf(4, 6, dtype=np.float32)
    y = F.relu(x)
    y.register_hook(hook)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, np.where(x.data > 0, np.float32(2), 0))
    assert x.grad.dtype == np.float32


def test_a_hook_that_gives_another_shape_is_refused():
    x = leaf(4, 6)
    x.register_hook(lambda g: g[0])
    with pytest.raises(ValueError, match=r"a hook gave shape \(6,\) for a gradient of \(4, 6\)"):
        x.sum().backward()


def test_an_operands_gradient_has_its_dtype():
    x, y = leaf(3, 4, dtype=np.float32), leaf(4)
    (x * y + np.arange(4)).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)
    x, y = leaf(2, 3, dtype=np.float32), leaf(3, 4)
    (x @ y).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)


def test_backward_frees_what_operators_had_kept():
    for use in (
        lambda h: h * h[0],
        lambda h: h**2,
        lambda h: h[1:],
        lambda h: h @ h,
        lambda h: 1 / h,
    ):
        h = leaf(3, 3) * 1.0
        y = use(h).sum()
        array = weakref.ref(h.data)
        del h
        y.backward()
        assert array() is None


# ---- copies ------------------------------------------------------------------------------------


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, rng=0)

    def forward(self, x):
        self.kept = self.conv(x)
        return F.relu(self.kept)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_model_can_be_copied_after_a_forward_and_tied_weights_stay_tied(copied):
    model = nn.Sequential(Keeps(), nn.Conv2d(2, 2, 3, rng=1))
    model[1].weight = model[0].conv.weight
    y = model(images(1, 2, 7, 7))
    y.backward(np.ones_like(y.data))
    other = copied(model)
    assert other[1].weight is other[0].conv.weight
    assert isinstance(other[1].weight, nn.Parameter)
    np.testing.assert_array_equal(other[1].weight.grad, model[1].weight.grad)
    np.testing.assert_array_equal(other[0].kept.data, model[0].kept.data)
    assert other[0].kept.is_leaf
    np.testing.assert_array_equal(other(images(1, 2, 7, 7)).data, y.data)


# ---- what goes in and comes out ----------------------------------------------------------------


class Anything(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.fc, self.function = nn.Linear(4, 2), function

    def forward(self, x):
        return self.function(self, x)


FORWARDS = {
    "dict": lambda m, x: {"a": m.fc(x)},
    "list": lambda m, x: [m.fc(x), x],
    "empty tuple": lambda m, x: (m.fc(x), ())[1],
    "nothing": lambda m, x: (m.fc(x), None)[1],
    "constant": lambda m, x: (m.fc(x), Tensor(np.ones(3)))[1],
    "detached": lambda m, x: m.fc(x).detach(),
    "by name": lambda m, x: m.fc(x=x),
    "constant input": lambda m, x: m.fc(np.ones((1, 4), np.float32)),
    "mean": lambda m, x: m.fc(x).mean(),
    "sum of an axis": lambda m, x: m.fc(x).sum(axis=1),
    "matrix product": lambda m, x: m.fc(x) @ np.ones((2, 3), np.float32),
    "square": lambda m, x: m.fc(x) ** 2,
    "broadcast": lambda m, x: m.fc(x) * m.fc.bias + 1,
    "transposed": lambda m, x: m.fc(x).T[0],
}


@pytest.mark.parametrize("name", FORWARDS)
def test_summary_and_plan_of_whatever_forward_does(name):
    model = Anything(FORWARDS[name])
    found = summary(model, (4,))
    assert found.error is None
    assert found.multiply_adds >= 8
    assert model.plan((4,)).startswith("linear")
    assert nothing_left()


def test_inputs_by_name_in_lists_and_arrays_in_the_middle():
    class Two(nn.Module):
        def forward(self, xs):
            return xs[0] + xs[1]

    a = leaf(3)
    Two()([a, a * 2]).sum().backward()
    np.testing.assert_array_equal(a.grad, np.full(3, 3.0))
    assert nn.Flatten()(x=images(2, 3, 4)).shape == (2, 12)
    assert Anything(lambda m, x: m.fc(nn.Flatten()(x.numpy() * 2)))(images(2, 1, 2, 2)).shape == (
        2,
        2,
    )


def test_a_module_without_super_init_works():
    class Forgot(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(x)

    model = Forgot().eval().train()
    assert model(images(3, 4)).shape == (3, 2)


def test_what_a_tensor_of_one_number_does():
    x = Tensor(1.5)
    assert (f"{x:.2f}", int(x), bool(x), x < 2, x >= Tensor(1.5)) == ("1.50", 1, True, True, True)
    assert f"{x}" == str(x)
    assert (x == 1.5, x != 1.5, x == Tensor(1.0), x in {x}) == (True, False, False, True)
    y = Tensor([1.0, 2.0])
    for other in (2, np.float32([0, 2]), Tensor([0.0, 2.0])):
        np.testing.assert_array_equal(y == other, [False, True])
        np.testing.assert_array_equal(y != other, [True, False])
    with pytest.raises(TypeError):
        list(x)
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Tensor([1.0, 2.0]))


def test_largest_and_transposed_have_the_gradients_of_central_differences():
    rng = RNG(3)
    a, step = leaf(3, 4), 1e-6
    for function in (
        lambda a: (a.max(1) ** 2).sum() + a.max(-2)[0] + a.max() * 3,
        lambda a: (a.T @ a).sum() + (np.ones((2, 3)) @ a).sum(),
        lambda a: (a**0).sum() + (a * a.T[0, 0]).mean(),
    ):
        a.grad = None
        function(a).backward()
        along = rng.standard_normal((3, 4))
        sides = [float(function(Tensor(a.data + sign * step * along))) for sign in (1, -1)]
        assert (a.grad * along).sum() == pytest.approx((sides[0] - sides[1]) / (2 * step), 1e-6)
    np.testing.assert_array_equal(a.argmax(1), a.data.argmax(1))


def test_integers_want_no_gradient():
    assert Tensor([1, 2], requires_grad=True).dtype == np.float32
    assert Tensor([1, 2]).dtype.kind == "i"
    for make in (nn.Parameter, lambda a: Tensor(a, requires_grad=True)):
        with pytest.raises(TypeError, match="int64 cannot require a gradient"):
            make(np.arange(3))
    with pytest.raises(TypeError, match="exponent must be a number, got Tensor"):
        Tensor([1.0]) ** Tensor([2.0])


def test_no_grad_without_brackets_and_in_two_threads():
    @no_grad
    def doubled(x):
        return x * 2

    assert not doubled(leaf(3)).requires_grad
    inside, outside, seen = threading.Event(), threading.Event(), []

    @no_grad()
    def wait(first):
        if first:
            inside.set()
            outside.wait(5)
        else:
            inside.wait(5)

    def one():
        wait(True)
        seen.append(state.recording)

    def other():
        with no_grad():
            inside.wait(5)
            wait(False)
            seen.append(state.recording)
            outside.set()

    threads = [threading.Thread(target=each) for each in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [False, True]


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 2, 1, rng=0), nn.Linear(2, 2, rng=0)])
def test_an_array_may_be_overwritten_once_a_layer_has_taken_it(layer):
    class Steps(nn.Module):
        def forward(self, x):
            array, ys = x.numpy().copy(), []
            for _ in range(2):
                ys.append(layer(array))
                array += 1
            return F.relu(ys[0]) + ys[1]

    x = images(3, 2) if isinstance(layer, nn.Linear) else images(1, 2, 3, 3)
    first, second = layer(x).data, layer(x + 1).data
    np.testing.assert_allclose(Steps()(x).data, np.maximum(first, 0) + second, 1e-5, 1e-6)
