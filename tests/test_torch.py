"""gpuconv.torch: gradients by finite differences, and training beside PyTorch's own functions."""

import copy
import gc
import weakref

import numpy as np
import pytest

from gpuconv import models, nn

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.nn import functional as F  # noqa: E402

import gpuconv.torch as G  # noqa: E402

pytestmark = pytest.mark.torch


def doubles(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.double, generator=generator, requires_grad=True)


X = (2, 4, 7, 8)
RUNNING = torch.linspace(-0.3, 0.4, 4).double(), torch.linspace(0.5, 1.5, 4).double()
# What is bridged, PyTorch's own, and the shapes of the tensors.
FUNCTIONS = {
    "conv2d": (
        lambda x, w, b: G.conv2d(x, w, b, (1, 2), (1, 0), 1, 2),
        lambda x, w, b: F.conv2d(x, w, b, (1, 2), (1, 0), 1, 2),
        (X, (6, 2, 3, 2), (6,)),
    ),
    "conv2d without bias": (
        lambda x, w: G.conv2d(x, w, dilation=2),
        lambda x, w: F.conv2d(x, w, dilation=2),
        (X, (3, 4, 2, 3)),
    ),
    "linear": (G.linear, F.linear, ((3, 5), (4, 5), (4,))),
    "max_pool2d": (
        lambda x: G.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
        (X,),
    ),
    "avg_pool2d": (
        lambda x: G.avg_pool2d(x, (3, 2), 2, 1, True, False),
        lambda x: F.avg_pool2d(x, (3, 2), 2, 1, True, False),
        (X,),
    ),
    "adaptive_avg_pool2d": (
        lambda x: G.adaptive_avg_pool2d(x, (2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
        (X,),
    ),
    "batch_norm of the batch": (
        lambda x, w, b: G.batch_norm(x, None, None, w, b, True),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
        (X, (4,), (4,)),
    ),
    "batch_norm in evaluation": (
        lambda x, w, b: G.batch_norm(x, *RUNNING, w, b),
        lambda x, w, b: F.batch_norm(x, *RUNNING, w, b),
        (X, (4,), (4,)),
    ),
    "batch_norm without weights": (
        lambda x: G.batch_norm(x, None, None, None, None, True, eps=1e-3),
        lambda x: F.batch_norm(x, None, None, None, None, True, eps=1e-3),
        (X,),
    ),
    "relu": (G.relu, F.relu, (X,)),
    "sigmoid": (G.sigmoid, torch.sigmoid, (X,)),
    "tanh": (G.tanh, torch.tanh, (X,)),
    "local_response_norm": (
        lambda x: G.local_response_norm(x, 3, 0.1, 0.6, 2.0),
        lambda x: F.local_response_norm(x, 3, 0.1, 0.6, 2.0),
        (X,),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function(name):
    ours, theirs, shapes = FUNCTIONS[name]
    tensors = [doubles(*shape, seed=i) for i, shape in enumerate(shapes)]
    torch.testing.assert_close(ours(*tensors), theirs(*tensors), rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(ours, tensors)
    single = [t.detach().float() for t in tensors]
    if "evaluation" not in name:
        assert ours(*single).dtype == torch.float32
        half = [t.bfloat16() for t in single]
        assert ours(*half).dtype == torch.bfloat16


def test_every_function_is_tested():
    assert {name.split()[0] for name in FUNCTIONS} == set(G.__all__) - {"Module"}


def test_running_statistics_are_moved_in_place():
    x = doubles(*X)
    ours, theirs = ([t.clone() for t in RUNNING] for _ in range(2))
    version = ours[0]._version
    G.batch_norm(x, *ours, training=True, momentum=0.3)
    F.batch_norm(x, *theirs, training=True, momentum=0.3)
    torch.testing.assert_close(ours, theirs)
    assert ours[0]._version > version
    with pytest.raises(ValueError, match="more than one value a channel"):
        G.batch_norm(x[:1, :, :1, :1], *ours, training=True)


def test_a_gradient_of_a_gradient_is_refused():
    x, module = doubles(2, 3), G.Module(nn.Linear(3, 2)).double()
    for y in (G.relu(x), module(x)):
        with pytest.raises(RuntimeError, match="no gradient of a gradient: call backward without"):
            torch.autograd.grad(y.square().sum(), x, create_graph=True)


def test_what_was_changed_in_place_is_found_out():
    x, w = doubles(*X), doubles(3, 4, 2, 2)
    module = G.Module(nn.Conv2d(4, 3, 2)).double()
    for y, changed in ((G.conv2d(x, w), w), (module(x), module.weight), (module(x), module.bias)):
        with torch.no_grad():
            changed.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    y = G.relu(x)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="a second time"):
        y.sum().backward()


# ---- modules -------------------------------------------------------------------------------------


def small():
    network = nn.Sequential(
        nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(18, 5),
    )  # fmt: skip
    nn.init.initialize(network, seed=0)
    return network


def test_a_network_passes_gradcheck():
    module = G.Module(small()).double()
    names = list(dict(module.named_parameters()))
    x, weights = doubles(*X), [p.detach().requires_grad_() for p in module.parameters()]

    def run(x, *given):
        return torch.func.functional_call(module, dict(zip(names, given, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)


def test_weights_are_shared_and_stay_shared():
    network = small()
    module = G.Module(network)
    assert list(module.state_dict()) == list(network.state_dict())
    assert np.shares_memory(
        module.get_parameter("0.weight").detach().numpy(), network[0].weight.data
    )
    module.double()
    x = torch.randn(X, dtype=torch.double)
    torch.optim.SGD(module.parameters(), 0.1)
    module(x).sum().backward()
    assert network[0].weight.data.dtype == np.float64
    assert network[0].weight.grad is None
    assert module.get_parameter("0.weight").grad.dtype == torch.double
    assert int(module.get_buffer("1.num_batches_tracked")) == 1
    module.eval()
    assert not network[1].training
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(network(x).data))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert not twin(x).any()
    assert module(x).any()
    module.load_state_dict(twin.state_dict())
    assert not module(x).any()


def test_frozen_weights_get_no_gradient_and_shared_ones_the_sum():
    layer = nn.Linear(3, 3)
    module = G.Module(nn.Sequential(layer, nn.Tanh(), layer))
    assert len(list(module.parameters())) == 2
    x = torch.randn(4, 3)
    module(x).sum().backward()
    w, b = (p.detach().clone().requires_grad_() for p in module.parameters())
    F.linear(torch.tanh(F.linear(x, w, b)), w, b).sum().backward()
    torch.testing.assert_close([p.grad for p in module.parameters()], [w.grad, b.grad])
    module.requires_grad_(False)
    assert not module(x).requires_grad
    module.get_parameter("0.bias").requires_grad_(True)
    module.zero_grad()
    module(x).sum().backward()
    assert module.get_parameter("0.weight").grad is None
    assert module.get_parameter("0.bias").grad is not None


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x, scale):
        h = nn.functional.relu(self.trunk(x))
        return self.a(h), self.b(h) * scale


def test_several_outputs_and_several_backwards():
    module = G.Module(TwoHeads())
    x = torch.randn(4, 3, requires_grad=True)
    p = {name: t.detach().clone().requires_grad_() for name, t in module.named_parameters()}
    h = F.relu(F.linear(x, p["trunk.weight"], p["trunk.bias"]))
    expected = [
        F.linear(h, p["a.weight"], p["a.bias"]),
        2 * F.linear(h, p["b.weight"], p["b.bias"]),
    ]
    found = module(x, 2.0)
    torch.testing.assert_close(list(found), expected)
    for _ in range(2):
        (found[0].square().sum() + found[1].sum()).backward(retain_graph=True)
        (expected[0].square().sum() + expected[1].sum()).backward(retain_graph=True)
    found[1].sum().backward()
    expected[1].sum().backward()
    for name, t in module.named_parameters():
        torch.testing.assert_close(t.grad, p[name].grad)


def test_a_backward_pass_frees_what_was_kept():
    module = G.Module(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)))
    y = module(torch.randn(2, 3))
    (ours,) = y.grad_fn.ys
    node, tape = ours._node, weakref.ref(ours)
    assert node.saved is not None
    y.sum().backward()
    assert node.saved is None
    del y, ours
    gc.collect()
    assert tape() is None


def test_views_modes_and_compilers():
    x = torch.randn(2, 3, 4, requires_grad=True)
    flat = G.Module(nn.Flatten())(x)
    flat.detach().zero_()
    assert x.detach().all()
    module = G.Module(small())
    images = torch.randn(X)
    with torch.no_grad():
        assert not module(images).requires_grad
    module.eval()
    compiled = torch.compile(module, backend="eager")
    assert torch.equal(compiled(images), module(images))
    with pytest.raises(TypeError, match=r"is torch\.bfloat16: weights are kept in float32"):
        copy.deepcopy(module).bfloat16()(images)
    assert module(images.bfloat16()).dtype == torch.bfloat16


def test_resnet18_in_a_torch_training_loop_follows_torch():
    """The twin runs PyTorch's functions on PyTorch's tensors, with the same weights and data."""
    import torch_twin

    arguments = {"num_classes": 5, "stem": "small", "seed": 3}
    module = G.Module(models.resnet18(**arguments)).double()
    twin = torch_twin.Twin(models.resnet18(**arguments).to(dtype=np.float64))
    theirs = {name: twin.tensors[name] for name, _ in module.named_parameters()}
    optimizers = [
        torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-4)
        for parameters in (module.parameters(), theirs.values())
    ]
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8, dtype=torch.double, generator=generator)
        labels = torch.randint(5, (4,), generator=generator)
        pair = [F.cross_entropy(network(x), labels) for network in (module, twin)]
        for loss, optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append([loss.item() for loss in pair])
    ours, expected = np.transpose(losses)
    assert (abs(ours - expected) <= 1e-9 * expected).all(), losses
    assert expected[-1] != expected[0]
    for name, p in module.named_parameters():
        torch.testing.assert_close(p, theirs[name], rtol=1e-7, atol=1e-9)
