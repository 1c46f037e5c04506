"""Arrays of other libraries: taken without a copy and given back, or refused in a line."""

import numpy as np
import pytest

import gpuconv
from gpuconv import nn, ops
from gpuconv.nn import functional as F

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 3, 6, 7)).astype(np.float32)
W = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)


class ByArray:
    """All that it has is `__array__`."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class ByDlpack:
    """All that it has is DLPack's two methods."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Elsewhere(ByDlpack):
    def __dlpack_device__(self):
        return 8, 0  # Metal


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="JAX is not installed")


LAYOUTS = {
    "plain": lambda x: x,
    "rows skipped": lambda x: x[:, :, ::2],
    "channels last": lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "reversed": lambda x: x[..., ::-1],
    "repeated": lambda x: np.broadcast_to(x[:1], x.shape),
    "empty": lambda x: x[:0],
    "read-only": lambda x: _read_only(x),
}


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", [ByArray, ByDlpack, lambda a: a.view(np.memmap)])
def test_other_arrays_become_numpys(kind, layout):
    x = LAYOUTS[layout](X)
    y = ops.relu(kind(x))
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    assert type(ops.conv2d(kind(X), W)) is np.ndarray
    assert ops.relu.reference(kind(x)).tobytes() == y.tobytes()


def test_memory_is_shared():
    total = np.zeros(3, np.float32)
    brought = ByDlpack(total)
    assert ops.accumulate(brought, np.ones(3, np.float32)) is brought
    assert total.tolist() == [1, 1, 1]
    assert np.shares_memory(gpuconv.to_numpy(ByArray(X)), X)
    assert np.shares_memory(nn.Tensor(ByDlpack(X)).data, X)


@pytest.mark.torch
@pytest.mark.parametrize("layout", [n for n in LAYOUTS if n not in ("reversed", "read-only")])
def test_pytorchs_tensors_come_back(torch, layout):
    shared = torch.from_numpy(X.copy())
    t = {
        "plain": shared,
        "rows skipped": shared[:, :, ::2],
        "channels last": shared.to(memory_format=torch.channels_last),
        "repeated": shared[:1].expand(shared.shape),
        "empty": shared[:0],
    }[layout]
    y, argmax = ops.max_pool2d(t, 3, 2)
    expected, _ = torch.nn.functional.max_pool2d(t, 3, 2, return_indices=True)
    assert type(y) is type(argmax) is torch.Tensor
    assert torch.equal(y, expected)
    assert torch.equal(ops.relu(t), torch.relu(t))
    dx = ops.max_pool2d_backward(y, argmax, t.shape, 3, 2)
    assert type(dx) is torch.Tensor
    assert dx.shape == t.shape
    assert np.shares_memory(gpuconv.to_numpy(t), t.numpy()) or not t.numel()


@pytest.mark.torch
def test_costs_are_known_for_tensors(torch):
    x, w = torch.from_numpy(X.copy()), torch.from_numpy(W.copy())
    assert ops.conv2d.work(x, w) == ops.conv2d.work(X, W)
    assert ops.conv2d.multiply_adds(x, w) == 2 * 4 * 4 * 5 * 27


@pytest.mark.torch
def test_what_writes_into_a_tensor_returns_it(torch):
    total = torch.zeros(3)
    assert ops.accumulate(total, torch.ones(3)) is total
    assert total.tolist() == [1, 1, 1]


@pytest.mark.torch
def test_types_of_pytorch(torch):
    values = torch.tensor([-1.5, 0.25, 3.0])
    for dtype, found in (
        (torch.float16, torch.float32),  # computed in float32, as NumPy's float16 is
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        y = ops.relu(values.to(dtype))
        assert y.dtype == found
        assert y.tolist() == [0, 0.25, 3]
    assert torch.equal(ops.relu(torch.complex(values, values).conj().imag), torch.relu(-values))


@pytest.mark.torch
def test_a_gradient_is_never_lost(torch):
    x = torch.ones(2, 3, requires_grad=True)
    line = r"requires a gradient, .*use gpuconv\.torch, or give x\.detach\(\)"
    for call in (ops.relu, F.relu, nn.ReLU(), nn.Tensor, lambda x: F.relu(nn.Tensor([1.0]) * x)):
        with pytest.raises(TypeError, match=line):
            call(x)
    with pytest.raises(TypeError, match="linear: w requires a gradient"):
        ops.linear(x.detach(), torch.nn.Parameter(torch.ones(4, 3)))
    with torch.no_grad():
        assert ops.relu(x).shape == (2, 3)


@pytest.mark.torch
def test_layers_losses_and_gradients_take_tensors(torch):
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 5))
    scores = layer(torch.from_numpy(X))
    np.testing.assert_array_equal(scores.data, layer(X).data)
    labels = np.array([1, 4])
    losses = [nn.CrossEntropyLoss()(scores, kind(labels)) for kind in (np.array, torch.from_numpy)]
    assert float(losses[0]) == float(losses[1])
    losses[1].backward()
    assert all(type(p.grad) is np.ndarray for p in layer.parameters())
    x = nn.Tensor(torch.ones(3), requires_grad=True)
    (x * 2).backward(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert x.grad.tolist() == [2, 4, 6]


@pytest.mark.torch
def test_tensors_are_given_by_dlpack(torch):
    tensor = nn.Tensor(X.copy())
    given = torch.from_dlpack(tensor)
    given[0] = 7
    assert (tensor.data[0] == 7).all()
    assert np.shares_memory(np.from_dlpack(tensor), tensor.data)
    with pytest.raises(BufferError, match=r"requires a gradient: give tensor\.detach\(\)"):
        torch.from_dlpack(nn.Parameter(X))


def test_jaxs_arrays_come_back(jax):
    x = jax.numpy.asarray(X)
    y = ops.conv2d(x, jax.numpy.asarray(W), None, 1, 1)
    assert isinstance(y, jax.Array)
    expected = jax.lax.conv(x, jax.numpy.asarray(W), (1, 1), "SAME")
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert ops.relu(x.astype(jax.numpy.bfloat16)).dtype == np.float32
    assert isinstance(nn.ReLU()(x), nn.Tensor)
    for traced in (jax.jit(ops.relu), jax.grad(lambda x: ops.relu(x).sum())):
        with pytest.raises(TypeError, match=r"relu: x is traced by JAX .* jax\.pure_callback"):
            traced(x)


REFUSED = [
    (lambda: np.ma.masked_array(X, X > 1), r"relu: x is a masked array: give x\.filled"),
    (lambda: ByArray(np.array(["a"])), "relu: x must be float32 or float64, got <U1"),
    (lambda: ByArray(np.ones(3, int)), "relu: x must be float32 or float64, got int64"),
    (lambda: ByDlpack(np.ones(3, bool)), "relu: x must be float32 or float64, got bool"),
    (lambda: ByArray(3), "relu: x is no array that can be taken .ByArray.: "),
    (lambda: Elsewhere(X), "relu: x is on DLPack's device 8: move it to the CPU"),
    (lambda: np.ones(3, ">f4"), r"relu: x must be .* got >f4; convert it with \.astype"),
    (lambda: nn.Parameter(X), r"relu: x is a Tensor that .* use gpuconv\.nn\.functional, or \.dat"),
]


@pytest.mark.parametrize(("make", "line"), REFUSED)
def test_what_cannot_be_taken_is_refused_in_a_line(make, line):
    with pytest.raises(TypeError, match=line) as refused:
        ops.relu(make())
    assert "\n" not in str(refused.value)


@pytest.mark.torch
def test_tensors_that_cannot_be_taken_are_refused_in_a_line(torch):
    coo = torch.ones(2, 2).to_sparse()
    for tensor, line in (
        (coo, "relu: x is a tensor of layout sparse_coo: convert it to a dense one"),
        (torch.ones(2, device="meta"), "relu: x is on PyTorch's device meta: move it"),
        (torch.ones(2, dtype=torch.int32), "relu: x must be float32 or float64, got int32"),
        (torch.ones(2).bool(), "relu: x must be float32 or float64, got bool"),
    ):
        with pytest.raises(TypeError, match=line):
            ops.relu(tensor)
    with pytest.raises(TypeError, match="linear: arrays of different types"):
        ops.linear(torch.ones(2, 3), torch.ones(4, 3).double())


def test_numbers_of_numpy_stay_numbers():
    y = ops.conv2d(X, W, None, np.int16(2), (np.int8(1), np.uint8(1)))
    np.testing.assert_array_equal(y, ops.conv2d(X, W, None, 2, 1))
